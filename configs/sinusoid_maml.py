"""MAML on sinusoid regression.

    metajax train sinusoid_maml

MAML's setting: 10 points for support and for query in training, 1 inner step at rate 0.01, 25 tasks, 70,000 meta-steps.
Ours: a cosine outer rate from 2e-3 with the meta-gradient clipped to norm 10, and the checkpoint with the best loss on
2,000 validation tasks. Training for one step makes the model so sharp that late in training about one task in a
thousand diverges after ten steps; such checkpoints validate badly.

Measured on two cores (one CPU device is used), seed 0, 600 test tasks of 5 points: @SCORE@.
"""

from metajax.experiment import *

config = Experiment(
    task=Sinusoid(train=Shots(shots=10, queries=10), test=Shots(shots=5, queries=100)),
    model=MLP(hidden=(40, 40)),
    learner=MAML(),
    inner=Inner(learning_rate=0.01, steps=1),
    outer=Outer(learning_rate=2e-3, schedule="cosine", clip_norm=10.0),
    training=TrainingSettings(steps=70_000, tasks_per_step=25, steps_per_call=500, checkpoint_every=2_500),
    validation=Validation(num_tasks=2_000),
    evaluation=EvaluationSettings(steps=10, non_transductive=False, checkpoint="best"),
)
