"""CAVIA on Omniglot, 5-way 1-shot, in the setting that all `omniglot_family` configs share.

    metajax data prepare omniglot
    metajax train omniglot_family_cavia_5w1s

As `omniglot_family_maml_5w1s`, but only a context vector of 100 values adapts, at the authors' rate of 1. The context
sets the scales and offsets of all four normalisation layers by an affine map (FiLM). The authors' code for
mini-ImageNet has FiLM only after the third convolution, and 2 inner steps. With the authors' setting the accuracy on
100 validation tasks was 83.0 %, against 86.0 % with this config. CAVIA is below MAML here, because the context
modulates features only and the head does not adapt.

Measured on two cores (2 CPU devices), seed 0, 600 test tasks of 15 queries per class, after 5 inner steps: 86.03 ± 0.76
% transductive, 83.93 ± 0.82 % non-transductive; 16.4 minutes of training while the machine also ran other work.
"""

from metajax.experiment import *

config = Experiment(
    task=OmniglotConfig(ways=5, train=Shots(shots=1, queries=5), test=Shots(shots=1, queries=15)),
    model=Conv4Config(use_scale=True),
    learner=CAVIAConfig(size=100, shifts=("norms",)),
    inner=Inner(learning_rate=1.0, steps=3),
    outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
    training=TrainingSettings(steps=1_500, tasks_per_step=16, checkpoint_every=500),
    evaluation=EvaluationSettings(steps=5),
)
