"""Choose and prepare the devices and processes of a run. On a CPU each core is a device."""

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

from metajax.core.parallel import is_tiny, task_mesh
from metajax.core.precision import products_precision
from metajax.core.types import Params
from metajax.data.disk import resolve_data_dir
from metajax.errors import UserError
from metajax.experiment import compiled, rendezvous

_LOG = logging.getLogger("metajax")


def join(others: str | None) -> None:
    """Join the other processes of a run. All processes start with the same command, on one or several machines.

    Args:
        others: `None` if there are no other processes; `auto` if a cluster manager (Slurm, Open MPI, Kubernetes, a TPU
            pod) starts the processes; or `ADDRESS:PORT,INDEX,COUNT`: the address of process 0, the index of this
            process, and the number of processes.

    Raises:
        UserError: If `others` has none of these forms, or if the processes cannot be joined.
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
    """Wait until every process of the run has called this function."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_process(value: bool) -> bool:
    """Return whether `value` is true in any process of the run."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(value)).any())


def is_first() -> bool:
    """Return whether this is process 0, the only process that writes files and prints."""
    return rendezvous.process_index() == 0


def prepare_devices(devices: int | None) -> None:
    """Make each CPU core a JAX device, and let JAX cache compiled programs on disk.

    If JAX has already initialised its devices, the devices do not change.

    Raises:
        UserError: If `devices` is below 1.
    """
    if devices is not None and devices < 1:
        raise UserError(f"--devices must be at least 1, got {devices}")
    _keep_compiled_programs()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(_cores(), min(devices or 1, 8), jax.config.jax_num_cpu_devices))  # pyright: ignore[reportAttributeAccessIssue]


def check_devices() -> None:
    """Let JAX initialise its devices, and log the first line of each warning that JAX prints meanwhile.

    Raises:
        UserError: If JAX finds no device, for example because of `JAX_PLATFORMS`.
    """
    warnings: list[str] = []
    logger, handler = logging.getLogger("jax._src.xla_bridge"), _FirstLines(warnings)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError where a plugin is missing
        raise UserError(_no_device(str(error))) from error
    finally:
        logger.propagate = propagates
        logger.removeHandler(handler)
    for line in warnings if is_first() else ():
        _LOG.warning("JAX: %s", line)


class _FirstLines(logging.Handler):
    """A log handler that appends the first line of each warning to a Python list."""

    def __init__(self, lines: list[str]):
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.extend(record.getMessage().splitlines()[:1])


_INSTALLED_BY = {"cuda": "jax[cuda13]", "gpu": "jax[cuda13]", "rocm": "JAX's plugin for ROCm", "tpu": "jax[tpu]"}


def _platforms() -> str:
    """Return the value of `JAX_PLATFORMS`, the platforms that the user allows; empty if the user has set none."""
    return jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]


def _no_device(reason: str) -> str:
    """Return the error message for a JAX that finds no device; `reason` is JAX's own message."""
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
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _keep_compiled_programs() -> None:
    """Enable JAX's cache of compiled programs, unless the user has chosen a folder for the cache."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = resolve_data_dir() / "compiled" / _machine()
        compiled.drop_changed(folder)
        atexit.register(compiled.record, folder, time.time())
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _machine() -> str:
    """Return a name for the kind of this CPU. The cache is separate for each kind, because their programs differ."""
    lines = _cpu_description().splitlines()
    flags = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{zlib.crc32(''.join(flags).encode()):08x}"


def _cpu_description() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.is_file() else platform.processor()


def device_name() -> str:
    """Return the kind and the number of this process's devices, such as `cpu: x86_64-09b9ad54, 2 of them`.

    The kind of a CPU ends in a checksum of its model name and instruction set.
    """
    first = jax.devices()[0]
    kind = first.device_kind if first.platform != "cpu" else _machine()
    return f"{first.platform}: {kind}, {jax.local_device_count()} of them"


def use_precision(precision: str) -> None:
    """Set the precision of the operands of matrix products.

    `default` keeps the precision that the user has set for JAX. If the user has set none, `default` selects bfloat16
    where all processes run on CPUs with bfloat16 instructions, and JAX's own default elsewhere.
    """
    if precision == "default":
        chosen = products_precision() != "default"
        if chosen or jax.default_backend() != "cpu" or any_process(not multiplies_bfloat16()):
            return
        precision = "bfloat16"
    jax.config.update("jax_default_matmul_precision", precision)


def multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 products, which are faster than float32 products."""
    return has_matrix_units() or "avx512_bf16" in _cpu_description().split()


def has_matrix_units() -> bool:
    """Return whether this CPU has units for small matrix products in bfloat16 (AMX)."""
    return "amx_bf16" in _cpu_description().split()


def choose_mesh(devices: int | None, params: Params, tasks: int) -> Mesh:
    """Return a mesh of devices to split the tasks of a meta-step over.

    Args:
        devices: Number of devices per process; the mesh contains devices of all processes. Default: the smallest number
            for which the busiest device has as few tasks as with all devices. For a tiny model on a CPU the default is
            at most two, because devices wait for each other in every meta-step.
        params: The model's parameters.
        tasks: Number of tasks in a meta-step.

    Raises:
        UserError: If `devices` is below 1, or if a process has fewer than `devices` devices.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    available = jax.local_devices()[: min(counts.values())]  # each process contributes the same number of devices
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
    each = [[d for d in jax.devices() if d.process_index == process][:devices] for process in sorted(counts)]
    return task_mesh(list(itertools.chain.from_iterable(each)))


def describe_mesh(mesh: Mesh) -> str:
    """Return the number and platform of the devices of a mesh as text, such as `2 cpu devices`."""
    return f"{mesh.size} {mesh.devices.flat[0].platform} device{'s' if mesh.size > 1 else ''}"


def check_memory(params: Params) -> None:
    """Check that the training state of a model fits in memory, before the system kills the process.

    Raises:
        UserError: If the parameters, their gradient and Adam's two moments are larger than the memory.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    memory = statistics.get("bytes_limit")
    if memory is None and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    leaves = jax.tree.leaves(params)
    kept = 4 * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if memory and kept > memory:
        raise UserError(
            f"the model has {sum(leaf.size for leaf in leaves):,} parameters: training needs {kept / 2**30:,.1f} "
            f"GiB or more, and the memory has {memory / 2**30:,.1f} GiB. Try a smaller model"
        )


def share_evenly(tasks: int, devices: int) -> int:
    """Return the smallest number of devices for which the busiest device has as few tasks as with all devices.

    >>> share_evenly(25, 8), share_evenly(4, 8)  # at most 4 tasks per device, as with 8 devices; 1 task per device
    (7, 4)
    """
    return -(-tasks // -(-tasks // devices))
