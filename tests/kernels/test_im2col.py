"""im2col patches against slices of the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.kernels.geometry import Geometry
from metajax.kernels.im2col import patches

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(4, 9),
    width=st.sampled_from([4, 7, 15, 16, 17, 30]),
    size=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    by_rows=st.booleans(),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_patches_are_the_pixels_under_a_kernel(height, width, size, stride, padding, by_rows, dtype):
    """Compare exactly, because patches are copies."""
    height, width = max(height, size), max(width, size)
    images = jax.random.normal(jax.random.key(0), (2, height, width, 3), dtype)
    out = np.asarray(patches(images, Geometry(height, width, size, stride, padding), by_rows=by_rows))
    around = np.pad(np.asarray(images), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    for row, column in np.ndindex(out.shape[1:3]):
        at = around[:, row * stride : row * stride + size, column * stride : column * stride + size]
        np.testing.assert_array_equal(out[:, row, column], at.reshape(2, -1))
    assert out.shape[1:3] == tuple((side + 2 * padding - size) // stride + 1 for side in (height, width))
