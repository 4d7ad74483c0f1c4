"""The oracle on sinusoid regression.

    metajax train sinusoid_oracle

A network that has the amplitude and the phase of the sinusoid among its inputs, so it need not adapt. Its error is a
lower bound for the learners. All other settings are as in `sinusoid_maml`.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 5 points, mean squared error without adaptation: 0.001
± 0.000; 0.3 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=SinusoidConfig(train=Shots(shots=10, queries=10), test=Shots(shots=5, queries=100), oracle=True),
    model=MLPConfig(hidden=(40, 40)),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.01, steps=0),
    outer=Outer(learning_rate=2e-3, schedule="cosine", clip_norm=10.0),
    training=TrainingSettings(steps=25_000, tasks_per_step=25, steps_per_call=500, checkpoint_every=2_500),
    validation=Validation(num_tasks=2_000),
    evaluation=EvaluationSettings(steps=0, non_transductive=False, checkpoint="last"),
)
