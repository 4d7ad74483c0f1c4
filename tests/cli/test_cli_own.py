"""A user's own config file, with tasks and a model of their own in it."""

import json
import signal
from pathlib import Path

import pytest
from command_line import assert_same_run, fails, finish, rows, run, small, spawn, steps

from metajax.experiment import metrics

OWN = '''"""Lines instead of sinusoids."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.experiment import *
from metajax.core.losses import regression_loss
from metajax.core.types import Batch, Task

NOISE = jnp.ones(1) * 0.1  # JAX is in use before the command line chooses devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    low: float = -1.0
    high: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines of random slope."""

    slope: Range = Range()
    points: int = 6
    note: Path | None = None

    def tasks(self, data_dir: Path | None) -> Tasks:
        assert isinstance(self.slope, Range)

        def sample(rng):
            slope_rng, x_rng = jax.random.split(rng)
            slope = jax.random.uniform(slope_rng, minval=self.slope.low, maxval=self.slope.high)
            x = jax.random.normal(x_rng, (2, self.points, 1))
            return Task(*(Batch(part, slope * part + NOISE) for part in x))

        split = Split(sample)
        return Tasks({"train": split, "validation": split, "test": split}, 1, regression_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Affine:
    """One layer."""

    bias: bool = True

    def build(self, shape, outputs, rngs):
        return nnx.Linear(shape[0], outputs, use_bias=self.bias, rngs=rngs)


config = Experiment(
    task=Lines(slope=Range(low=0.0)),
    model=Affine(),
    learner=ReptileConfig(),
    inner=Inner(learning_rate=0.1, steps=2),
    outer=Outer(learning_rate=0.5, optimizer="sgd"),
    training=TrainingSettings(steps=20, tasks_per_step=4, steps_per_call=5, checkpoint_every=10),
    validation=Validation(num_tasks=2),
    evaluation=EvaluationSettings(steps=2, num_tasks=4),
)
'''

OPTIONS = ["--task.points", 7, "--task.slope.high", 2, "--task.note", "a/b.txt", "--model.no-bias"]


def interrupt(monkeypatch, step: int) -> None:
    append = metrics.append

    def append_and_interrupt(directory, row):
        append(directory, row)
        if row["step"] == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(metrics, "append", append_and_interrupt)


def test_it_trains_resumes_and_evaluates_even_when_the_file_is_gone(tmp_path, monkeypatch):
    original = small(tmp_path, "lines.py", OWN)
    whole = run("train", original, "--workdir", tmp_path / "whole", *OPTIONS)
    assert (whole.code, whole.err) == (0, "")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["task"]["class"].endswith(":Lines")
    assert (config["task"]["points"], config["task"]["note"], config["model"]["bias"]) == (7, "a/b.txt", False)
    assert config["task"]["slope"] == {"class": "metajax_config:Range", "low": 0.0, "high": 2.0}

    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, 15)
        assert run("train", original, "--workdir", directory, *OPTIONS).code == 130
    result = run("train", original, "--workdir", directory)
    fails(result, "task.points is 7 in the run and 6 now", "model.bias is False in the run and True now")
    original.unlink()
    assert run("evaluate", directory, "--output", tmp_path / "early.json").code == 0
    assert json.loads((tmp_path / "early.json").read_text())["checkpoint"] == 15
    resumed = run("train", directory / "config.py", "--workdir", directory, *OPTIONS)
    assert (resumed.code, resumed.err) == (0, "")
    assert "from step 15" in resumed.out
    assert rows(directory) == rows(tmp_path / "whole")
    for command in ("evaluate", "plot"):
        result = run(command, directory)
        assert (result.code, result.err) == (0, "")
    assert (directory / "plots" / "fits.png").stat().st_size > 3000


def test_other_code_of_its_own_is_not_resumed(tmp_path):
    original = small(tmp_path, "lines.py", OWN)
    words = ["train", original, "--workdir", tmp_path / "run"]
    assert run(*words).code == 0
    original.write_text(OWN.replace("nnx.Linear(shape[0],", "nnx.Linear( shape[0],  # as it was\n"))
    assert run(*words).code == 0
    annotated = OWN.replace("config = ", "config: Experiment = ").replace("Lines instead", "Still lines instead")
    original.write_text(annotated)
    assert run(*words).code == 0
    original.write_text(OWN.replace("slope * part", "slope + part"))
    fails(run(*words), "begun with other code than", "config.py")
    fails(run(*words, "--task.points", 9), "task.points is 6 in the run and 9 now")


@pytest.mark.parametrize(
    ("line", "assertion", "messages"),
    [
        (
            "        return nnx.Linear(",
            "assert outputs > 1, 'no model for one output'",
            ["model: no model for one output"],
        ),
        (
            "        return regression_loss(apply)",
            "return lambda params, data, rng: chex.assert_rank(data.x, 4, custom_message='images are expected')",
            ["learner: [Chex] Assertion assert_rank failed", "(6, 1)", "expected 4", "images are expected"],
        ),
        (
            "        return regression_loss(apply)",
            "return lambda params, data, rng: fail(data)",
            ["learner: AssertionError in ", "lines.py, line ", "assert data is None"],
        ),
    ],
)
def test_a_failed_assertion_of_a_model_or_a_loss_is_one_line(tmp_path, line, assertion, messages):
    text = OWN.replace("import jax\n", "import chex\nimport jax\n").replace("1, regression_loss)", "1, self.loss)")
    text = text.replace(
        "    def tasks(", "    def loss(self, apply):\n        return regression_loss(apply)\n\n    def tasks("
    )
    text = text.replace("config = ", "def fail(data):\n    assert data is None\n\n\nconfig = ")
    assert line in text
    text = text.replace(line, f"        {assertion}\n{line}")
    fails(run("train", small(tmp_path, "lines.py", text), "--workdir", tmp_path / "run"), *messages)
    assert not (tmp_path / "run").exists()


def test_it_runs_in_processes_of_their_own(tmp_path):
    """Where JAX is first used by the config file, and the copy is read by another process."""
    original = small(tmp_path, "lines.py", OWN)
    result = finish(spawn("train", original, "--workdir", tmp_path / "one", "--devices", 2))
    assert (result.code, result.err) == (0, "")
    assert "on 2 cpu devices" in result.out
    original.unlink()
    result = finish(spawn("evaluate", tmp_path / "one", "--devices", 2, "--output", tmp_path / "two.json"))
    assert (result.code, result.err) == (0, "")
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(
        (tmp_path / "one" / "evaluation.json").read_text()
    )


def test_the_copy_is_a_config_like_any_other(tmp_path):
    original = small(tmp_path, "lines.py", OWN)
    assert run("train", original, "--workdir", tmp_path / "one").code == 0
    assert run("train", tmp_path / "one" / "config.py", "--workdir", tmp_path / "two").code == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert steps(tmp_path / "two") == [10, 20]


def test_tasks_of_one_config_for_the_learner_of_another(tmp_path):
    original = small(tmp_path, "lines.py", OWN)
    steeper = OWN.replace("low: float = -1.0", "low: float = 5.0").replace("low=0.0", "high=6.0")
    other = small(tmp_path, "steep.py", steeper)
    assert run("train", original, "--workdir", tmp_path / "run").code == 0
    result = run("evaluate", tmp_path / "run", "--on", other, "--output", tmp_path / "steep.json")
    assert (result.code, result.err) == (0, "")
    flat = json.loads((tmp_path / "run" / "evaluation.json").read_text())["transductive"]["loss"]["mean"]
    steep = json.loads((tmp_path / "steep.json").read_text())["transductive"]["loss"]["mean"]
    assert steep[0] > 10 * flat[0]


@pytest.mark.parametrize("name", ["lines.v2.py", "my lines.py"])
def test_names_of_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert run("train", small(tmp_path, name, OWN), "--training.steps", 5).code == 0
    assert steps(Path("runs") / name.removesuffix(".py")) == [5]
