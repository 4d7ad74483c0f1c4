"""CIFAR-FS, 64/16/20 classes of CIFAR-100: few-shot classification with any learner and model.

    metajax data prepare cifar100
    metajax train cifar_fs
    metajax train cifar_fs --learner anil --model resnet12

MAML's setting for mini-ImageNet, on images of 32×32 pixels. Training images are mirrored at random and shifted by up to
4 pixels. The outer learning rate follows a cosine over 10,000 meta-steps; the paper uses a constant rate and 60,000
meta-steps.

Not measured here: the data cannot be downloaded on the authors' machine.
"""

from metajax.experiment import *


def config(
    *,
    learner: Learner = "maml",
    model: ImageModel = "conv4",
    ways: int = 5,
    shots: int = 1,
    length: Length = "medium",
) -> Experiment:
    """Return the experiment.

    Args:
        learner: The meta-learner.
        model: The network.
        ways: Number of classes in a task.
        shots: Number of support examples of each class.
        length: Length of training: 1,000, 10,000 or 60,000 meta-steps.
    """
    sizes = Shots(shots=shots, queries=15)
    task = ImagesConfig(dataset="cifar100", split="cifar_fs", ways=ways, train=sizes, test=sizes)
    experiment = photographs(task, steps={"short": 1_000, "medium": 10_000, "long": 60_000}[length])
    return with_learner(with_model(experiment, model, image_size=32), learner)
