"""Devices of a run: host cores count as devices on a CPU."""

import atexit
import collections
import contextlib
import itertools
import logging
import os
import platform
import time
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from metajax.cli import compiled, rendezvous
from metajax.data.disk import resolve_data_dir
from metajax.errors import UserError
from metajax.parallel import is_tiny, task_mesh
from metajax.precision import products_precision
from metajax.types import Params

_LOG = logging.getLogger("metajax.cli")


def join(others: str | None) -> None:
    """Join the other processes of a run, each started with the same command on a machine of its own, or on one.

    Args:
        others: `auto` where a cluster manager (Slurm, Open MPI, Kubernetes, a TPU pod) says who they are; else
            `ADDRESS:PORT,INDEX,COUNT`, the address of the first process, the index of this one, and how many there are.

    Raises:
        UserError: If it is neither, or they cannot be joined.
    """
    if others is None:
        return
    place = None if others == "auto" else rendezvous.parse_place(others)
    if place is not None:
        rendezvous.meet(place)
    try:
        if place is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(place.address, num_processes=place.count, process_id=place.index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"--distributed: the other processes cannot be joined ({str(error).splitlines()[0]})"
        ) from error


def wait_for_others(where: str) -> None:
    """Wait until every process of the run has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_process(value: bool) -> bool:
    """Whether `value` is true in any process of the run."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(value)).any())


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rendezvous.process_index() == 0


def prepare_devices(devices: int | None) -> None:
    """Make each core a device of the CPU, and keep compiled programs; once JAX is in use, its devices stay as they are.

    Raises:
        UserError: If `devices` is below 1.
    """
    if devices is not None and devices < 1:
        raise UserError(f"--devices must be at least 1, got {devices}")
    _keep_compiled_programs()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(_cores(), min(devices or 1, 8), jax.config.jax_num_cpu_devices))  # pyright: ignore[reportAttributeAccessIssue]


def check_devices() -> None:
    """Let JAX find its devices, and show in a line each what it says about that.

    Raises:
        UserError: If it finds none, because of `JAX_PLATFORMS` for example.
    """
    said: list[str] = []
    logger, handler = logging.getLogger("jax._src.xla_bridge"), _Lines(said)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError where a plugin is missing
        raise UserError(_no_device(str(error))) from error
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
    for line in said if is_first() else ():
        _LOG.warning("JAX: %s", line)


class _Lines(logging.Handler):
    """Keep the first line of each warning."""

    def __init__(self, lines: list[str]):
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.extend(record.getMessage().splitlines()[:1])


_INSTALLED_BY = {"cuda": "jax[cuda13]", "gpu": "jax[cuda13]", "rocm": "JAX's plugin for ROCm", "tpu": "jax[tpu]"}


def _platforms() -> str:
    """The user's `JAX_PLATFORMS`."""
    return jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]


def _no_device(reason: str) -> str:
    reason = " ".join(reason.partition("(set JAX_PLATFORMS")[0].split())[:200]
    platforms = _platforms()
    if not platforms:
        return f"JAX finds no device ({reason})"
    names = [name.strip() for name in platforms.split(",")]
    unknown = [name for name in names if name not in ("cpu", *_INSTALLED_BY)]
    if unknown:
        shown = repr(platforms[:100])
        return f"JAX finds no device: JAX_PLATFORMS is {shown}; unset it, or choose from cpu, cuda, rocm and tpu"
    packages = " and ".join(dict.fromkeys(_INSTALLED_BY[name] for name in names if name != "cpu"))
    install = f", or install {packages}" if packages else ""
    because = f" ({reason})" if reason and "list of known backends" not in reason else ""
    return f"JAX finds no device: JAX_PLATFORMS is {platforms}{because}; unset it{install}, and check the driver"


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keep_compiled_programs() -> None:
    """Let a second start of an experiment find what the first one compiled; a choice of the user's own stays."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = resolve_data_dir() / "compiled" / _machine()
        compiled.drop_changed(folder)
        atexit.register(compiled.record, folder, time.time())
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _machine() -> str:
    """A name for the kind of CPU: programs compiled for another one would crash."""
    lines = _cpu_description().splitlines()
    flags = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{zlib.crc32(''.join(flags).encode()):08x}"


def _cpu_description() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.is_file() else platform.processor()


def device_name() -> str:
    """The kind of device (of a CPU its instructions) and how many: `cpu: x86_64-09b9ad54, 2 of them`."""
    first = jax.devices()[0]
    kind = first.device_kind if first.platform != "cpu" else _machine()
    return f"{first.platform}: {kind}, {jax.local_device_count()} of them"


def use_precision(precision: str) -> None:
    """Set the precision of products' operands.

    The default is what the user chose for JAX; if nothing, bfloat16 on CPUs that all multiply it.
    """
    if precision == "default":
        chosen = products_precision() != "default"
        if chosen or jax.default_backend() != "cpu" or any_process(not multiplies_bfloat16()):
            return
        precision = "bfloat16"
    jax.config.update("jax_default_matmul_precision", precision)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, faster than in float32."""
    return has_matrix_units() or "avx512_bf16" in _cpu_description().split()


def has_matrix_units() -> bool:
    """Whether this CPU has units for products of small matrices in bfloat16 (AMX)."""
    return "amx_bf16" in _cpu_description().split()


def choose_mesh(devices: int | None, params: Params, tasks: int) -> Mesh:
    """A mesh of `devices` devices; by default all that help.

    These are as many as share the tasks evenly, but two at most for a tiny model on a CPU: in every meta-step devices
    wait for each other.

    With several processes `devices` counts those of each, and the mesh has them all.

    Raises:
        UserError: If there are not so many.
    """
    of_process = collections.Counter(device.process_index for device in jax.devices())
    available = jax.local_devices()[: min(of_process.values())]  # as many in each process
    tasks = -(-tasks // jax.process_count())
    if devices is not None and devices < 1:
        raise UserError(f"--devices must be at least 1, got {devices}")
    if devices is None:
        tiny = is_tiny(params) and jax.default_backend() == "cpu"
        devices = share_evenly(tasks, min(len(available), 2) if tiny else len(available))
    elif devices > len(available):
        raise UserError(f"--devices is {devices}, but there are only {len(available)} {jax.default_backend()} devices")
    elif devices > _cores() and jax.default_backend() == "cpu" and is_first():
        _LOG.warning("%d devices on %d cores: those that share a core are no faster", devices, _cores())
    if jax.process_count() == 1:
        return task_mesh(available[:devices])
    each = [[d for d in jax.devices() if d.process_index == process][:devices] for process in sorted(of_process)]
    return task_mesh(list(itertools.chain.from_iterable(each)))


def check_memory(params: Params) -> None:
    """Check that a device holds what training keeps of a model, before the system ends a process that asks for more.

    Raises:
        UserError: If parameters, their gradient and two moments of Adam are larger than the memory.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    memory = statistics.get("bytes_limit")
    if memory is None and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    leaves = jax.tree.leaves(params)
    kept = 4 * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if memory and kept > memory:
        raise UserError(
            f"the model has {sum(leaf.size for leaf in leaves):,} parameters: to train it takes {kept / 2**30:,.1f} "
            f"GiB or more, and there are {memory / 2**30:,.1f}. Try a smaller model"
        )


def share_evenly(tasks: int, devices: int) -> int:
    """How many of these devices it takes for each to have as few tasks as with all of them.

    >>> share_evenly(25, 8), share_evenly(4, 8)  # 4 each, as with eight; one each
    (7, 4)
    """
    return -(-tasks // -(-tasks // devices))
