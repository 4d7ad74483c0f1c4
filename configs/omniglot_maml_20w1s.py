"""MAML on Omniglot, 20-way 1-shot.

    metajax data prepare omniglot
    metajax train omniglot_maml_20w1s

MAML's setting: 5 inner steps at rate 0.1 on a loss summed over the 20 ways, which is 2.0 on the mean loss here, in
training and at test; 16 tasks. All else as in `omniglot_maml_5w1s`, over 3,000 meta-steps (the paper: 60,000).

Measured on two cores (2 CPU devices, bfloat16), seed 0, 600 test tasks of 15 queries a class, after 5 inner steps:
86.91 ± 0.35 % transductive, 85.77 ± 0.37 % each query alone; 19.0 minutes of training beside other work.
At 60 tasks a second the paper's 60,000 meta-steps would take 4.4 hours on these cores.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=20, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=MAML(),
    inner=Inner(learning_rate=2.0, steps=5, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=3_000, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
