"""MAML on FC100, 5-way 5-shot.

    metajax data prepare cifar100
    metajax train fc100_maml_5w5s

MAML's mini-ImageNet setting on 32×32 pixels: 5 inner steps at rate 0.05 on the mean loss (0.01 on MAML's sum over 5
ways), 4 tasks of 15 queries a class, 10 steps at test; FC100's 60/20/20 classes, which share no superclass; mirrored
and moved by up to 4 pixels in training; a cosine outer rate over 10,000 meta-steps (the paper: constant, 60,000).

Not measured here: the data cannot be downloaded on the authors' machine.
"""

from metajax.experiment import *

config = Experiment(
    task=Images(dataset="cifar100", split="fc100", ways=5, train=Shots(shots=5), test=Shots(shots=5)),
    model=Conv4(channels=32, pool=True),
    learner=MAML(),
    inner=Inner(learning_rate=0.05, steps=5),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=10_000, tasks_per_step=4),
    evaluation=EvaluationSettings(steps=10),
)
