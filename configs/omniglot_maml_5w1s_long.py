"""MAML on Omniglot, 5-way 1-shot, for longer.

    metajax data prepare omniglot
    metajax train omniglot_maml_5w1s_long

As `omniglot_maml_5w1s`, but with 40,000 meta-steps, two thirds of the paper's 60,000.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 3 inner steps: 98.78 ± 0.16
% transductive, 97.87 ± 0.24 % non-transductive; 45.2 minutes of training while the machine also ran other work. On an
NVIDIA H100: 98.75 ± 0.17 % and 97.95 ± 0.24 %, 61 seconds of training, 115 seconds from the start of the command to its
report.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=2.0, steps=1, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=40_000, tasks_per_step=32, steps_per_call=100, checkpoint_every=2_000),
    evaluation=EvaluationSettings(steps=3),
)
