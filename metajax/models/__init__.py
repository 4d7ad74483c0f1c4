"""Neural networks for few-shot learning, as Flax NNX modules.

`metajax.functional` converts a module into a pure function and its parameters.
"""

from metajax.kernels import max_pool
from metajax.models.conv4 import Conv4
from metajax.models.layers import BatchNorm, Conv, GroupNorm
from metajax.models.mlp import MLP
from metajax.models.resnet import ResNet12, ResNet18
from metajax.models.transformer import Transformer, ViT

__all__ = [
    "MLP",
    "BatchNorm",
    "Conv",
    "Conv4",
    "GroupNorm",
    "ResNet12",
    "ResNet18",
    "Transformer",
    "ViT",
    "max_pool",
]
