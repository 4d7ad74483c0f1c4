"""Prototypical networks on Omniglot, 5-way 1-shot, trained on more ways and for longer.

    metajax data prepare omniglot
    metajax train omniglot_protonet_5w1s_long

Training uses 20-way tasks, because Snell et al. advise more ways in training than at test (they use 60). 4 tasks per
meta-step, 5 queries per class. The test uses 5-way tasks.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 0 inner steps: 99.34 ± 0.13
% transductive, 98.86 ± 0.20 % non-transductive; 29.9 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(ways=20, shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=PrototypicalNetworkConfig(),
    inner=Inner(learning_rate=0.1, steps=0),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=25_000, tasks_per_step=4, steps_per_call=100, checkpoint_every=2_500),
    evaluation=EvaluationSettings(steps=0),
)
