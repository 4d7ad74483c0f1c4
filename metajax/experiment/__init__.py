"""Typed settings of experiments. A config file defines the settings, and the command line may override them."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from metajax.errors import UserError, needs

with needs("cli"):
    from metajax.experiment.build import Parts, build
    from metajax.experiment.recipes import ImageModel, Learner, Length, photographs, with_learner, with_model
    from metajax.experiment.settings import (
        EvaluationSettings,
        Execution,
        Experiment,
        Inner,
        Outer,
        TrainingSettings,
        Validation,
    )
    from metajax.learners.anil import ANILConfig, BOILConfig
    from metajax.learners.cavia import CAVIAConfig
    from metajax.learners.config import LearnerConfig
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
    from metajax.tasks.config import Shots, Split, TaskConfig, Tasks
    from metajax.tasks.datasets import FashionMNISTConfig, FolderConfig, ImagesConfig, OmniglotConfig
    from metajax.tasks.domains import DomainsConfig, SourceConfig
    from metajax.tasks.glyphs import GlyphsConfig
    from metajax.tasks.sinusoid import SinusoidConfig

__all__ = [
    "ANILConfig",
    "BOILConfig",
    "CAVIAConfig",
    "Conv4Config",
    "DomainsConfig",
    "EvaluationSettings",
    "Execution",
    "Experiment",
    "FOMLConfig",
    "FashionMNISTConfig",
    "FolderConfig",
    "GlyphsConfig",
    "IMAMLConfig",
    "ImageModel",
    "ImagesConfig",
    "Inner",
    "Learner",
    "LearnerConfig",
    "Length",
    "Literal",
    "LoRAConfig",
    "MAMLConfig",
    "MAMLPlusPlusConfig",
    "MLPConfig",
    "MetaSGDConfig",
    "ModelConfig",
    "OmniglotConfig",
    "Outer",
    "Parts",
    "Path",
    "PreconditionedConfig",
    "ProtoMAMLConfig",
    "PrototypicalNetworkConfig",
    "ReptileConfig",
    "ResNet12Config",
    "ResNet18Config",
    "ScratchConfig",
    "Shots",
    "SinusoidConfig",
    "SourceConfig",
    "Split",
    "TaskConfig",
    "Tasks",
    "TrainingSettings",
    "UserError",
    "Validation",
    "ViTConfig",
    "build",
    "photographs",
    "replace",
    "with_learner",
    "with_model",
]
