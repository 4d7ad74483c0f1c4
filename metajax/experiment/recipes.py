"""Exchange the learner or the model of an experiment, with the settings that each of them needs.

The config files that come with metajax use these functions for their arguments `learner` and `model`.
"""

import dataclasses
from typing import Any, Literal

from metajax.errors import UserError
from metajax.experiment.settings import EvaluationSettings, Experiment, Inner, Outer, TrainingSettings
from metajax.learners.anil import ANILConfig, BOILConfig
from metajax.learners.cavia import CAVIAConfig
from metajax.learners.foml import FOMLConfig
from metajax.learners.imaml import IMAMLConfig
from metajax.learners.lora import LoRAConfig
from metajax.learners.maml import MAMLConfig
from metajax.learners.maml_plus_plus import MAMLPlusPlusConfig
from metajax.learners.meta_sgd import MetaSGDConfig, PreconditionedConfig
from metajax.learners.proto import ProtoMAMLConfig, PrototypicalNetworkConfig
from metajax.learners.reptile import ReptileConfig
from metajax.learners.scratch import ScratchConfig
from metajax.models.config import ModelConfig
from metajax.models.conv4 import Conv4Config
from metajax.models.mlp import MLPConfig
from metajax.models.resnet import ResNet12Config, ResNet18Config
from metajax.models.transformer import ViTConfig
from metajax.tasks.config import TaskConfig

Learner = Literal[
    "anil",
    "boil",
    "cavia",
    "foml",
    "fomaml",
    "imaml",
    "lora",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "preconditioned",
    "proto_maml",
    "protonet",
    "reptile",
    "scratch",
]
"""Names of learners on the command line."""

ImageModel = Literal["conv4", "mlp", "resnet12", "resnet18", "vit"]
"""Names of models for images on the command line."""

Length = Literal["short", "medium", "long"]
"""Lengths of training: minutes on two CPU cores, up to an hour, and the length of the paper or several hours."""


def with_learner(experiment: Experiment, learner: Learner) -> Experiment:
    """Return the experiment of MAML with another learner, and with the settings that this learner needs.

    The learning rates do not change, except that Reptile and training from scratch have the optimisers of their papers.

    Args:
        experiment: An experiment whose learner is MAML.
        learner: Name of the learner.
    """
    inner, evaluation, model = experiment.inner, experiment.evaluation, experiment.model
    every = dataclasses.replace(inner, frozen=())  # these learners choose themselves which parameters adapt
    zero = dataclasses.replace(evaluation, steps=0)
    match learner:
        case "maml":
            return experiment
        case "fomaml":
            return dataclasses.replace(experiment, inner=dataclasses.replace(inner, first_order=True))
        case "foml":
            return dataclasses.replace(experiment, learner=FOMLConfig())
        case "boil":
            return dataclasses.replace(experiment, learner=BOILConfig())
        case "meta_sgd":
            return dataclasses.replace(experiment, learner=MetaSGDConfig())
        case "preconditioned":
            return dataclasses.replace(experiment, learner=PreconditionedConfig())
        case "proto_maml":
            return dataclasses.replace(experiment, learner=ProtoMAMLConfig())
        case "anil":
            return dataclasses.replace(experiment, learner=ANILConfig(), inner=every)
        case "lora":
            return dataclasses.replace(experiment, learner=LoRAConfig(rank=4, adapts=("kernel",)), inner=every)
        case "maml_plus_plus":  # its authors anneal the multi-step loss over the first part of training
            annealed = MAMLPlusPlusConfig(
                per_step=inner.frozen or None, anneal_loss=max(1, experiment.training.steps * 2 // 3)
            )
            return dataclasses.replace(experiment, learner=annealed, inner=every)
        case "imaml":  # the authors' settings for Omniglot
            regularised = IMAMLConfig(strength=2.0, cg_steps=5, damping=22.0, pull_once=True)
            long = dataclasses.replace(every, steps=16)
            measured = dataclasses.replace(evaluation, steps=16)
            return dataclasses.replace(experiment, learner=regularised, inner=long, evaluation=measured)
        case "protonet":
            none = dataclasses.replace(every, steps=0)
            return dataclasses.replace(experiment, learner=PrototypicalNetworkConfig(), inner=none, evaluation=zero)
        case "cavia":  # the context modulates all normalisation layers (FiLM), or else all biases
            film = isinstance(model, Conv4Config | ResNet12Config | ResNet18Config)
            model = dataclasses.replace(model, use_scale=True) if isinstance(model, Conv4Config) else model
            context = CAVIAConfig(size=100, shifts=("norms",) if film else ("bias",))
            return dataclasses.replace(experiment, learner=context, inner=every, model=model)
        case "reptile":
            return _with_reptile(experiment)
        case "scratch":
            return dataclasses.replace(
                experiment,
                learner=ScratchConfig(),
                inner=Inner(learning_rate=0.01, steps=1, optimizer="adam"),
                training=TrainingSettings(steps=1, tasks_per_step=1),
                validation=dataclasses.replace(experiment.validation, num_tasks=0),
                evaluation=dataclasses.replace(evaluation, steps=100, checkpoint="last"),
            )


def _with_reptile(experiment: Experiment) -> Experiment:
    """Return the experiment with Reptile and the optimisers of its authors' code: Adam with β1 = 0 inside, SGD outside.

    Reptile has no query set in training. Training tasks therefore have 10 more shots, which minibatches share.
    """
    task: Any = experiment.task
    if not hasattr(task, "train"):
        raise UserError(f"reptile needs tasks of equal size, but {type(task).__name__} samples the size of each task")
    shots = dataclasses.replace(task.train, shots=task.train.shots + 10, queries=1)
    ways = getattr(task, "ways", 1)
    return dataclasses.replace(
        experiment,
        task=dataclasses.replace(task, train=shots),
        learner=ReptileConfig(carry_optimizer=True),
        inner=Inner(learning_rate=1e-3, optimizer="adam", options={"b1": 0.0}, steps=8, batch_size=2 * ways),
        outer=Outer(learning_rate=1.0, optimizer="sgd", schedule="linear"),
        training=dataclasses.replace(experiment.training, tasks_per_step=5),
        evaluation=dataclasses.replace(experiment.evaluation, steps=50, batch_size=ways * task.test.shots),
    )


def with_model(experiment: Experiment, model: ImageModel, *, image_size: int) -> Experiment:
    """Return the experiment with another model for images.

    The experiment does not change if it has a model of this kind already. Models without normalisation layers, which
    MAML would not adapt, adapt all parameters.

    Args:
        experiment: The experiment.
        model: Name of the model.
        image_size: Height and width of the images in pixels.
    """
    norm: Any = getattr(experiment.model, "norm", "batch")
    made: ModelConfig = {
        "conv4": Conv4Config(norm=norm, **({"channels": 32, "pool": True} if image_size > 28 else {})),
        "mlp": MLPConfig(hidden=(256, 128, 64, 64), normalise=norm == "batch"),
        "resnet12": ResNet12Config(norm=norm),
        "resnet18": ResNet18Config(norm=norm, stem="small" if image_size < 64 else "large"),
        "vit": ViTConfig(patch=max(1, image_size // 4), width=64, layers=3, heads=4),
    }[model]
    if type(made) is type(experiment.model):
        return experiment
    unnormalised = isinstance(made, ViTConfig) or (isinstance(made, MLPConfig) and not made.normalise)
    frozen = () if unnormalised else experiment.inner.frozen
    inner = dataclasses.replace(experiment.inner, frozen=frozen)
    outer = experiment.outer
    if isinstance(made, ViTConfig):  # a Transformer without warm-up diverges at the rates of convolutional networks
        rate = min(outer.learning_rate, 1e-3)
        outer = dataclasses.replace(outer, learning_rate=rate, clip_norm=outer.clip_norm or 10.0)
    return dataclasses.replace(experiment, model=made, inner=inner, outer=outer)


def photographs(task: TaskConfig, *, steps: int, evaluation_tasks: int = 600) -> Experiment:
    """Return MAML's experiment for photographs, with the settings of its paper for mini-ImageNet.

    Conv4 with 32 channels and max-pooling; 4 tasks per meta-step; 5 inner steps in training and 10 at test. The inner
    rate is 0.05 on the mean loss, which equals the authors' rate of 0.01 on the sum of the loss over 5 classes. The
    outer rate follows a cosine; the paper uses a constant rate.

    Args:
        task: The tasks.
        steps: Number of meta-steps. The paper has 60,000.
        evaluation_tasks: Number of test tasks.
    """
    return Experiment(
        task=task,
        model=Conv4Config(channels=32, pool=True),
        learner=MAMLConfig(),
        inner=Inner(learning_rate=0.05, steps=5),
        outer=Outer(learning_rate=1e-3, schedule="cosine", clip_value=10.0),
        training=TrainingSettings(steps=steps, tasks_per_step=4, steps_per_call=10, checkpoint_every=100),
        evaluation=EvaluationSettings(steps=10, num_tasks=evaluation_tasks),
    )
