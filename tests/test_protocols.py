"""Papers' evaluations, as reference values."""

import pytest

import metajax as mj
from metajax.cli import configs
from metajax.experiment.protocols import PROTOCOLS


def test_mamls_protocol_has_as_many_queries_as_shots_and_ten_steps():
    experiment = PROTOCOLS["maml"].apply(configs.load("omniglot_maml_5w1s"))
    assert (experiment.task.test.shots, experiment.task.test.queries) == (1, 1)
    assert (experiment.evaluation.num_tasks, experiment.evaluation.steps) == (600, 10)


def test_reptiles_protocol_has_one_query_and_fifty_steps_of_five():
    experiment = PROTOCOLS["reptile"].apply(configs.load("omniglot_reptile_5w1s"))
    assert experiment.task.test.queries == 1
    evaluation = experiment.evaluation
    assert (evaluation.num_tasks, evaluation.steps, evaluation.batch_size) == (10_000, 50, 5)


def test_tasks_without_shots_have_no_protocol():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Own:
        def tasks(self, data_dir): ...

    experiment = dataclasses.replace(configs.load("sinusoid_maml"), task=Own())
    with pytest.raises(mj.UserError, match="protocol"):
        PROTOCOLS["maml"].apply(experiment)
