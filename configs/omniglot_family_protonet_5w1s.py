"""Prototypical networks on Omniglot, 5-way 1-shot, in the setting that all `omniglot_family` configs share.

    metajax data prepare omniglot
    metajax train omniglot_family_protonet_5w1s

As `omniglot_family_maml_5w1s`, but without inner steps: the baseline.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 0 inner steps: 97.04 ± 0.29
% transductive, 95.84 ± 0.37 % non-transductive; 1.2 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=PrototypicalNetworkConfig(),
    inner=Inner(learning_rate=0.1, steps=0),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=0),
)
