"""How papers evaluated, by name."""

import dataclasses

from metajax.errors import UserError
from metajax.experiment.settings import Experiment
from metajax.experiment.tasks import Shots


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Attributes:
        source: Where it is from.
        num_tasks: Test tasks.
        steps: Inner steps; every one from 0 on is reported.
        queries: Queries of a class; `None` for as many as there are shots.
        batch_size: Support examples of an inner step; `None` as in the config.
        transductive: Which of the two numbers the paper reports as its own.
    """

    source: str
    num_tasks: int
    steps: int
    queries: int | None
    batch_size: int | None
    transductive: bool

    def apply(self, experiment: Experiment) -> Experiment:
        """The experiment, evaluated by this protocol.

        Raises:
            UserError: If its tasks have no number of queries to set.
        """
        test = getattr(experiment.task, "test", None)
        if not isinstance(test, Shots):
            raise UserError("a protocol sets shots and queries, which the tasks of this experiment do not have")
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
"""By name; a support set smaller than the batch size of an inner step is an error that says so."""
