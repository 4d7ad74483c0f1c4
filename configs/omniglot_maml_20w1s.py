"""MAML on Omniglot, 20-way 1-shot.

    metajax data prepare omniglot
    metajax train omniglot_maml_20w1s

MAML's setting: 16 tasks per meta-step, and 5 inner steps at rate 0.1 on a loss summed over the 20 ways, in training and
at test. That equals a rate of 2.0 on the mean loss of this config. All other settings are as in `omniglot_maml_5w1s`.
Training has 3,000 meta-steps; the paper's has 60,000.

Measured on two cores (2 CPU devices, bfloat16), seed 0, 600 test tasks of 15 queries per class, after 5 inner steps:
86.91 ± 0.35 % transductive, 85.77 ± 0.37 % non-transductive; 19.0 minutes of training while the machine also ran other
work. At 60 tasks per second, the paper's 60,000 meta-steps would take 4.4 hours on these cores.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=20, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=2.0, steps=5, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=3_000, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
