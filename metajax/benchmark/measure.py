"""How fast a computation runs, and how fast it could."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax.models.bilinear import bilinear_flops
from metajax.parallel import AXIS
from metajax.precision import products_precision


class Timing(NamedTuple):
    """Wall-clock seconds of one call, over many of them.

    Attributes:
        seconds: Median.
        low: First quartile.
        high: Third quartile.
        repeats: Calls that were timed.
        first_seconds: The first call, compilation included; it is not among the others.
    """

    seconds: float
    low: float
    high: float
    repeats: int
    first_seconds: float


def time_calls(call: Callable[[], Any], *, seconds: float = 5.0, at_least: int = 5) -> Timing:
    """Time `call`, which returns when its work is done, for about `seconds` and `at_least` so many times.

    A call that takes longer than `seconds` is timed once.

    >>> time_calls(lambda: None, seconds=0.0, at_least=3).repeats
    3
    """
    took: list[float] = []
    first = _seconds(call)
    warm = _seconds(call)  # the second call still fills caches
    if warm > seconds > 0:
        at_least = 1
    began = time.perf_counter()
    while len(took) < at_least or time.perf_counter() - began < seconds:
        took.append(_seconds(call))
    low, median, high = statistics.quantiles(took, n=4, method="inclusive") if len(took) > 1 else took * 3
    return Timing(median, low, high, len(took), first)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def matrix_rate(devices: Sequence[Any], *, size: int | None = None, seconds: float = 2.0) -> float:
    """Floating-point operations a second of products of square matrices, one on each device at a time.

    What no model can exceed, but by convolutions that do with fewer products: of `float32` operands in the default
    precision of a product, as it holds for models; of `bfloat16` operands where that rounds to them. Their `size` is by
    default what fills a device.
    """
    rounds = products_precision() == "bfloat16"
    size = size or (1536 if devices[0].platform == "cpu" else 8192)
    mesh = Mesh(np.array(devices), (AXIS,))
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    dtype = jnp.bfloat16 if rounds else jnp.float32
    many = jax.device_put(jax.random.normal(jax.random.key(0), (len(devices), size, size), dtype), split)
    product = jax.jit(
        lambda a: jnp.einsum("dij,djk->dik", a, a, preferred_element_type=jnp.float32) / size, out_shardings=split
    )
    timing = time_calls(lambda: product(many).block_until_ready(), seconds=seconds)
    return len(devices) * 2 * size**3 / timing.seconds


def matrix_flops(fn: Callable, *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions in one call of `fn`, dead code left out.

    >>> import jax.numpy as jnp
    >>> matrix_flops(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 4)))
    48
    """
    traced = jax.jit(fn).trace(*args)
    return _flops(_live(traced.jaxpr.jaxpr))


def _live(jaxpr: core.Jaxpr) -> core.Jaxpr:
    from jax.interpreters import partial_eval

    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _flops(jaxpr: core.Jaxpr) -> int:
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: core.JaxprEqn) -> int:
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0  # pyright: ignore[reportAttributeAccessIssue]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
        return 2 * out * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
        return 2 * out * math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    if equation.primitive.name in ("convolution", "product"):
        shapes = (each.aval.shape for each in [*equation.invars, *equation.outvars])  # pyright: ignore[reportAttributeAccessIssue]
        return bilinear_flops(*shapes, role=equation.params["role"])
    times = equation.params.get("length", 1)
    inner = [value for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(value)]
    return times * sum(_flops(getattr(value, "jaxpr", value)) for value in inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def peak_bytes(devices: Sequence[Any]) -> int:
    """The most memory in use so far: on the busiest device, or of this process if devices do not say."""
    statistics_of = [device.memory_stats() or {} for device in devices]
    used = [each["peak_bytes_in_use"] for each in statistics_of if "peak_bytes_in_use" in each]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(used) if used else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
