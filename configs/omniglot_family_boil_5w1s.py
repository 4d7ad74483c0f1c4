"""BOIL on Omniglot, 5-way 1-shot, in the setting that all `omniglot_family` configs share.

    metajax data prepare omniglot
    metajax train omniglot_family_boil_5w1s

As `omniglot_family_maml_5w1s`, but all layers except the head adapt in the inner loop.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 5 inner steps: 95.09 ± 0.37
% transductive, 93.31 ± 0.47 % non-transductive; 5.0 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=BOILConfig(),
    inner=Inner(learning_rate=1.0, steps=3, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
