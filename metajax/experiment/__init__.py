"""Typed settings of experiments. A config file defines the settings, and the command line may override them."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from metajax.errors import UserError, needs

with needs("cli"):
    from metajax.experiment.build import Parts, build
    from metajax.experiment.domains import Domains, Source
    from metajax.experiment.models import MLP, Conv4, ModelSpec, ResNet12, ResNet18, ViT
    from metajax.experiment.recipes import ImageModel, Learner, Length, photographs, with_learner, with_model
    from metajax.experiment.settings import (
        EvaluationSettings,
        Execution,
        Experiment,
        Inner,
        LearnerSpec,
        Outer,
        TrainingSettings,
        Validation,
    )
    from metajax.experiment.tasks import (
        FashionMNIST,
        Folder,
        Glyphs,
        Images,
        Omniglot,
        Shots,
        Sinusoid,
        Tasks,
        TaskSpec,
    )
    from metajax.learners.anil import ANIL, BOIL
    from metajax.learners.cavia import CAVIA
    from metajax.learners.foml import FOML
    from metajax.learners.imaml import IMAML
    from metajax.learners.lora import LoRA
    from metajax.learners.maml import MAML
    from metajax.learners.maml_plus_plus import MAMLPlusPlus
    from metajax.learners.meta_sgd import MetaSGD, Preconditioned
    from metajax.learners.proto import ProtoMAML, PrototypicalNetwork
    from metajax.learners.reptile import Reptile
    from metajax.learners.scratch import Scratch

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "FOML",
    "IMAML",
    "MAML",
    "MLP",
    "Conv4",
    "Domains",
    "EvaluationSettings",
    "Execution",
    "Experiment",
    "FashionMNIST",
    "Folder",
    "Glyphs",
    "ImageModel",
    "Images",
    "Inner",
    "Learner",
    "LearnerSpec",
    "Length",
    "Literal",
    "LoRA",
    "MAMLPlusPlus",
    "MetaSGD",
    "ModelSpec",
    "Omniglot",
    "Outer",
    "Parts",
    "Path",
    "Preconditioned",
    "ProtoMAML",
    "PrototypicalNetwork",
    "Reptile",
    "ResNet12",
    "ResNet18",
    "Scratch",
    "Shots",
    "Sinusoid",
    "Source",
    "TaskSpec",
    "Tasks",
    "TrainingSettings",
    "UserError",
    "Validation",
    "ViT",
    "build",
    "photographs",
    "replace",
    "with_learner",
    "with_model",
]
