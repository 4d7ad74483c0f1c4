"""Time a computation, count its floating-point operations, and measure the matrix product rate of a device."""

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
    """Wall-clock seconds of repeated calls of a function.

    Attributes:
        seconds: Median over the timed calls.
        low: First quartile over the timed calls.
        high: Third quartile over the timed calls.
        repeats: Number of timed calls.
        first_seconds: Seconds of the first call, which includes compilation. All other fields exclude the first call.
    """

    seconds: float
    low: float
    high: float
    repeats: int
    first_seconds: float


def time_calls(call: Callable[[], Any], *, seconds: float = 5.0, at_least: int = 5) -> Timing:
    """Call a function repeatedly for about `seconds` seconds, at least `at_least` times, and time each call.

    `call` must block until its computation is finished. Two more calls come first and are not among the timed calls. If
    the second of them takes longer than `seconds`, only one call is timed.

    >>> time_calls(lambda: None, seconds=0.0, at_least=3).repeats
    3
    """
    times: list[float] = []
    first = _seconds(call)
    warm = _seconds(call)  # the second call may still be slower, because it fills caches
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
    """Measure the floating-point operations per second of square matrix products, summed over the devices.

    The rate is an upper bound for the rate of a model, unless the model's convolutions save multiplications (Winograd).
    The operands are `bfloat16` if `jax_default_matmul_precision` is `"bfloat16"`. If not, they are `float32`. Models
    use the same precision.

    Args:
        devices: The devices. All devices multiply at the same time, each its own matrix.
        size: Number of rows and columns of a matrix. Default: 1536 on a CPU and 8192 on an accelerator, which is large
            enough to keep the device busy.
        seconds: Approximate duration of the measurement in seconds.
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
    """Count the floating-point operations of all matrix products and convolutions that `fn(*args)` computes.

    Operations whose results are not used are not counted.

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
        return bilinear_flops(*shapes, role=equation.params["role"], per_task=equation.params["per_task"])
    times = equation.params.get("length", 1)
    inner = [value for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(value)]
    return times * sum(_flops(getattr(value, "jaxpr", value)) for value in inner)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def peak_bytes(devices: Sequence[Any]) -> int:
    """Return the peak memory use so far in bytes, of the device with the largest peak.

    If the devices report no memory statistics, as on a CPU, return the peak memory use of this process.
    """
    memory = [device.memory_stats() or {} for device in devices]
    peaks = [each["peak_bytes_in_use"] for each in memory if "peak_bytes_in_use" in each]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(peaks) if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
