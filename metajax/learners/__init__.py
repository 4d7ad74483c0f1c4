"""Meta-learners: one file each, one interface."""

from metajax.learners._interface import Estimate, MetaLearner
from metajax.learners.maml import maml
from metajax.learners.reptile import reptile

__all__ = ["Estimate", "MetaLearner", "maml", "reptile"]
