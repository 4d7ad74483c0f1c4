"""What commands say of a device's errors."""

import jax
import pytest

from metajax.cli import report
from metajax.errors import UserError


def test_memory_that_does_not_do_is_a_line_with_advice():
    message = r"out of memory \(RESOURCE_EXHAUSTED: 9 GiB\): try a smaller --chunk-size"
    with pytest.raises(UserError, match=message), report.out_of_memory("a smaller --chunk-size"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError), report.out_of_memory("nothing"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
