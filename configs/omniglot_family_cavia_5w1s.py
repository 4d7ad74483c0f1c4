"""CAVIA on Omniglot, 5-way 1-shot, in the shared setting of the family.

    metajax data prepare omniglot
    metajax train omniglot_family_cavia_5w1s

As `omniglot_family_maml_5w1s`, adapting a context of 100 at the authors' rate of 1. The scales and offsets of all four
normalisations are affine in the context (FiLM). The authors' code for mini-ImageNet has that after the third
convolution only, and 2 inner steps; so set, the accuracy on 100 validation tasks was 83.0 %, against 86.0 % of this
config. Below MAML here: the context modulates features, and the head does not adapt.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries a class, after 5 inner steps: 86.03 ± 0.76
% transductive, 83.93 ± 0.82 % each query alone; 16.4 minutes of training on a machine that was busy with other work.
"""

from metajax.experiment import *

config = Experiment(
    task=Omniglot(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4(use_scale=True),
    learner=CAVIA(size=100, shifts=("norms",)),
    inner=Inner(learning_rate=1.0, steps=3),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
