"""`torch.func`: the meta-gradient of one task as a function, mapped over chunks of tasks by `vmap`.

The chunk size is the fastest of 1, 4 and all tasks in a trial when the peer is prepared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call, grad, vmap

from benchmarks.peers.torch_common import (
    Arrays,
    Prepared,
    add_to_grad,
    fastest_chunk,
    loss_of,
    make_module,
    make_tensors,
    with_adam,
)

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX

Params = dict[str, torch.Tensor]


def prepare(workload: Workload, params: Arrays, tasks: Arrays) -> Prepared:
    """Make `step` and `gradient` for a workload."""
    module, data, error = make_module(workload, params), make_tensors(tasks), loss_of(workload)

    def loss(params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return error(functional_call(module, params, (x,)), y)

    def adapt(params: Params, x: torch.Tensor, y: torch.Tensor) -> Params:
        for _ in range(workload.steps):
            gradients = grad(loss)(params, x, y)
            if workload.learner != "maml":
                gradients = {k: g.detach() for k, g in gradients.items()}
            params = {k: p - workload.learning_rate * gradients[k] for k, p in params.items()}
        return params

    def meta_gradient(params: Params, support_x, support_y, query_x, query_y) -> Params:
        if workload.learner == "reptile":
            fast = adapt(params, support_x, support_y)
            return {k: p - fast[k] for k, p in params.items()}
        return grad(lambda p: loss(adapt(p, support_x, support_y), query_x, query_y))(params)

    def average(chunk_size: int) -> Params:
        initial = {k: p.detach() for k, p in module.named_parameters()}
        gradients = vmap(meta_gradient, in_dims=(None, 0, 0, 0, 0), chunk_size=chunk_size)(initial, *data)
        return {k: g.mean(0) for k, g in gradients.items()}

    chunk_size = fastest_chunk(average, workload.tasks)
    return with_adam(module, lambda: add_to_grad(module, average(chunk_size)))
