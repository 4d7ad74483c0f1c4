"""Devices of a run: host cores count as devices on a CPU."""

import contextlib
import os

import jax
from jax.sharding import Mesh

from metajax.errors import UserError
from metajax.parallel import is_tiny, task_mesh
from metajax.types import Params


def prepare_devices(devices: int | None) -> None:
    """Make each core a device of the CPU; once JAX is in use, its devices stay as they are.

    Raises:
        UserError: If `devices` is below 1.
    """
    if devices is not None and devices < 1:
        raise UserError(f"--devices must be at least 1, got {devices}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(cores, min(devices or 1, 8), jax.config.jax_num_cpu_devices))  # pyright: ignore[reportAttributeAccessIssue]


def choose_mesh(devices: int | None, params: Params, tasks: int) -> Mesh:
    """A mesh of `devices` devices; by default all that help.

    A tiny model on a CPU is all dispatch, and stays on one core; otherwise as many devices as share the tasks evenly.

    Raises:
        UserError: If there are not so many.
    """
    available = jax.local_devices()
    if devices is None:
        most = min(len(available), tasks)
        devices = 1 if is_tiny(params) and jax.default_backend() == "cpu" else -(-tasks // -(-tasks // most))
    if devices > len(available):
        raise UserError(f"--devices is {devices}, but there are only {len(available)} {jax.default_backend()} devices")
    return task_mesh(available[:devices])
