"""Measure how fast metajax trains: standard workloads, and functions that time workloads and devices."""

from metajax.profiling.measure import Timing, matrix_flops, matrix_rate, peak_bytes, time_calls
from metajax.profiling.standard import Standard, meta_gradient, standard, task_flops, training_call, training_calls
from metajax.profiling.workloads import WORKLOADS, Workload, choose, make_tasks

__all__ = [
    "WORKLOADS",
    "Standard",
    "Timing",
    "Workload",
    "choose",
    "make_tasks",
    "matrix_flops",
    "matrix_rate",
    "meta_gradient",
    "peak_bytes",
    "standard",
    "task_flops",
    "time_calls",
    "training_call",
    "training_calls",
]
