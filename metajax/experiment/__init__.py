"""An experiment as plain, typed values: what a config file holds and the command line overrides."""

from metajax.experiment.build import Parts, build
from metajax.experiment.models import MLP, Conv4, ModelSpec, ResNet12, ResNet18
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
    Domains,
    FashionMNIST,
    Folder,
    Glyphs,
    Omniglot,
    Shots,
    Sinusoid,
    Source,
    Tasks,
    TaskSpec,
)
from metajax.learners.maml import MAML
from metajax.learners.reptile import Reptile

__all__ = [
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
    "Inner",
    "LearnerSpec",
    "ModelSpec",
    "Omniglot",
    "Outer",
    "Parts",
    "Reptile",
    "ResNet12",
    "ResNet18",
    "Shots",
    "Sinusoid",
    "Source",
    "TaskSpec",
    "Tasks",
    "TrainingSettings",
    "Validation",
    "build",
]
