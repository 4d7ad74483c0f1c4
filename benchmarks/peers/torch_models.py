"""The models of the workloads in PyTorch, to the same numbers as metajax's, channels first."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from metajax.profiling.workloads import Workload  # at run time it would import JAX


def build(workload: Workload) -> nn.Module:
    """Make the model of a workload, with values of PyTorch's own."""
    if workload.model == "mlp":
        return MLP()
    if workload.model == "resnet12":
        return ResNet12(workload.ways, workload.channels)
    return Conv4(workload)


def load(module: nn.Module, params: Mapping[str, np.ndarray]) -> None:
    """Give a module copies of `params`, by our names (`convs/0/kernel`) and in our layouts, and their dtype."""
    values = {}
    for path, array in params.items():
        value = torch.tensor(array)
        value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value
        values[path.replace("/", ".").replace("kernel", "weight")] = value.contiguous()
    module.load_state_dict(values, assign=True)


def dump(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Turn tensors by a module's names and layouts (its parameters, their gradients) into arrays by ours."""
    arrays = {}
    for name, value in tensors.items():
        value = value.detach().cpu()
        value = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T if value.ndim == 2 else value
        arrays[name.replace(".", "/").replace("weight", "kernel")] = value.numpy().copy()
    return arrays


class MLP(nn.Module):
    """MAML's sinusoid model."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 40), nn.Linear(40, 40)])
        self.head = nn.Linear(40, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[examples, 1]` to `[examples, 1]`."""
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


class BatchNorm(nn.Module):
    """Normalise by the statistics of the batch at hand, always; no buffers, which `vmap` could not write."""

    fused = True
    """Whether a scale is left to PyTorch's kernel, or applied after it."""

    def __init__(self, features: int, use_scale: bool):
        super().__init__()
        self.register_parameter("scale", nn.Parameter(torch.ones(features)) if use_scale else None)
        self.offset = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[examples, channels, height, width]` to the same shape."""
        normalise = functools.partial(F.batch_norm, x, None, None, training=True, eps=1e-3)
        if self.scale is None:  # ones, as without any scale PyTorch 2.13 fails at the second derivative
            return normalise(x.new_ones(x.shape[1]), self.offset)
        if self.fused:
            return normalise(self.scale, self.offset)
        return normalise() * self.scale[:, None, None] + self.offset[:, None, None]


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Conv4(nn.Module):
    """Four convolutions, in the Omniglot form (`conv4`) or the mini-ImageNet form (`conv4_pool`)."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.pool = workload.model == "conv4_pool"
        channels, stride = (32, 1) if self.pool else (64, 2)
        widths = [workload.channels] + [channels] * 4
        self.convs = nn.ModuleList([_conv(a, b, stride=stride) for a, b in itertools.pairwise(widths)])
        self.norms = nn.ModuleList([BatchNorm(channels, use_scale=False) for _ in range(4)])
        self.head = nn.Linear(channels * (workload.side // 16) ** 2 if self.pool else channels, workload.ways)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[examples, channels, height, width]` to `[examples, ways]`."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
            if self.pool:
                x = F.max_pool2d(x, 2)
        # flattened channels last, so that the weights of the head mean the same
        return self.head(x.permute(0, 2, 3, 1).flatten(1) if self.pool else x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.convs = nn.ModuleList([_conv(inputs if i == 0 else outputs, outputs) for i in range(3)])
        self.norms = nn.ModuleList([BatchNorm(outputs, use_scale=True) for _ in range(3)])
        self.shortcut = _conv(inputs, outputs, size=1)
        self.shortcut_norm = BatchNorm(outputs, use_scale=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            out = F.leaky_relu(out, 0.1) if i < 2 else out
        return F.max_pool2d(F.leaky_relu(out + self.shortcut_norm(self.shortcut(x)), 0.1), 2)


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions; images of at least 16×16 pixels."""

    def __init__(self, outputs: int, inputs: int):
        super().__init__()
        self.blocks = nn.ModuleList([_Block(a, b) for a, b in itertools.pairwise([inputs, 64, 160, 320, 640])])
        self.head = nn.Linear(640, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[examples, channels, height, width]` to `[examples, ways]`."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))
