"""What the tests of the command line share: a small experiment, ways to run a command, and to compare runs."""

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from fast_compilation import fast_compilation, settings
from tensorboardX.proto.event_pb2 import Event

from metajax.cli import configs, main, train
from metajax.core.trainer import init_state
from metajax.experiment import Experiment, build, checkpoints, loop, workdir

SMALL = '''"""Sinusoids, small enough for a test."""

from metajax.experiment import *

config = Experiment(
    task=SinusoidConfig(train=Shots(shots=5, queries=5), test=Shots(shots=3, queries=10)),
    model=MLPConfig(hidden=(8,)),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.01),
    outer=Outer(learning_rate=1e-2, clip_norm=10.0),
    training=TrainingSettings(steps=40, tasks_per_step=4, steps_per_call=5, checkpoint_every=10, keep=2),
    validation=Validation(num_tasks=4),
    evaluation=EvaluationSettings(steps=2, num_tasks=8, non_transductive=False),
)
'''


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def experiment_of(command: str) -> Experiment:
    """Return the experiment of `metajax train COMMAND`."""
    return configs.override("train", train.Options, command.split()).experiment


def small(folder: Path, name: str = "small.py", text: str = SMALL) -> Path:
    """Write a config file."""
    path = folder / name
    path.write_text(text)
    return path


def run(*args: object) -> Result:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), fast_compilation(), _patient():
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:  # --help
            code = stop.code
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Print no line about a long compilation: what a command prints must not depend on how busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_SILENT_SECONDS", 1e6)
        yield


def spawn(*args: object, fast: bool = True, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start a command in a process of its own; what is not compiled `fast` is compiled as a user's."""
    variables = {**os.environ, "COLUMNS": "120", **(fast_environment() if fast else {}), **(env or {})}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "metajax", *map(str, args)]
    return subprocess.Popen(command, env=variables, **{**pipes, **options})


def fast_environment() -> dict[str, str]:
    """Variables that make a process compile as `run` does."""
    return {name.upper(): str(value) for name, value in settings().items()}


def finish(process: subprocess.Popen) -> Result:
    """Wait for a process."""
    out, err = process.communicate(timeout=300)
    return Result(process.returncode, out, err)


def fails(result: Result, *words: str) -> None:
    """Check that a command refused in one line, which has these words."""
    lines = result.err.splitlines()
    assert result.code == 2, result
    assert len(lines) == 1, result.err
    assert lines[0].startswith("metajax: error: "), lines
    assert len(lines[0]) > len("metajax: error: ") + 10, lines
    assert "Traceback" not in result.out + result.err
    for word in words:
        assert word in lines[0], (word, lines[0])


def rows(directory: Path) -> list[dict]:
    """The metrics but for the speed."""
    path = directory / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in line.items() if name != "tasks_per_second"} for line in lines]


def steps(directory: Path) -> list[int]:
    """Steps of the checkpoints on disk."""
    return checkpoints.saved_steps(directory / "checkpoints")


def state(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their paths, by default of the last one."""
    experiment = workdir.load_experiment(directory)
    parts = build(experiment)
    like = init_state(parts.learner, parts.optimizer, parts.params)
    found, problems = checkpoints.restore(directory / "checkpoints", like, step)
    assert not problems
    leaves = jax.tree.leaves_with_path(found._replace(key=jax.random.key_data(found.key)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two runs ended alike, bit for bit, and told the same all along."""
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name
    assert rows(one) == rows(other)
    assert steps(one) == steps(other)
    assert (one / "evaluation.json").read_text() == (other / "evaluation.json").read_text()


def read_events(directory: Path) -> list[Event]:
    """The events of all files, in order; each record is framed by its length and two checksums."""
    events = []
    for path in sorted((directory / "tensorboard").iterdir(), key=lambda path: path.name.split(".")[3:5]):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            events.append(event)
            data = data[16 + length :]
    return events


def damage(checkpoint: Path, how: str) -> None:
    """Damage the arrays of a checkpoint."""
    files = [path for path in checkpoint.glob("default/**/d/*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        if how == "garbled":
            path.write_bytes(bytes(byte ^ 0x5A for byte in data))
        elif how == "truncated":
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
