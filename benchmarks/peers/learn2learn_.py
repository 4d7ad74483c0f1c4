"""`learn2learn` 0.2.0: its `MAML`, cloned and adapted in a Python loop over tasks.

The package needs Cython extensions that do not build with current Pythons, and `gym`, none of which its MAML uses.
Get the source alone, unpack it and name its folder in the environment variable `LEARN2LEARN_SOURCE`:

    pip download --no-deps --no-binary :all: learn2learn==0.2.0

Bypassed are the `__init__` of `learn2learn`, which imports `data` (the extensions), `gym`, `text` and `vision`, and
that of `learn2learn.algorithms`, which imports its PyTorch Lightning classes: empty packages stand in for both.
`learn2learn.algorithms.maml`, `.base_learner` and `learn2learn.utils` are the originals.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
import types
from typing import TYPE_CHECKING

from benchmarks.peers import Unsupported
from benchmarks.peers.torch_common import Arrays, Prepared, loss_of, make_module, make_tensors, with_adam

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX


def prepare(workload: Workload, params: Arrays, tasks: Arrays) -> Prepared:
    """Make `step` and `gradient` for a workload; the graph of one task lives at a time."""
    if workload.learner == "reptile":
        raise Unsupported("it has no Reptile")
    module, loss = make_module(workload, params), loss_of(workload)
    data = list(zip(*make_tensors(tasks), strict=True))
    maml = _import_maml().MAML(module, lr=workload.learning_rate, first_order=workload.learner == "fomaml")

    def accumulate() -> None:
        for support_x, support_y, query_x, query_y in data:
            learner = maml.clone()
            for _ in range(workload.steps):
                learner.adapt(loss(learner(support_x), support_y))
            (loss(learner(query_x), query_y) / len(data)).backward()

    return with_adam(module, accumulate)


def _import_maml() -> types.ModuleType:
    if "learn2learn" not in sys.modules:
        source = os.environ.get("LEARN2LEARN_SOURCE")
        if source is None:
            raise Unsupported("LEARN2LEARN_SOURCE does not name the folder of its source")
        for name in ("learn2learn", "learn2learn.algorithms"):
            package = types.ModuleType(name)
            package.__path__ = [str(pathlib.Path(source, *name.split(".")))]
            sys.modules[name] = package
    return importlib.import_module("learn2learn.algorithms.maml")
