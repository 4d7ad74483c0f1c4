"""Joint pretraining, then fine-tuning, on sinusoid regression.

    metajax train sinusoid_pretrained

The baseline of MAML's paper: one network is trained on the points of all tasks together, and fine-tuned on each test
task at rate 0.01. All other settings are as in `sinusoid_maml`.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 5 points, mean squared error after 1 / 5 / 10 inner
steps: 2.452 ± 0.195 / 2.149 ± 0.179 / 2.202 ± 0.203; 0.2 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=SinusoidConfig(train=Shots(shots=10, queries=10), test=Shots(shots=5, queries=100)),
    model=MLPConfig(hidden=(40, 40)),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.01, steps=0),
    outer=Outer(learning_rate=2e-3, schedule="cosine", clip_norm=10.0),
    training=TrainingSettings(steps=25_000, tasks_per_step=25, steps_per_call=500, checkpoint_every=2_500),
    validation=Validation(num_tasks=2_000),
    evaluation=EvaluationSettings(steps=10, non_transductive=False, checkpoint="last"),
)
