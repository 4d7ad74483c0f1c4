"""Gradient-based meta-learning in JAX: pure functions on one task, averaged over many tasks."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metajax._api import *  # noqa: F403

try:
    __version__ = importlib.metadata.version("metajax")
except importlib.metadata.PackageNotFoundError:  # a checkout on the path that is not installed
    __version__ = "0+uninstalled"


def __getattr__(name: str) -> Any:
    """Import the public names, and JAX with them, when the first name is used.

    The command line starts without JAX, so that it can answer `--help` and Ctrl-C while JAX is imported.
    """
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    api = importlib.import_module("metajax._api")
    if name == "__all__":
        return api.__all__
    if name in globals():  # a module that the import above brought
        return globals()[name]
    try:
        return getattr(api, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("metajax._api").__all__})
