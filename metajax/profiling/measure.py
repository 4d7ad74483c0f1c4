"""Measure how fast a computation runs, and how fast the device could run it."""

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

from metajax.core.parallel import AXIS
from metajax.core.precision import products_precision
from metajax.kernels.bilinear import bilinear_flops


class Timing(NamedTuple):
    """Statistics of the wall-clock seconds of a call.

    Attributes:
        seconds: Median.
        low: First quartile.
        high: Third quartile.
        repeats: Number of timed calls.
        first_seconds: Seconds of the first call, including compilation. The other fields do not include it.
    """

    seconds: float
    low: float
    high: float
    repeats: int
    first_seconds: float


def time_calls(call: Callable[[], Any], *, seconds: float = 5.0, at_least: int = 5) -> Timing:
    """Time a function for about `seconds`, with `at_least` calls.

    `call` must block until its work is done. If one call takes longer than `seconds`, it is timed once.

    >>> time_calls(lambda: None, seconds=0.0, at_least=3).repeats
    3
    """
    times: list[float] = []
    first = _seconds(call)
    warm = _seconds(call)  # the second call still fills caches
    if warm > seconds > 0:
        at_least = 1
    start = time.perf_counter()
    while len(times) < at_least or time.perf_counter() - start < seconds:
        times.append(_seconds(call))
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return Timing(median, low, high, len(times), first)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def matrix_rate(devices: Sequence[Any], *, size: int | None = None, seconds: float = 2.0) -> float:
    """Measure the rate of square matrix products, in floating-point operations per second of all devices.

    It is an upper bound for models, except for models with convolutions that need fewer multiplications. Operands are
    `bfloat16` if JAX's default matmul precision rounds to `bfloat16`, else `float32` at the default precision, as in
    models.

    Args:
        devices: The devices. Each computes its own product at the same time.
        size: Side of the matrices. Default: large enough to use a device fully.
        seconds: Duration of the measurement.
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
    """Count the floating-point operations of the matrix products and convolutions in `fn(*args)`, without dead code.

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
    """Return the peak memory use so far: of the device with the largest peak, or of this process if unknown."""
    memory = [device.memory_stats() or {} for device in devices]
    peaks = [each["peak_bytes_in_use"] for each in memory if "peak_bytes_in_use" in each]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(peaks) if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
