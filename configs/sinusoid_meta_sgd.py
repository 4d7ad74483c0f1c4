"""Meta-SGD on sinusoid regression.

    metajax train sinusoid_meta_sgd

As `sinusoid_maml`, but with a meta-learned inner rate for every parameter, initially 0.01, and with 5 inner steps in
training. If the rates are learned for one inner step only, one task in a few hundred diverges within ten steps.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 5 points, mean squared error after 1 / 5 / 10 inner
steps: 0.505 ± 0.058 / 0.033 ± 0.007 / 0.021 ± 0.004; 2.9 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=SinusoidConfig(train=Shots(shots=10, queries=10), test=Shots(shots=5, queries=100)),
    model=MLPConfig(hidden=(40, 40)),
    learner=MetaSGDConfig(),
    inner=Inner(learning_rate=0.01, steps=5),
    outer=Outer(learning_rate=2e-3, schedule="cosine", clip_norm=10.0),
    training=TrainingSettings(steps=25_000, tasks_per_step=25, steps_per_call=500, checkpoint_every=2_500),
    validation=Validation(num_tasks=2_000),
    evaluation=EvaluationSettings(steps=10, non_transductive=False, checkpoint="best"),
)
