"""The interface of learners' settings."""

from typing import Protocol, runtime_checkable

from metajax.core.learner import BuildContext, MetaLearner


@runtime_checkable
class LearnerConfig(Protocol):
    """Settings of a meta-learner; the module of each learner defines its own class."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        ...
