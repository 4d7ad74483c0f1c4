"""MAML on Omniglot, 5-way 1-shot.

    metajax data prepare omniglot
    metajax train omniglot_maml_5w1s

MAML's setting: 1 inner step at rate 0.4 on a loss summed over the 5 ways, which is 2.0 on the mean loss here; offsets
of the normalisation not adapted; 32 tasks; 64 filters of stride 2; ink inverted; random-character split 1,100/100/423.
Ours: a character turned by 90°, 180° or 270° is a class of its own, at test too (MAML's code turns each character of an
episode at random, so that no two of them are one character); 1 query a class; a cosine outer rate from 2e-3 over 7,000
meta-steps (the paper: constant 1e-3, 60,000).

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries a class, after 3 steps: 97.07 ± 0.28 %
transductive, 95.52 ± 0.38 % each query alone; 5.9 minutes of training, 7.6 with validation and evaluation.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=MAML(),
    inner=Inner(learning_rate=2.0, steps=1, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=7_000, tasks_per_step=32),
    evaluation=EvaluationSettings(steps=3),
)
