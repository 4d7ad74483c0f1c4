"""Omniglot, handwritten characters: few-shot classification with any learner and model.

    metajax data prepare omniglot
    metajax train omniglot                                  # MAML, 5-way 1-shot
    metajax train omniglot --ways 20 --length long
    metajax train omniglot --learner anil --length short    # the setting in which all learners are compared
    metajax train omniglot --learner lora --model vit --length short

MAML and first-order MAML have the setting of MAML's paper: 1 inner step (5 with 20 ways) at a rate of 2.0 on the mean
loss, which equals the paper's rate of 0.4 (20 ways: 0.1) on a loss summed over the ways; 1 query for each shot.
Different from MAML: a character rotated by 90°, 180° or 270° is a class of its own, and the outer rate falls from 2e-3
as a cosine over fewer meta-steps (the paper: constant 1e-3, 60,000 meta-steps). Reptile has the setting of its paper.
In the short setting all other learners, MAML and first-order MAML have 1,500 meta-steps of 16 tasks with 5 queries per
class, and 3 inner steps at a rate of 1; their longer settings differ in the number of meta-steps.

Accuracy on 600 test tasks of 15 queries per class (Reptile: 1), transductive and non-transductive, on two cores (2 CPU
devices), seed 0:

    command                            transductive    non-transductive           training
    omniglot                         97.07 ± 0.28 %      95.52 ± 0.38 %        5.9 minutes
    --length long                    98.78 ± 0.16 %      97.87 ± 0.24 %       45.2 minutes
    --shots 5 --length long          99.60 ± 0.09 %      99.55 ± 0.09 %       47.5 minutes
    --learner fomaml --length long   98.25 ± 0.20 %      96.91 ± 0.32 %       13.2 minutes
    --learner reptile --length long  98.17 ± 0.48 %      96.03 ± 0.68 %       53.3 minutes
    --learner protonet --length long 99.34 ± 0.13 %      98.86 ± 0.20 %       29.9 minutes
    --ways 20 --length long          93.43 ± 0.24 %      90.36 ± 0.32 %        5.2 minutes on an NVIDIA H100
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
        length: Length of training.
    """
    if learner == "reptile":
        return with_model(reptile(ways, shots, length), model, image_size=28)
    # First-order MAML trains for long in the shared setting: it needs more than one inner step.
    paper = length != "short" and learner in ("maml", "fomaml") and (learner, length) != ("fomaml", "long")
    experiment = paper_setting(ways, shots, length) if paper else shared_setting(ways, shots, length)
    experiment = with_learner(with_model(experiment, model, image_size=28), learner)
    if learner == "protonet" and length != "short":  # these networks learn better if training tasks have more ways
        train = replace(experiment.task.train, ways=4 * ways)
        steps = {"medium": 6_000, "long": 25_000}[length]
        training = replace(experiment.training, steps=steps, tasks_per_step=4)
        experiment = replace(experiment, task=replace(experiment.task, train=train), training=training)
    rates = {"imaml": 0.1, "lora": 0.3, "protonet": 0.1}
    if learner in rates:
        experiment = replace(experiment, inner=replace(experiment.inner, learning_rate=rates[learner]))
    return experiment


def paper_setting(ways: int, shots: int, length: Length) -> Experiment:
    """Return MAML's experiment with the inner loop and the numbers of tasks and queries of its paper."""
    small = ways * shots <= 5
    experiment = shared_setting(ways, shots, length)
    steps = {"medium": 7_000 if small else 3_000, "long": 40_000 if shots == 1 else 25_000}[length]
    return replace(
        experiment,
        task=replace(experiment.task, train=Shots(shots=shots, queries=shots)),
        inner=replace(experiment.inner, learning_rate=2.0, steps=5 if ways >= 20 else 1),
        training=replace(experiment.training, steps=steps, tasks_per_step=32 if small else 16),
        evaluation=EvaluationSettings(steps=5 if ways >= 20 else 3),
    )


def shared_setting(ways: int, shots: int, length: Length) -> Experiment:
    """Return MAML's experiment in the setting in which all learners are compared."""
    return Experiment(
        task=OmniglotConfig(ways=ways, train=Shots(shots=shots, queries=5), test=Shots(shots=shots, queries=15)),
        model=Conv4Config(),
        learner=MAMLConfig(),
        inner=Inner(learning_rate=1.0, steps=3, frozen=("norms",)),
        outer=Outer(learning_rate=2e-3, schedule="cosine", final_fraction=0.01),
        training=TrainingSettings(
            steps={"short": 1_500, "medium": 6_000, "long": 18_000}[length],
            tasks_per_step=16,
            steps_per_call=100 if length == "long" else 25,
            checkpoint_every={"short": 500, "medium": 1_000, "long": 2_000}[length],
        ),
        evaluation=EvaluationSettings(steps=5),
    )


def reptile(ways: int, shots: int, length: Length) -> Experiment:
    """Return Reptile's experiment, from its paper and code.

    Training tasks have 9 more shots, which minibatches share. The state of the inner optimiser is kept from task to
    task and used in evaluation. Rotated characters are classes in training only, and ink is not inverted.
    """
    return Experiment(
        task=OmniglotConfig(
            ways=ways,
            train=Shots(shots=shots + 9, queries=1),
            test=Shots(shots=shots, queries=1),
            rotations="train",
            invert=False,
        ),
        model=Conv4Config(),
        learner=ReptileConfig(carry_optimizer=True),
        inner=Inner(
            learning_rate=1e-3 if ways < 20 else 5e-4,
            optimizer="adam",
            options={"b1": 0.0},
            steps=5 if ways < 20 else 10,
            batch_size=10 if ways < 20 else 20,
        ),
        outer=Outer(learning_rate=1.0, optimizer="sgd", schedule="linear"),
        training=TrainingSettings(
            steps={"short": 3_000, "medium": 12_000, "long": 100_000 if ways < 20 else 200_000}[length],
            tasks_per_step=5,
            steps_per_call=100,
            checkpoint_every=10_000 if length == "long" else 2_000,
        ),
        evaluation=EvaluationSettings(steps=50, batch_size=min(5 if ways < 20 else 10, ways * shots)),
    )
