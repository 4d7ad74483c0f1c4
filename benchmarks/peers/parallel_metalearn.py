"""`parallel-metalearn` 0.5.6 (imported as `metalearn`): its `MAML` and `Reptile`, by `vmap` over chunks of tasks.

Its `step` is timed as it is: the meta-gradient, the update and the loss and metric it reads back for its report;
Reptile evaluates the query sets for that too. The chunk size is the fastest of 1, 4 and all tasks in a trial. Its
wrapper wants a body and a head that take keywords; a subclass calls our model instead. The inner rate is fixed,
not learned as by default, and labels stay as they are. Regression brings a loss of its own, as its notes suggest.

It differentiates a `vmap` of inner gradients from outside. With the scale of batch normalisation in PyTorch's kernel
that gives a wrong second derivative without a word (in 2.13; not so a `vmap` of the whole meta-gradient), so here the
scale is applied after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from metalearn.algorithms import MAML, Reptile
from metalearn.inner_optimizers import InnerSGD
from metalearn.loss import BaseLoss, CategoricalAccuracy, CrossEntropy
from metalearn.model_wrappers import MAML_Model

from benchmarks.peers import torch_models
from benchmarks.peers.torch_common import (
    DEVICE,
    Arrays,
    Prepared,
    fastest_chunk,
    make_module,
    make_tensors,
    synchronize,
)

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX


class _Model(MAML_Model):
    def __init__(self, module: torch.nn.Module):
        super().__init__(module)
        for part in module.modules():
            if isinstance(part, torch_models.BatchNorm):
                part.fused = False

    def forward(self, x: torch.Tensor, **kwargs) -> dict:
        return {"logits": self.backbone(x), "buffers": {}}


class _SquaredError(BaseLoss):
    def forward(self, out_dict, targets, model_states=None, **kwargs):
        loss = torch.nn.functional.mse_loss(out_dict["logits"], targets["labels"])
        return loss, loss.detach()


def prepare(workload: Workload, params: Arrays, tasks: Arrays) -> Prepared:
    """Make `step` and `gradient` for a workload."""
    support_x, support_y, query_x, query_y = make_tensors(tasks)
    torch.set_default_dtype(support_x.dtype)  # that of its inner rate
    batch = (support_x, {"labels": support_y}, query_x, {"labels": query_y})

    def make(chunk_size: int) -> MAML | Reptile:
        model = _Model(make_module(workload, params))
        weights = model.get_fast_weights()
        inner = InnerSGD(
            weights, first_order=workload.learner != "maml", inner_lr=workload.learning_rate, learn_lr=False
        )
        return (Reptile if workload.learner == "reptile" else MAML)(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
            inner_optimizer=inner,
            support_loss_fn=_SquaredError() if workload.model == "mlp" else CrossEntropy(CategoricalAccuracy()),
            inner_steps=workload.steps,
            chunk_size=chunk_size,
            device=DEVICE,
        )

    chunk_size = fastest_chunk(lambda size: make(size).step(iter([batch])), workload.tasks)
    algorithm = make(chunk_size)

    def step() -> None:
        algorithm.step(iter([batch]))
        synchronize()

    def gradient() -> dict[str, np.ndarray]:
        trial = make(chunk_size)  # its step leaves the gradient in place
        trial.step(iter([batch]))
        return torch_models.dump({name: p.grad for name, p in trial.model.backbone.named_parameters()})

    return step, gradient
