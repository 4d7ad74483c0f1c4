"""What the PyTorch peers share: tensors of a workload, Adam around a meta-gradient, the choice of a chunk size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers import torch_models

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as convolutions have it there without asking

Arrays = Mapping[str, np.ndarray]
Prepared = tuple[Callable[[], None], Callable[[], dict[str, np.ndarray]]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_module(workload: Workload, params: Arrays) -> nn.Module:
    """The workload's model with the values of `params`."""
    module = torch_models.build(workload)
    torch_models.load(module, params)
    return module.to(DEVICE)


def make_tensors(tasks: Arrays) -> list[torch.Tensor]:
    """Inputs and targets of the support sets, then of the query sets, tasks first; images channels first."""
    tensors = [torch.tensor(tasks[name]) for name in ("support_x", "support_y", "query_x", "query_y")]
    return [(t.permute(0, 1, 4, 2, 3) if t.ndim == 5 else t).contiguous().to(DEVICE) for t in tensors]


def loss_of(workload: Workload) -> Loss:
    """Mean squared error for the MLP, mean cross-entropy for the others, of outputs and targets."""
    return F.mse_loss if workload.model == "mlp" else F.cross_entropy


def add_to_grad(module: nn.Module, gradients: Mapping[str, torch.Tensor], weight: float = 1.0) -> None:
    """Add weighted gradients, by name, to those that the parameters hold."""
    for name, parameter in module.named_parameters():
        gradient = weight * gradients[name].detach()
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def with_adam(module: nn.Module, accumulate: Callable[[], None]) -> Prepared:
    """A peer from `accumulate`, which adds the averaged meta-gradient to `.grad` of the module's parameters."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        accumulate()
        optimizer.step()
        synchronize()

    def gradient() -> dict[str, np.ndarray]:
        optimizer.zero_grad()
        accumulate()
        return torch_models.dump({name: p.grad for name, p in module.named_parameters()})

    return step, gradient


def fastest_chunk(run: Callable[[int], None], tasks: int) -> int:
    """The chunk size of tasks, of 1, 4 and all, with which the second call of `run` takes the least time."""
    sizes = sorted({1, min(4, tasks), tasks})
    return min(sizes, key=lambda size: _second_time(run, size)) if len(sizes) > 1 else tasks


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _second_time(run: Callable[[int], None], size: int) -> float:
    start = 0.0
    for _ in range(2):
        synchronize()
        start = time.perf_counter()
        run(size)
        synchronize()
    return time.perf_counter() - start
