"""Proto-MAML on Omniglot, 5-way 1-shot, in the setting that all `omniglot_family` configs share.

    metajax data prepare omniglot
    metajax train omniglot_family_proto_maml_5w1s

As `omniglot_family_maml_5w1s`, but the head is initialised from the class prototypes. With 1 shot the prototypes
already fit the support set, so the inner steps change nothing.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 5 inner steps: 96.93 ± 0.29
% transductive, 95.70 ± 0.37 % non-transductive; 3.0 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=ProtoMAMLConfig(),
    inner=Inner(learning_rate=1.0, steps=3, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
