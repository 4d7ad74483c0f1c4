"""Config files with arguments: reading, naming runs, and exchanging learners and models."""

import dataclasses
import json
import typing
from pathlib import Path

import jax
import pytest
from command_line import experiment_of, run, small

from metajax.cli import bench, configs, evaluate, train, tune
from metajax.errors import UserError
from metajax.experiment import Experiment, ImageModel, Learner, build, presets, workdir
from metajax.experiment.run import _trainer

pytestmark = pytest.mark.usefixtures("random_images")
IMAGES = [name for name in presets.names() if name not in ("sinusoid",)]
FUNCTION = '''
from metajax.experiment import *


def config(*, hidden: int = 8, learner: Literal["maml", "reptile"] = "maml", oracle: bool = False) -> Experiment:
    """Return the experiment.

    Args:
        hidden: Number of units.
        learner: The meta-learner, whose
            description continues.
    """
    return Experiment(
        task=SinusoidConfig(oracle=oracle),
        model=MLPConfig(hidden=(hidden,)),
        learner={"maml": MAMLConfig(), "reptile": ReptileConfig()}[learner],
        inner=Inner(learning_rate=0.01),
        outer=Outer(learning_rate=1e-2),
        training=TrainingSettings(steps=2, tasks_per_step=2, steps_per_call=1),
        validation=Validation(num_tasks=0),
        evaluation=EvaluationSettings(steps=1, num_tasks=4, non_transductive=False),
    )
'''


@pytest.fixture
def function(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return small(tmp_path, "mine.py", FUNCTION)


def test_arguments_are_options_and_other_options_override_fields(function):
    experiment = experiment_of(f"{function} --hidden 6 --seed 3 --learner=reptile --oracle --inner.steps 2")
    assert (experiment.model.hidden, experiment.seed, experiment.inner.steps) == ((6,), 3, 2)
    assert type(experiment.learner).__name__.startswith("Reptile")
    assert experiment.task.oracle
    assert experiment_of(f"{function} --model.hidden 3 --hidden 6").model.hidden == (3,), "a field wins"


def test_in_python_arguments_are_keywords(function):
    assert presets.load(str(function), hidden=5).model.hidden == (5,)
    with pytest.raises(UserError, match=r"mine\.py has no argument 'hiden': did you mean 'hidden'\?"):
        presets.load(str(function), hiden=5)
    with pytest.raises(UserError, match=r"mine\.py: learner must be 'maml' or 'reptile', got 'mml'"):
        presets.load(str(function), learner="mml")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "mine"),
        (["--hidden", "8"], "mine"),
        (["--hidden", "9", "--learner", "reptile"], "mine_9hidden_reptile"),
        (["--oracle"], "mine_oracle"),
        (["--no-oracle", "--seed", "4"], "mine"),
    ],
)
def test_a_work_directory_is_named_after_the_arguments(function, words, name):
    assert configs.override("train", train.Options, [str(function), *words]).name == name


def test_a_run_resumes_and_is_evaluated_on_the_tasks_of_arguments(function):
    assert run("train", function, "--hidden", 5).code == 0
    result = run("train", function, "--hidden", 5)
    assert result.code == 0, result.err
    assert [path.name for path in Path("runs").iterdir() if not path.name.startswith(".")] == ["mine_5hidden"]
    result = run("evaluate", "runs/mine_5hidden", "--on", function, "--hidden", 3, "--task.test.queries", 7)
    assert result.code == 0, result.err
    settings = json.loads(Path("runs/mine_5hidden/config.json").read_text())
    assert settings["model"]["hidden"] == [5]


ARGUMENTS = """
import functools
from pathlib import Path
from typing import Annotated

from metajax.experiment import *


@functools.cache
def config(
    *,
    hidden: tuple[int, ...] = (8,),
    pair: tuple[int, int] = (1, 2),
    name: str = "",
    folder: Path | None = None,
    flag: Annotated[bool, 1] = False,
    scale: int | None = None,
) -> Experiment:
    return Experiment(
        task=SinusoidConfig(oracle=flag),
        model=MLPConfig(hidden=(*hidden, *pair)),
        learner=MAMLConfig(),
        inner=Inner(learning_rate=0.01, steps=scale or 1),
        outer=Outer(learning_rate=1e-2),
        training=TrainingSettings(steps=2, tasks_per_step=2),
        evaluation=EvaluationSettings(steps=1, non_transductive=False),
    )
"""


def test_arguments_of_all_simple_types_are_read(tmp_path):
    config = small(tmp_path, "many.py", ARGUMENTS)
    words = "--hidden 32 16 --seed 3 --pair 3 4 --flag --scale 2 --folder /tmp/x --inner.learning-rate 0.5"
    line = configs.override("train", train.Options, [str(config), *words.split()])
    assert line.experiment.model.hidden == (32, 16, 3, 4)
    assert (line.experiment.seed, line.experiment.inner.steps, line.experiment.inner.learning_rate) == (3, 2, 0.5)
    assert line.experiment.task.oracle
    assert line.name == "many_32_16hidden_3_4pair_tmp_xfolder_flag_2scale"


def test_a_long_name_of_a_run_is_shortened_and_stays_unique(tmp_path):
    config = small(tmp_path, "many.py", ARGUMENTS)
    names = {
        configs.override("train", train.Options, [str(config), "--name", 300 * "x" + end]).name for end in ("a", "b")
    }
    assert len(names) == 2
    assert max(map(len, names)) < 120


def test_no_argument_can_have_the_name_of_an_option():
    commands = (train.Options, bench.Options, tune.Options, evaluate.Options)
    options = {field.name for command in commands for field in dataclasses.fields(command)} - {"workdir"}
    # `--learner` and `--model` are free, because only the fields of these settings are options.
    settings = {field.name for field in dataclasses.fields(Experiment)} - {"task", "model", "learner", "inner"}
    assert options | settings | {"workdir", "help", "h"} == presets.RESERVED


def test_reports_on_the_tasks_of_other_arguments_have_other_names(function):
    assert run("train", function).code == 0
    for words in ([], ["--hidden", 3], ["--oracle"], ["--task.test.queries", 7]):
        run("evaluate", "runs/mine", "--on", function, *words)
    reports = {path.name for path in Path("runs/mine").glob("evaluation_on_*.json")}
    assert {"evaluation_on_mine.json", "evaluation_on_mine_3hidden.json"} < reports
    assert len(reports) == 3, "the run's network has no inputs for the oracle"


def test_reptile_trains_with_few_ways(tmp_path):
    for ways in (2, 3, 25):
        lowers(presets.load("omniglot", learner="reptile", ways=ways), tmp_path)


def test_the_help_and_the_description_list_the_arguments(function):
    result = run("train", function, "--help")
    assert "The meta-learner, whose description continues." in " ".join(result.out.replace("│", " ").split())
    result = run("configs", function)
    assert "  --learner maml|reptile (default: maml)\n      The meta-learner, whose description" in result.out
    assert "--hidden int (default: 8)" in result.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def config(ways=5):\n    return 1\n", "the argument ways of config() needs a type and a default"),
        ("def config(ways: int):\n    return 1\n", "the argument ways of config() needs a type and a default"),
        ("def config(*ways: int):\n    return 1\n", "config() must not have the argument *ways: int"),
        ("def config(seed: int = 1):\n    return 1\n", "the argument seed of config() has the name of an option"),
        ("def config(help: int = 1):\n    return 1\n", "the argument help of config() has the name of an option"),
        ("def config(ways: list[int] = [1]):\n    return 1\n", "the argument ways of config() must be a number, text"),
        ("def config(ways: object = 1):\n    return 1\n", "the argument ways of config() must be a number, text"),
        ("def config(ways: int = 1):\n    return ways\n", "config() must return an Experiment, got 1"),
        ("def config(ways: int = 1):\n\n    return 1 / 0\n", "wrong.py:3: ZeroDivisionError: division by zero"),
        ("def config(ways: 'Gone' = 1):\n    return 1\n", "name 'Gone' is not defined"),
        ("config = 1\n", "must set `config` to an Experiment, or define a function `config`"),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path, text, message):
    result = run("train", small(tmp_path, "wrong.py", text))
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learner", "anl"], "invalid choice 'anl' for argument '--learner'"),
        (["--lerner", "anil"], "did you mean --learner?"),
        (["--ways", "many"], "--ways takes an integer, got 'many'"),
        (["--ways", "1"], "task.ways must be at least 2, got 1"),
        (["--ways"], "--ways"),
        (["--learner", "reptile", "--shots", "0"], "task.train/test.shots must be at least 1"),
    ],
)
def test_a_wrong_argument_is_one_line(words, message):
    result = run("train", "omniglot", *words)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1


def test_reptile_needs_tasks_of_equal_size():
    with pytest.raises(UserError, match="reptile needs tasks of equal size"):
        presets.load("varied", learner="reptile")


def lowers(experiment, tmp_path):
    """Build an experiment and trace its training step."""
    if hasattr(experiment.task, "source"):
        experiment = dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, source=tmp_path))
    parts = build(experiment)
    trainer = _trainer(experiment, parts, None)
    jax.eval_shape(trainer.step, jax.eval_shape(trainer.init, parts.params, jax.random.key(0)))
    assert workdir.from_json(json.loads(json.dumps(workdir.to_json(experiment))), tmp_path) == experiment


@pytest.mark.parametrize("learner", typing.get_args(Learner))
def test_every_learner_trains_on_glyphs(learner, tmp_path):
    lowers(presets.load("glyphs", learner=learner), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", typing.get_args(ImageModel))
@pytest.mark.parametrize("learner", typing.get_args(Learner))
def test_every_pair_of_learner_and_model_trains_on_glyphs(learner, model, tmp_path):
    lowers(presets.load("glyphs", learner=learner, model=model), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", IMAGES)
@pytest.mark.parametrize("model", typing.get_args(ImageModel))
def test_the_model_of_every_config_can_be_exchanged(preset, model, tmp_path):
    lowers(presets.load(preset, model=model), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", IMAGES)
@pytest.mark.parametrize("learner", typing.get_args(Learner))
def test_the_learner_of_every_config_can_be_exchanged(preset, learner, tmp_path):
    if (preset, learner) == ("varied", "reptile"):
        pytest.skip("Reptile needs tasks of equal size")
    lowers(presets.load(preset, learner=learner), tmp_path)


@pytest.mark.parametrize("learner", typing.get_args(typing.get_type_hints(presets.read("sinusoid").config)["learner"]))
def test_every_learner_trains_on_sinusoids(learner, tmp_path):
    lowers(presets.load("sinusoid", learner=learner), tmp_path)
