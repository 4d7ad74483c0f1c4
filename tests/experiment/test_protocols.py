"""Papers' evaluations, as reference values."""

import typing

import pytest

import metajax as mj
from metajax.cli import evaluate
from metajax.experiment import presets
from metajax.experiment.protocols import PROTOCOLS


def test_mamls_protocol_has_as_many_queries_as_shots_and_ten_steps():
    experiment = PROTOCOLS["maml"].apply(presets.load("omniglot"))
    assert (experiment.task.test.shots, experiment.task.test.queries) == (1, 1)
    assert (experiment.evaluation.num_tasks, experiment.evaluation.steps) == (600, 10)


@pytest.mark.parametrize(
    ("name", "batch"), [("reptile", 5), ("reptile_20_way", 10), ("reptile_mini_imagenet_5_shot", 15)]
)
def test_reptiles_protocols_have_one_query_and_fifty_steps(name, batch):
    experiment = PROTOCOLS[name].apply(presets.load("omniglot", learner="reptile"))
    assert experiment.task.test.queries == 1
    evaluation = experiment.evaluation
    assert (evaluation.num_tasks, evaluation.steps, evaluation.batch_size) == (10_000, 50, batch)


def test_the_command_line_has_every_protocol():
    field = typing.get_type_hints(evaluate.Options)["protocol"]
    assert set(typing.get_args(typing.get_args(field)[0])) == set(PROTOCOLS)


def test_tasks_without_shots_have_no_protocol():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Own:
        def tasks(self, data_dir): ...

    experiment = dataclasses.replace(presets.load("sinusoid"), task=Own())
    with pytest.raises(mj.UserError, match="protocol"):
        PROTOCOLS["maml"].apply(experiment)
