"""Reptile on Omniglot, 5-way 1-shot."""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(
        ways=5,
        train=Shots(shots=10, queries=1),
        test=Shots(shots=1, queries=1),
        rotations="train",
        invert=False,
    ),
    model=Conv4(),
    learner=Reptile(carry_optimizer=True),
    inner=Inner(learning_rate=1e-3, optimizer="adam", beta1=0.0, steps=5, batch_size=10),
    outer=Outer(learning_rate=1.0, optimizer="sgd", schedule="linear"),
    training=TrainingSettings(steps=20_000, tasks_per_step=5, steps_per_call=100, checkpoint_every=2_000),
    evaluation=EvaluationSettings(steps=50, batch_size=5),
)
