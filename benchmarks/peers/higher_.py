"""`higher` 0.2.1: its `innerloop_ctx` around PyTorch's SGD, in a Python loop over tasks.

It leaves what to differentiate to the caller. Without higher gradients its adapted parameters are cut off from the
initial ones, so the first-order gradient is taken with respect to the adapted ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import higher
import torch

from benchmarks.peers.torch_common import Arrays, Prepared, add_to_grad, loss_of, make_module, make_tensors, with_adam

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX


def prepare(workload: Workload, params: Arrays, tasks: Arrays) -> Prepared:
    """Make `step` and `gradient` for a workload; the graph of one task lives at a time."""
    module, loss = make_module(workload, params), loss_of(workload)
    data = list(zip(*make_tensors(tasks), strict=True))
    names = [name for name, _ in module.named_parameters()]
    inner = torch.optim.SGD(module.parameters(), lr=workload.learning_rate)
    second_order = workload.learner == "maml"

    def accumulate() -> None:
        for support_x, support_y, query_x, query_y in data:
            with higher.innerloop_ctx(module, inner, copy_initial_weights=False, track_higher_grads=second_order) as (
                fast,
                optimizer,
            ):
                for _ in range(workload.steps):
                    optimizer.step(loss(fast(support_x), support_y))
                if workload.learner == "reptile":
                    gradients = [p - q for p, q in zip(module.parameters(), fast.parameters(), strict=True)]
                    add_to_grad(module, dict(zip(names, gradients, strict=True)), 1 / len(data))
                    continue
                value = loss(fast(query_x), query_y) / len(data)
                if second_order:
                    value.backward()
                else:
                    gradients = torch.autograd.grad(value, list(fast.parameters()))
                    add_to_grad(module, dict(zip(names, gradients, strict=True)))

    return with_adam(module, accumulate)
