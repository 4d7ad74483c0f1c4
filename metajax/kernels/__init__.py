"""Convolutions and matrix products for batches of tasks, on CPU and accelerators."""
