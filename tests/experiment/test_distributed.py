"""Training in several processes on one machine, over loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import fast_environment
from marks import slow_except

from metajax.errors import UserError
from metajax.experiment import metrics
from metajax.experiment.devices import join

TRAIN = [
    *(
        "train",
        "sinusoid",
        "--devices",
        "1",
        "--training.steps-per-call",
        "5",
        "--training.checkpoint-every",
        "10",
    ),
    *("--evaluation.num-tasks", "8", "--evaluation.steps", "1", "--validation.num-tasks", "8"),
    *("--execution.chunk-size", "2"),
]


@pytest.fixture
def start(tmp_path):
    """Start a run in so many processes; what is left of them at the end is killed."""
    started = []

    def start(count, steps, run="run", more=None):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        common = [sys.executable, "-m", "metajax", *TRAIN, "--training.steps", str(steps), "--workdir", tmp_path / run]
        others = [["--distributed", f"localhost:{port},{index},{count}"] if count > 1 else [] for index in range(count)]
        processes = [
            subprocess.Popen(
                [*common, *other, *own],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **fast_environment()},
            )
            for other, own in zip(others, more or [[]] * count, strict=True)
        ]
        started.extend(processes)
        return processes

    yield start
    for process in started:
        process.kill()
        process.communicate()


def metrics_of(run):
    return metrics.read(run)


def finish(processes):
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


@pytest.mark.parametrize("count", slow_except([2, 4], [0]))
def test_several_processes_do_what_one_does(tmp_path, start, count):
    first, *rest = finish(start(count, 20, "several"))
    assert "training in" in first
    assert not any("training in" in each for each in rest), "only the first speaks"
    finish(start(1, 20, "one"))
    many, one = metrics_of(tmp_path / "several"), metrics_of(tmp_path / "one")
    assert [row["step"] for row in many] == [row["step"] for row in one] == [5, 10, 15, 20]
    for a, b in zip(many, one, strict=True):
        for name in ("loss", "gradient_norm", "update_norm"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6)
    reports = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("several", "one")]
    np.testing.assert_allclose(*[each["transductive"]["loss"]["mean"] for each in reports], rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_line_and_it_resumes(tmp_path, start):
    processes = start(2, 100_000)
    trained = wait_for_metrics(tmp_path / "run", 20)
    processes[1].kill()
    said = processes[0].communicate(timeout=120)[0]
    assert processes[0].returncode == 2, said
    assert "metajax: error: another process of the run has stopped" in said
    assert "Traceback" not in said
    processes = start(2, 100_000)
    wait_for_metrics(tmp_path / "run", trained + 500)
    processes[1].send_signal(signal.SIGTERM)  # one is told, all stop and save
    said = processes[0].communicate(timeout=120)[0]
    processes[1].communicate(timeout=120)
    assert [process.returncode for process in processes] == [143, 143], said
    assert "resuming" in said
    assert "the same command resumes" in said


def test_other_settings_end_all_processes_with_field_and_values(tmp_path, start):
    processes = start(2, 20, more=[["--seed", "1"], ["--seed", "2", "--training.steps-per-call", "10"]])
    for process in processes:
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 2, said
        (line,) = [line for line in said.splitlines() if line.startswith("metajax: error: ")]
        assert "seed is 1 in process 0 and 2 in process 1" in line
        assert "training.steps_per_call is 5 in process 0 and 10 in process 1" in line
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("index", [0, 1])
def test_a_mistake_of_one_process_ends_the_others_too(tmp_path, start, index):
    mistake = ["--training.stepz", "1"]
    processes = start(2, 20, more=[mistake, []] if index == 0 else [[], mistake])
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    expected = f"metajax: error: process {index} of the run has stopped: Unrecognized options: --training.stepz"
    assert expected in said[1 - index]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "run").exists()


def wait_for_metrics(run, step):
    """Wait until a run has come to a step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        reached = [row["step"] for row in metrics_of(run)] if (run / "metrics.jsonl").is_file() else []
        if reached and reached[-1] >= step:
            return reached[-1]
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.parametrize("others", ["here", "localhost:1,2,2", "localhost,0,2", "localhost:1,0"])
def test_others_that_cannot_be_are_refused(others):
    with pytest.raises(UserError, match="--distributed is auto or ADDRESS:PORT,INDEX,COUNT"):
        join(others)


SWEEP = """
import sys
from pathlib import Path
from metajax.experiment.devices import join
join(sys.argv[1])
import metajax as mj
from metajax.experiment import *
experiment = Experiment(
    task=SinusoidConfig(train=Shots(shots=5, queries=5), test=Shots(shots=3, queries=10)),
    model=MLPConfig(hidden=(4,)),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.01),
    outer=Outer(learning_rate=1e-2),
    training=TrainingSettings(steps=4, tasks_per_step=2, steps_per_call=2, checkpoint_every=2),
    validation=Validation(num_tasks=2),
    evaluation=EvaluationSettings(steps=1, num_tasks=2, non_transductive=False),
)
for name in ("one", "two"):
    mj.run(experiment, Path(sys.argv[2]) / name, devices=1)
"""


LIBRARY = """
import sys
import jax
from metajax.experiment.devices import join
from metajax.errors import UserError
_, place, folder, index, changes = sys.argv
join(place)
import jax.numpy as jnp
import optax
import metajax as mj
settings = {"steps": 4, "seed": 0, "start": 0.0, "validate": None}
settings |= eval(changes) if index == "1" else {}
start = jnp.float32(settings.pop("start"))
learner = mj.maml(lambda p, target, rng: ((p - target) ** 2, {}), mj.inner_loop(optax.sgd(0.1), steps=1))
sampler = lambda rng: mj.Task(*jax.random.normal(rng, (2,)))
mesh = mj.task_mesh([jax.local_devices(process_index=each)[0] for each in range(2)])
trainer = mj.trainer(learner, optax.adam(0.1), sampler, tasks_per_step=2, mesh=mesh)
try:
    print("trained to step", int(mj.train(trainer, start, folder, **settings).step))
except (UserError, ValueError) as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({}, ["trained to step 4"] * 2),
        ({"steps": 6, "seed": 1}, ["UserError: .*steps is 4 in process 0 and 6 in process 1.*checksum of key"] * 2),
        *slow_except(
            [
                ({"start": 1.0}, ["UserError: .*the checksum of meta_params at the start is .* in process 0 and"] * 2),
                (
                    {"steps": 0},
                    [
                        "UserError: process 1 of the run has stopped: steps must be at least 1, got 0",
                        "ValueError: steps must be at least 1, got 0",
                    ],
                ),
            ],
            [],
        ),
    ],
)
def test_trainings_with_other_arguments_end_all_processes(tmp_path, changes, messages):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LIBRARY, f"localhost:{port},{i},2", tmp_path / "run", str(i), repr(changes)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **fast_environment()},
        )
        for i in range(2)
    ]
    for said, message in zip(finish(processes), messages, strict=True):
        assert re.search(message, said), said
        assert "Traceback" not in said
    assert (tmp_path / "run").exists() is (changes == {})


@pytest.mark.slow
def test_processes_can_run_several_experiments(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    finish(
        [
            subprocess.Popen(
                [sys.executable, "-c", SWEEP, f"localhost:{port},{index},2", str(tmp_path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]
    )
    one, two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
