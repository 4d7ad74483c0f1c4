"""Proto-MAML on Omniglot, 5-way 1-shot, in the shared setting of the family.

    metajax data prepare omniglot
    metajax train omniglot_family_proto_maml_5w1s

As `omniglot_family_maml_5w1s`, with the head started from prototypes. At 1 shot these fit the support
set already, so that its inner steps change nothing.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries a class, after 5 inner steps: 96.93 ± 0.29
% transductive, 95.70 ± 0.37 % each query alone; 3.0 minutes of training beside other work.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=ProtoMAML(),
    inner=Inner(learning_rate=1.0, steps=3, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
