"""Reptile on Omniglot, 5-way 1-shot.

    metajax data prepare omniglot
    metajax train omniglot_reptile_5w1s

From Reptile's paper and code: 5 tasks per meta-step with 10 training shots, and 5 inner steps of Adam (β₁ = 0, rate
1e-3) on minibatches of 10 examples. The outer step size falls linearly from 1 to 0. The state of the inner optimiser is
kept from task to task and used in evaluation; metajax averages it over the tasks of a meta-step. At test: 50 inner
steps on minibatches of 5 examples, and one query per class. Rotated characters are classes in training only. Ink is not
inverted. A random split of the characters.

Different from Reptile: 12,000 meta-steps; the paper uses 100,000.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks, after 50 steps: 91.20 ± 1.11 % transductive, 87.17 ± 1.21
% non-transductive; 15.9 minutes of training, 18.2 minutes with validation and evaluation.
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
    training=TrainingSettings(steps=12_000, tasks_per_step=5, steps_per_call=100, checkpoint_every=2_000),
    evaluation=EvaluationSettings(steps=50, batch_size=5),
)
