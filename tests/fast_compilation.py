"""Compile quickly in tests, where compilation takes most of the time."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache


@functools.cache
def _cache() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def settings() -> dict[str, str | int | bool]:
    """Return the settings of JAX for few optimisations and a cache, which the tests of one process share."""
    return {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": _cache(),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
    """Compile with `settings` in the block."""
    before = {name: jax.config.values[name] for name in settings()}
    for name, value in settings().items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
