"""MAML on Omniglot, 5-way 1-shot.

    metajax data prepare omniglot
    metajax train omniglot_maml_5w1s

From MAML's paper and code: 1 inner step at rate 0.4 on a loss summed over the 5 ways, which equals a rate of 2.0 on the
mean loss of this config. The offsets of the normalisation layers do not adapt. 32 tasks per meta-step. Convolutions
with 64 filters and stride 2. Inverted ink. A random split of the characters: 1,100/100/423.

Different from MAML: a character rotated by 90°, 180° or 270° is a class of its own, in training and at test. MAML's
code rotates each character of an episode at random, so no two classes of an episode are the same character. 1 query per
class. The outer learning rate falls from 2e-3 as a cosine over 7,000 meta-steps; the paper uses a constant 1e-3 and
60,000 meta-steps.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 3 steps: 97.07 ± 0.28 %
transductive, 95.52 ± 0.38 % non-transductive; 5.9 minutes of training, 7.6 minutes with validation and evaluation.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=15)),
    model=Conv4Config(),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=2.0, steps=1, frozen=("norms",)),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=7_000, tasks_per_step=32),
    evaluation=EvaluationSettings(steps=3),
)
