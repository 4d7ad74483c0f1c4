"""Training from scratch on sinusoid regression.

    metajax train sinusoid_scratch

The baseline without meta-learning. The model of `sinusoid_maml` keeps its random initial values. On each test task it
is trained on the five support points, by 100 steps of Adam at rate 0.01.

Measured on two cores (one CPU device is used), seed 0, 600 test tasks of 5 points, mean squared error after 1 / 5 / 10
/ 100 inner steps: 3.940 ± 0.277 / 5.092 ± 0.350 / 7.201 ± 0.627 / 8.942 ± 1.464; 0.1 minutes of training.
"""

from metajax.experiment import *

config = Experiment(
    task=SinusoidConfig(train=Shots(shots=10, queries=10), test=Shots(shots=5, queries=100)),
    model=MLPConfig(hidden=(40, 40)),
    learner=ScratchConfig(),
    inner=Inner(learning_rate=0.01, steps=1, optimizer="adam"),
    outer=Outer(learning_rate=1e-3),
    training=TrainingSettings(steps=1, tasks_per_step=1),
    validation=Validation(num_tasks=0),
    evaluation=EvaluationSettings(steps=100, non_transductive=False),
)
