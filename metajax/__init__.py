"""Gradient-based meta-learning in JAX: pure functions on one task, averaged over many tasks."""

import importlib
import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Any

from metajax.errors import needs

if TYPE_CHECKING:
    from metajax._api import *  # noqa: F403
    from metajax.experiment.loop import train as train
    from metajax.experiment.run import run as run

try:
    __version__ = importlib.metadata.version("metajax")
except importlib.metadata.PackageNotFoundError:  # a checkout on the path that is not installed
    __version__ = "0+uninstalled"


_RUNS = {"run": "metajax.experiment.run", "train": "metajax.experiment.loop"}
"""Public functions whose modules import packages for checkpoints and data sets, which other functions do not need."""


def __getattr__(name: str) -> Any:
    """Import the public names, and JAX with them, when the first name is used.

    The command line starts without JAX, so that it can answer `--help` and Ctrl-C while JAX is imported.
    """
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _RUNS:
        with needs("all"):
            return getattr(importlib.import_module(_RUNS[name]), name)
    api = importlib.import_module("metajax._api")
    if name == "__all__":
        return [*api.__all__, *(_RUNS if importlib.util.find_spec("typeguard") else ())]
    if name in globals():  # importing `_api` has also set some submodules as attributes
        return globals()[name]
    try:
        return getattr(api, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("metajax._api").__all__, *_RUNS})
