"""Meta-learners: one module for each algorithm, with a common interface."""

from metajax.core.learner import (
    Adaptation,
    BuildContext,
    MetaGradient,
    MetaLearner,
    Modifier,
    check_estimate,
    check_learner,
    checked_learner,
)
from metajax.learners.anil import anil, boil, only
from metajax.learners.cavia import cavia, context
from metajax.learners.foml import foml
from metajax.learners.imaml import imaml
from metajax.learners.lora import lora, low_rank
from metajax.learners.maml import fomaml, maml
from metajax.learners.maml_plus_plus import (
    annealed_weights,
    maml_plus_plus,
    rates_per_layer_and_step,
    values_per_step,
)
from metajax.learners.meta_sgd import diagonal_preconditioner, learned_rates, meta_sgd
from metajax.learners.proto import proto_maml, prototypes, prototypical_network
from metajax.learners.reptile import reptile

__all__ = [
    "Adaptation",
    "BuildContext",
    "MetaGradient",
    "MetaLearner",
    "Modifier",
    "anil",
    "annealed_weights",
    "boil",
    "cavia",
    "check_estimate",
    "check_learner",
    "checked_learner",
    "context",
    "diagonal_preconditioner",
    "fomaml",
    "foml",
    "imaml",
    "learned_rates",
    "lora",
    "low_rank",
    "maml",
    "maml_plus_plus",
    "meta_sgd",
    "only",
    "proto_maml",
    "prototypes",
    "prototypical_network",
    "rates_per_layer_and_step",
    "reptile",
    "values_per_step",
]
