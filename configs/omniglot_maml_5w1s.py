"""MAML on Omniglot, 5-way 1-shot."""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=MAML(),
    inner=Inner(learning_rate=2.0, steps=1, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=10_000, tasks_per_step=32),
    evaluation=EvaluationSettings(steps=3),
)
