"""ANIL on Omniglot, 5-way 1-shot, in the setting that all `omniglot_family` configs share.

    metajax data prepare omniglot
    metajax train omniglot_family_anil_5w1s

As `omniglot_family_maml_5w1s`, but only the head adapts in the inner loop.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 5 inner steps: 94.91 ± 0.45
% transductive, 93.68 ± 0.52 % non-transductive; 1.4 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=ANILConfig(),
    inner=Inner(learning_rate=1.0, steps=3),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
