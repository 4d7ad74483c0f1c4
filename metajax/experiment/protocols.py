"""Evaluation protocols of papers, by name."""

import dataclasses

from metajax.errors import UserError
from metajax.experiment.settings import Experiment
from metajax.tasks.config import Shots


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings with which a paper evaluates its learner.

    Attributes:
        source: The reference of the paper.
        num_tasks: Number of test tasks.
        steps: Number of inner steps. The report has the metrics after every inner step, from step 0.
        queries: Query examples of each class; `None` for the number of shots.
        batch_size: Support examples in an inner step; `None` for the value in the experiment's settings.
        transductive: Whether the paper reports transductive results; if not, it reports non-transductive results.
    """

    source: str
    num_tasks: int
    steps: int
    queries: int | None
    batch_size: int | None
    transductive: bool

    def apply(self, experiment: Experiment) -> Experiment:
        """Return the experiment with the evaluation settings of this protocol.

        Raises:
            UserError: If the experiment's tasks have no setting for the number of queries.
        """
        test = getattr(experiment.task, "test", None)
        if not isinstance(test, Shots):
            raise UserError("a protocol sets shots and queries, but the tasks of this experiment have no such settings")
        queries = test.shots if self.queries is None else self.queries
        task = dataclasses.replace(experiment.task, test=dataclasses.replace(test, queries=queries))  # type: ignore[type-var]
        evaluation = dataclasses.replace(experiment.evaluation, num_tasks=self.num_tasks, steps=self.steps)
        if self.batch_size is not None:
            evaluation = dataclasses.replace(evaluation, batch_size=self.batch_size)
        return dataclasses.replace(experiment, task=task, evaluation=evaluation)


_REPTILE = "Nichol et al., arXiv 1803.02999"
PROTOCOLS = {
    "maml": Protocol("Finn et al., arXiv 1703.03400, and its code", 600, 10, None, None, True),
    "reptile": Protocol(_REPTILE, 10_000, 50, 1, 5, False),
    "reptile_20_way": Protocol(f"{_REPTILE}, Omniglot 20-way", 10_000, 50, 1, 10, False),
    "reptile_mini_imagenet_5_shot": Protocol(f"{_REPTILE}, mini-ImageNet 5-shot", 10_000, 50, 1, 15, False),
    "metajax": Protocol("our own: 15 queries a class", 600, 10, 15, None, False),
}
"""Protocols by name. If a support set is smaller than the protocol's batch size, evaluation raises a `UserError`."""
