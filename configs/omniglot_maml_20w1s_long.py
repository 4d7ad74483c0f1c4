"""MAML on Omniglot, 20-way 1-shot, for longer.

    metajax data prepare omniglot
    metajax train omniglot_maml_20w1s_long

As `omniglot_maml_20w1s`, over 40,000 meta-steps: two thirds of the paper's 60,000.

Not measured here: it takes hours on two cores. An NVIDIA H100 does 2,800 such tasks a second in the benchmark, so about
4 minutes of training.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=20, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=MAML(),
    inner=Inner(learning_rate=2.0, steps=5, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=40_000, tasks_per_step=16, steps_per_call=100, checkpoint_every=5_000),
    evaluation=EvaluationSettings(steps=5),
)
