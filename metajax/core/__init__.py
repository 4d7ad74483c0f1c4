"""The mathematics of meta-learning on one task, and averages over tasks."""
