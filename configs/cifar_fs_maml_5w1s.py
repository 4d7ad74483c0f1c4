"""MAML on CIFAR-FS, 5-way 1-shot.

    metajax data prepare cifar100
    metajax train cifar_fs_maml_5w1s

MAML's mini-ImageNet setting on images of 32×32 pixels. 5 inner steps at rate 0.05 on the mean loss, which equals MAML's
rate of 0.01 on its sum over 5 classes. 4 tasks per meta-step with 15 queries per class, and 10 inner steps at test. The
classes are split 64/16/20, as CIFAR-FS publishes. Training images are mirrored at random and shifted by up to 4 pixels.
The outer learning rate follows a cosine over 10,000 meta-steps; the paper uses a constant rate and 60,000 meta-steps.

Not measured here: the data cannot be downloaded on the authors' machine.
"""

from metajax.experiment import *

config = Experiment(
    task=ImagesConfig(dataset="cifar100", split="cifar_fs", ways=5, train=Shots(shots=1, queries=15), test=Shots()),
    model=Conv4Config(channels=32, pool=True),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.05, steps=5),
    outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
    training=TrainingSettings(steps=10_000, tasks_per_step=4),
    evaluation=EvaluationSettings(steps=10),
)
