"""Several data sets as the domains of an experiment."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from command_line import fails, run, small
from flax import nnx
from PIL import Image

from metajax.analysis.ranks import mean_ranks
from metajax.cli import configs, report, train
from metajax.cli.parse import parse
from metajax.cli.plot import _without_padding
from metajax.core.evaluator import Report
from metajax.core.parallel import task_mesh
from metajax.core.trainer import init_state
from metajax.errors import UserError
from metajax.experiment import (
    Conv4Config,
    DomainsConfig,
    EvaluationSettings,
    Experiment,
    FashionMNISTConfig,
    FolderConfig,
    Inner,
    MAMLConfig,
    MLPConfig,
    Outer,
    SinusoidConfig,
    SourceConfig,
    TrainingSettings,
    build,
    workdir,
)
from metajax.experiment.run import evaluate_run

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of images: one with validation classes, one without; the second's are bright."""
    made = []
    for name, splits, least in [("dark", ("train", "val", "test"), 0), ("bright", ("train", "test"), 200)]:
        root, rng = tmp_path_factory.mktemp(name), np.random.default_rng(least)
        for split in splits:
            for cls in range(3):
                place = root / split / f"{split}{cls}"
                place.mkdir(parents=True)
                for i in range(4):
                    Image.fromarray(rng.integers(least, least + 50, (16, 16), np.uint8)).save(place / f"{i}.png")
        made.append(root)
    return made


@pytest.fixture
def experiment(folders, tmp_path):
    dark, bright = (FolderConfig(source=each, size=16, channels=1, flip=False, shift=0) for each in folders)
    return Experiment(
        task=DomainsConfig(
            sources=(SourceConfig(name="dark", task=dark), SourceConfig(name="bright", task=bright, train=False)),
            min_ways=2,
            max_ways=3,
            max_support=6,
            max_queries=2,
        ),
        model=Conv4Config(channels=4, norm="group"),
        learner=MAMLConfig(),
        inner=Inner(learning_rate=0.1),
        outer=Outer(learning_rate=1e-3),
        training=TrainingSettings(steps=2, tasks_per_step=2),
        evaluation=EvaluationSettings(steps=1, num_tasks=3, non_transductive=False),
    )


def test_a_split_has_the_domains_that_have_it(experiment, tmp_path):
    tasks = experiment.task.tasks(tmp_path)
    assert tasks.outputs == 3
    assert {name: list(split.domains) for name, split in tasks.splits.items()} == {
        "train": ["dark"],
        "validation": ["dark"],
        "test": ["dark", "bright"],
    }
    draw = jax.jit(lambda sample, key: sample(key))
    for name, bright in [("dark", False), ("bright", True)]:
        for i in range(3):
            task = draw(tasks.splits["test"].domains[name], jax.random.key(i))
            assert ((np.asarray(task.support.x) > 0.7) == bright).all(), "each domain's sampler has its images only"


def test_each_domain_says_what_it_holds(experiment, tmp_path):
    """So that a resumed run notices other data."""
    fingerprints = experiment.task.tasks(tmp_path).fingerprints
    assert set(fingerprints) >= {"dark, train", "dark, test", "bright, test"}
    assert all("images of" in text for text in fingerprints.values())


def test_a_report_is_by_domain_and_can_be_ranked(experiment, tmp_path, capsys):
    experiment = dataclasses.replace(experiment, model=MLPConfig(hidden=(4,)))
    parts = build(experiment, tmp_path)
    state = init_state(parts.learner, parts.optimizer, parts.params)
    result = evaluate_run(experiment, parts, state, task_mesh(jax.devices()[:1]))
    assert list(result.domains) == ["dark", "bright"]
    losses = [each.transductive["loss"] for each in (result, *result.domains.values())]
    assert all(len(loss.mean) == len(loss.ci95) == 2 for loss in losses)
    assert losses[1].mean != losses[2].mean
    assert Report.from_json(json.loads(json.dumps(result.to_json()))) == result
    report.table(result)
    printed = capsys.readouterr().out
    assert "dark" in printed
    assert "bright" in printed
    assert mean_ranks({"a": result, "b": result})["a"].domains == {"dark": 1.5, "bright": 1.5}


def test_settings_go_into_a_work_directory_and_come_back(experiment, tmp_path):
    stored = json.loads(json.dumps(workdir.to_json(experiment, tmp_path)))
    assert workdir.from_json(stored, tmp_path) == experiment


def test_the_command_line_overrides_them(experiment):
    parsed = parse(Experiment, ["--task.max-support", "9"], prog="metajax train x", default=experiment)
    assert parsed == dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, max_support=9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Conv4Config(channels=4)}, "batch normalisation would count the padding .* --model.norm group"),
        ({"inner": Inner(learning_rate=0.1, batch_size=2)}, "must be None where ways differ"),
    ],
)
def test_what_would_see_the_padding_is_refused(experiment, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(experiment, **changes), tmp_path)


def test_pictures_show_no_padding(experiment, tmp_path):
    task = experiment.task.tasks(tmp_path).splits["train"].sampler(jax.random.key(0))
    shown = _without_padding(task.support)
    real = int(task.support.mask.sum())
    assert 0 < real < len(task.support.x)
    np.testing.assert_array_equal(shown.x, task.support.x[:real])
    np.testing.assert_array_equal(shown.y, task.support.y[:real])


@dataclasses.dataclass(frozen=True)
class RunningNorm:
    """A user's own model, with flax's batch normalisation."""

    def build(self, shape, outputs, rngs):
        layers = (
            nnx.Linear(math.prod(shape), 4, rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
            nnx.Linear(4, outputs, rngs=rngs),
        )
        return nnx.Sequential(lambda x: x.reshape(len(x), -1), *layers)


def test_the_users_batch_normalisation_would_see_the_padding_too(experiment, tmp_path):
    with pytest.raises(UserError, match="batch normalisation would count the padding"):
        build(dataclasses.replace(experiment, model=RunningNorm()), tmp_path)


def test_what_can_be_no_domain_is_named(experiment, tmp_path):
    source = experiment.task.sources[0]
    with pytest.raises(UserError, match="waves has no classes, so it cannot be a domain"):
        DomainsConfig(sources=(SourceConfig(name="waves", task=SinusoidConfig()),)).tasks(tmp_path)
    hosted = dataclasses.replace(source, task=dataclasses.replace(source.task, images="host"))
    with pytest.raises(UserError, match="images of dark must be on the device: set images='device'"):
        DomainsConfig(sources=(hosted,)).tasks(tmp_path)
    with pytest.raises(UserError, match="must have different names, got dark, dark"):
        DomainsConfig(sources=(source, source))
    few = DomainsConfig(sources=(source,))
    with pytest.raises(UserError, match=r"domain 0 has only 3 classes \(split 'train'; domain 0 is dark\)"):
        build(dataclasses.replace(experiment, task=few), tmp_path)
    untrained = dataclasses.replace(experiment.task, sources=experiment.task.sources[1:])
    with pytest.raises(UserError, match="no source is for training"):
        build(dataclasses.replace(experiment, task=untrained), tmp_path)
    assert list(untrained.tasks(tmp_path).splits) == ["test"]


TWO = """from metajax.experiment import *

config = Experiment(
    task=DomainsConfig(
        sources=(SourceConfig(name="a", task=FolderConfig(ways=7)), SourceConfig(name="b", task=FashionMNISTConfig())),
        min_ways=2,
        max_ways=3,
    ),
    model=Conv4Config(norm="group"),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.1),
    outer=Outer(learning_rate=1e-3),
    training=TrainingSettings(steps=2, tasks_per_step=2),
    evaluation=EvaluationSettings(steps=1, non_transductive=False),
)
"""


def test_help_lists_no_option_that_is_refused(tmp_path):
    config = small(tmp_path, "two.py", TWO)
    result = run("train", config, "--help")
    assert result.code == 0
    for name in ("task.size", "task.shift", "name", "no-train"):
        assert f"--task.sources.0.{name} " in result.out
    for name in ("ways", "train", "test", "images"):
        assert f".task.{name}" not in result.out


@pytest.mark.parametrize("command", [["train"], ["evaluate", "run", "--on"]])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("ways=7", "has no effect: the sizes of tasks are set by --task.min-ways"),
        ("train.shots=5", "has no effect"),
        ("test.queries=5", "has no effect"),
        ("images=host", "cannot be set: the images of several domains are always on the device"),
    ],
)
def test_an_option_of_one_domain_that_domains_do_not_use_is_refused(tmp_path, command, option, said):
    config = small(tmp_path, "two.py", TWO)
    name = option.partition("=")[0].partition(".")[0]
    fails(run(*command, config, f"--task.sources.0.task.{option}"), f"--task.sources.0.task.{name} {said}")


def test_other_options_of_one_domain_are_set(tmp_path):
    config = small(tmp_path, "two.py", TWO)
    *_, experiment = configs.override("train", train.Options, [str(config), "--task.sources.0.task.size", "9"])
    assert [type(source.task) for source in experiment.task.sources] == [FolderConfig, FashionMNISTConfig]
    assert experiment.task.sources[0].task == FolderConfig(ways=7, size=9)
