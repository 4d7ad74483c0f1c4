"""Plain PyTorch: a Python loop over tasks, `torch.autograd.grad` through a functional call of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from benchmarks.peers.torch_common import Arrays, Prepared, add_to_grad, loss_of, make_module, make_tensors, with_adam

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX


def prepare(workload: Workload, params: Arrays, tasks: Arrays) -> Prepared:
    """Make `step` and `gradient` for a workload; the graph of one task lives at a time."""
    module, loss = make_module(workload, params), loss_of(workload)
    data = list(zip(*make_tensors(tasks), strict=True))
    initial = dict(module.named_parameters())
    second_order = workload.learner == "maml"

    def adapt(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        fast = initial
        for _ in range(workload.steps):
            value = loss(functional_call(module, fast, (x,)), y)
            gradients = torch.autograd.grad(value, list(fast.values()), create_graph=second_order)
            fast = {k: p - workload.learning_rate * g for (k, p), g in zip(fast.items(), gradients, strict=True)}
        return fast

    def accumulate() -> None:
        for support_x, support_y, query_x, query_y in data:
            fast = adapt(support_x, support_y)
            if workload.learner == "reptile":
                add_to_grad(module, {k: p - fast[k] for k, p in initial.items()}, 1 / len(data))
            else:
                (loss(functional_call(module, fast, (query_x,)), query_y) / len(data)).backward()

    return with_adam(module, accumulate)
