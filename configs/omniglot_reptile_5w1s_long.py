"""Reptile on Omniglot, 5-way 1-shot, for as long as the paper.

    metajax data prepare omniglot
    metajax train omniglot_reptile_5w1s_long

As `omniglot_reptile_5w1s`, but with the paper's 100,000 meta-steps.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 1 query per class, after 50 inner steps: 98.17 ± 0.48 %
transductive, 96.03 ± 0.68 % non-transductive; 53.3 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(
        ways=5,
        train=Shots(shots=10, queries=1),
        test=Shots(shots=1, queries=1),
        rotations="train",
        invert=False,
    ),
    model=Conv4Config(),
    learner=ReptileConfig(carry_optimizer=True),
    inner=Inner(learning_rate=1e-3, optimizer="adam", options={"b1": 0.0}, steps=5, batch_size=10),
    outer=Outer(learning_rate=1.0, optimizer="sgd", schedule="linear"),
    training=TrainingSettings(steps=100_000, tasks_per_step=5, steps_per_call=100, checkpoint_every=10_000),
    evaluation=EvaluationSettings(steps=50, batch_size=5),
)
