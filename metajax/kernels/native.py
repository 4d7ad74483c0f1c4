"""Compute convolutions by XLA's own convolution."""

import jax
import jax.numpy as jnp
from jax import lax

from metajax.kernels.geometry import Geometry, images_like, reversed_kernel, reversed_padding


def forward(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the output of a convolution, `[examples, height', width', out]`.

    >>> import jax.numpy as jnp
    >>> sizes = Geometry(4, 5, size=3, stride=1, padding=0)
    >>> forward(jnp.ones((1, 4, 5, 2)), jnp.ones((3, 3, 2, 7)), sizes)[0, :, :, 0].tolist()
    [[18.0, 18.0, 18.0], [18.0, 18.0, 18.0]]
    """
    padding = [(geometry.padding, geometry.padding)] * 2
    strides = (geometry.stride, geometry.stride)
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def forward_of_padded_channels(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the output of a convolution with one more input channel, of zeros.

    With three channels, XLA for CPUs does not fill its vector registers.
    """
    images = jnp.pad(images, [(0, 0)] * 3 + [(0, 1)])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, 1), (0, 0)])
    return forward(images, kernel, geometry)


def input_cotangent(output: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the cotangent of the images from the cotangent of the output, by the transpose that JAX defines."""
    images = images_like(output, kernel, geometry)
    return jax.linear_transpose(lambda images: forward(images, kernel, geometry), images)(output)[0]


def input_cotangent_by_reversed_kernel(output: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the cotangent of the images as the convolution of the output's cotangent with the reversed kernel.

    This form exists only at stride 1. XLA for CPUs has a fast path for it, but not for the transpose.
    """
    padding = reversed_padding(geometry.size, geometry.padding)
    return forward(output, reversed_kernel(kernel), geometry._replace(padding=padding))


def kernel_cotangent(images: jax.Array, output: jax.Array, geometry: Geometry) -> jax.Array:
    """Compute the cotangent of the kernel from the cotangent of the output, by the transpose that JAX defines."""
    shape = (geometry.size, geometry.size, images.shape[-1], output.shape[-1])
    kernel = jax.ShapeDtypeStruct(shape, images.dtype)
    return jax.linear_transpose(lambda kernel: forward(images, kernel, geometry), kernel)(output)[0]
