"""CAVIA on sinusoid regression.

    metajax train sinusoid_cavia

CAVIA's setting: a context vector of 5 values is appended to the inputs of the first layer, so it shifts the bias of
this layer. 1 inner step at rate 1. All other settings are as in `sinusoid_maml`.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 5 points, mean squared error after 1 / 5 / 10 inner
steps: 0.330 ± 0.040 / 0.074 ± 0.023 / 0.060 ± 0.020; 0.5 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=SinusoidConfig(train=Shots(shots=10, queries=10), test=Shots(shots=5, queries=100)),
    model=MLPConfig(hidden=(40, 40)),
    learner=CAVIAConfig(size=5, shifts=("layers/0/bias",)),
    inner=Inner(learning_rate=1.0, steps=1),
    outer=Outer(learning_rate=2e-3, schedule="cosine", clip_norm=10.0),
    training=TrainingSettings(steps=25_000, tasks_per_step=25, steps_per_call=500, checkpoint_every=2_500),
    validation=Validation(num_tasks=2_000),
    evaluation=EvaluationSettings(steps=10, non_transductive=False, checkpoint="best"),
)
