"""A folder of your own images: few-shot classification with any learner and model.

    metajax train folder --task.source FOLDER
    metajax train folder --task.source FOLDER --learner protonet --shots 5

The folder, or a zip archive of it, has the structure `split/class/image` or `class/image`. The setting is MAML's for
mini-ImageNet, with 1,000 meta-steps (300 with several shots) instead of 60,000. Prototypical networks are the baseline
without inner steps.

Measured with `--task.size 64` on 128/32/40 classes of 60 natural images of 64×64 pixels (Tiny ImageNet's), on two cores
(2 CPU devices), seed 0, 200 test tasks of 15 queries per class, while the machine also ran other work:

    command                         transductive    non-transductive           training
    folder                        33.12 ± 1.20 %      32.37 ± 1.13 %        7.6 minutes
    --shots 5                     40.78 ± 1.12 %      40.51 ± 1.09 %       10.2 minutes
    --learner protonet            28.15 ± 0.99 %      27.59 ± 0.92 %        3.5 minutes
    --learner protonet --shots 5  40.17 ± 1.11 %      39.83 ± 1.15 %        5.8 minutes
"""

from metajax.experiment import *


def config(
    *,
    learner: Learner = "maml",
    model: ImageModel = "conv4",
    ways: int = 5,
    shots: int = 1,
    length: Length = "short",
) -> Experiment:
    """Return the experiment.

    Args:
        learner: The meta-learner.
        model: The network.
        ways: Number of classes in a task.
        shots: Number of support examples of each class.
        length: Length of training: 1,000 meta-steps (300 with several shots), 10,000, or the paper's 60,000.
    """
    task = FolderConfig(ways=ways, train=Shots(shots=shots, queries=15), test=Shots(shots=shots, queries=15), size=84)
    steps = {"short": 1_000 if shots == 1 else 300, "medium": 10_000, "long": 60_000}[length]
    experiment = photographs(task, steps=steps, evaluation_tasks=200 if length == "short" else 600)
    experiment = with_learner(with_model(experiment, model, image_size=84), learner)
    if learner in ("proto_maml", "protonet"):  # prototypes are a good start: small steps
        experiment = replace(experiment, inner=replace(experiment.inner, learning_rate=0.01))
    return experiment
