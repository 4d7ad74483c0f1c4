"""Convolutions and matrix products for batches of tasks, on CPU and accelerators.

`plan` chooses the algorithm of each operation; there is one file for each algorithm.
"""

from metajax.kernels.conv import conv
from metajax.kernels.conv_pool_norm import conv_pool_norm
from metajax.kernels.dense import dense
from metajax.kernels.max_pool import max_pool
from metajax.kernels.plan import Plan, plan

__all__ = ["Plan", "conv", "conv_pool_norm", "dense", "max_pool", "plan"]
