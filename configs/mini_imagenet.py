"""mini-ImageNet, 64/16/20 classes of photographs: few-shot classification with any learner and model.

    metajax train mini_imagenet --task.source FOLDER
    metajax train mini_imagenet --task.source FOLDER --learner protonet --shots 5
    metajax train mini_imagenet --task.source FOLDER --model resnet12 --augment

FOLDER, or a zip archive of it, has the structure `split/class/image`. With `--task.split-lists LISTS` it has the
structure `class/image`, and LISTS has the published files train.csv, val.csv and test.csv. A warning says if the
classes or numbers of images are not those of mini-ImageNet. Images are resized to 84×84 pixels.

Each learner has the settings of its paper, except that the outer rate of learners other than Reptile follows a cosine.
MAML: Glorot initial values, 4 tasks per meta-step, 15 queries per class, 5 inner steps in training and 10 at test at a
rate of 0.05 on the mean loss, which equals the paper's 0.01 on a loss summed over 5 classes. The offsets of the
normalisation layers do not adapt.

Not measured here: no run of this config has ended yet.
"""

from metajax.experiment import *


def config(
    *,
    learner: Learner = "maml",
    model: ImageModel = "conv4",
    ways: int = 5,
    shots: int = 1,
    augment: bool = False,
    length: Length = "long",
) -> Experiment:
    """Return the experiment.

    Args:
        learner: The meta-learner.
        model: The network; conv4 has 32 channels.
        ways: Number of classes in a task.
        shots: Number of support examples of each class.
        augment: Mirror training images at random and shift them by up to 8 pixels.
        length: Length of training: 1,000 meta-steps, 10,000, or the paper's 60,000 (Reptile: 100,000).
    """
    task = FolderConfig(
        ways=ways,
        train=Shots(shots=shots, queries=15),
        test=Shots(shots=shots, queries=15),
        flip=augment,
        shift=8 if augment else 0,
        standard="mini-ImageNet",
    )
    experiment = photographs(task, steps={"short": 1_000, "medium": 10_000, "long": 60_000}[length])
    inner = replace(experiment.inner, frozen=("norms",))
    experiment = replace(experiment, model=replace(experiment.model, init="glorot_uniform"), inner=inner)
    experiment = with_learner(with_model(experiment, model, image_size=84), learner)
    match learner:
        case "reptile":
            return reptile(experiment, shots, length)
        case "protonet" | "proto_maml":
            return prototypes(experiment, learner, shots)
        case "boil":  # the authors' inner rate for the body
            return replace(experiment, inner=replace(experiment.inner, learning_rate=0.5))
        case "maml_plus_plus":  # the authors' outer rate falls to 1e-5
            return replace(experiment, outer=replace(experiment.outer, final_fraction=0.01))
    return experiment


def reptile(experiment: Experiment, shots: int, length: Length) -> Experiment:
    """Return Reptile's experiment, with the sizes of tasks, minibatches and steps of its paper."""
    task = replace(experiment.task, train=Shots(shots=15, queries=1), test=Shots(shots=shots, queries=1))
    steps = {"short": 3_000, "medium": 20_000, "long": 100_000}[length]
    return replace(
        experiment,
        task=task,
        inner=replace(experiment.inner, steps=8, batch_size=10),
        training=replace(experiment.training, steps=steps, tasks_per_step=5),
        evaluation=replace(experiment.evaluation, steps=50, batch_size=min(5 if shots == 1 else 15, task.ways * shots)),
    )


def prototypes(experiment: Experiment, learner: Learner, shots: int) -> Experiment:
    """Return the experiment of a learner with prototypes, with PyTorch's initial values, which its authors use.

    Prototypical networks train with 30 ways at 1 shot and 20 ways at 5 shots.
    """
    if isinstance(experiment.model, Conv4Config):
        network = replace(experiment.model, init="uniform_fan_in", epsilon=1e-5, use_scale=True)
        experiment = replace(experiment, model=network)
    experiment = replace(experiment, inner=replace(experiment.inner, learning_rate=0.01))
    if learner == "proto_maml":
        return experiment
    train = replace(experiment.task.train, ways=30 if shots == 1 else 20)
    training = replace(experiment.training, steps=max(1, experiment.training.steps // 6), tasks_per_step=2)
    outer = replace(experiment.outer, clip_value=None)
    return replace(experiment, task=replace(experiment.task, train=train), training=training, outer=outer)
