"""MAML on Omniglot, 5-way 5-shot, for longer.

    metajax data prepare omniglot
    metajax train omniglot_maml_5w5s_long

As `omniglot_maml_5w1s_long`, but with the paper's 5 shots and 5 queries per class, and 25,000 meta-steps of 16 tasks.
These are a fifth of the paper's tasks.

Measured on two cores (2 CPU devices, bfloat16), seed 0, 600 test tasks of 15 queries per class, after 3 inner steps:
99.60 ± 0.09 % transductive, 99.55 ± 0.09 % non-transductive; 47.5 minutes of training while the machine also ran other
work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=5, queries=5), test=Shots(shots=5, queries=15)),
    model=Conv4Config(),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=2.0, steps=1, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=25_000, tasks_per_step=16, steps_per_call=100, checkpoint_every=2_000),
    evaluation=EvaluationSettings(steps=3),
)
