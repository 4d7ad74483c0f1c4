"""CAVIA on Omniglot, 5-way 1-shot, in the shared setting of the family.

    metajax data prepare omniglot
    metajax train omniglot_family_cavia_5w1s

As `omniglot_family_maml_5w1s`, adapting a context of 100 that shifts the offsets of normalisation. Below MAML
here: offsets alone, without the head and without scales, are a weak way to tell five new classes apart.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries a class, after 5 inner steps: 82.42 ± 0.80
% transductive, 79.69 ± 0.83 % each query alone; 2.3 minutes of training beside other work.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4(),
    learner=CAVIA(size=100, shifts=("norms",)),
    inner=Inner(learning_rate=10.0, steps=3),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
