"""Signals, threads and readers that go away: how a command ends."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from command_line import SMALL, fails, fast_environment, finish, rows, run, small, spawn, steps
from marks import slow_except

import metajax.cli

SLOW = (
    SMALL
    + """
import dataclasses
import time

import jax
import jax.numpy as jnp

from metajax.core.losses import regression_loss
from metajax.core.types import Batch, Task

calls = 0


def wait(x):
    global calls
    calls += 1
    time.sleep(0 if calls <= QUICK else 60)
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow:
    def tasks(self, data_dir):
        def sample(rng):
            x = jax.pure_callback(wait, jax.ShapeDtypeStruct((4, 1), jnp.float32), jax.random.normal(rng, (4, 1)))
            return Task(Batch(x, x), Batch(x, x))

        split = Split(sample)
        return Tasks({"train": split, "validation": split, "test": split}, 1, regression_loss)


config = dataclasses.replace(config, task=Slow(), training=dataclasses.replace(config.training, tasks_per_step=1))
"""
)
"""Some calls of the sampler are quick, and each later one takes a minute."""

OPTIONS = [
    "--training.steps-per-call",
    1,
    "--training.checkpoint-every",
    1,
    "--validation.num-tasks",
    0,
    "--devices",
    1,
]


def start(tmp_path, quick, *options):
    config = small(tmp_path, text=SLOW.replace("QUICK", str(quick)))
    return spawn("train", config, "--workdir", tmp_path / "run", *OPTIONS, *options)


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("signum", "code"), slow_except([(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], [0])
)
def test_a_signal_in_the_first_call_ends_the_process(tmp_path, signum, code):
    process = start(tmp_path, 0)
    wait_for((tmp_path / "run" / "config.json").is_file)
    time.sleep(4)  # it compiles, or waits for the first task
    began = time.monotonic()
    process.send_signal(signum)
    said = finish(process)
    assert time.monotonic() - began < 15
    assert said.code == code, said.err
    expected = "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"
    assert said.err == f"metajax: {expected}\n"


def test_a_signal_in_a_long_call_ends_the_process_with_what_is_saved(tmp_path):
    process = start(tmp_path, 3)
    wait_for(lambda: len(rows(tmp_path / "run")) == 3)
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert time.monotonic() - began < 15
    assert said.code == 130
    assert said.err.splitlines() == [
        "metajax: stopping, and saving if this call returns within 1.5 seconds",
        "metajax: interrupted before the call returned; the same command resumes from the last checkpoint",
    ]
    assert steps(tmp_path / "run")[-1] >= 2, "a checkpoint may still be under way"


def test_a_second_signal_in_a_long_call_ends_the_process_at_once(tmp_path):
    process = start(tmp_path, 2)
    wait_for(lambda: len(rows(tmp_path / "run")) == 2)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = finish(process)
    assert time.monotonic() - began < 5
    assert said.code == 143
    assert "metajax: stopping, and saving if this call returns within 20 seconds" in said.err


@pytest.mark.parametrize(("signum", "code"), slow_except([(signal.SIGINT, 130), (signal.SIGTERM, 143)], [1]))
def test_a_signal_in_a_long_validation_saves_at_once(tmp_path, signum, code):
    process = start(tmp_path, 3, "--validation.num-tasks", 1, "--training.checkpoint-every", 3)
    wait_for(lambda: len(rows(tmp_path / "run")) == 2)
    time.sleep(5)  # it validates
    began = time.monotonic()
    process.send_signal(signum)
    said = finish(process)
    assert time.monotonic() - began < 15
    assert (said.code, said.err) == (code, "metajax: stopping and saving\n")
    assert f"stopped at step 3, saved in {tmp_path / 'run'}; the same command resumes" in said.out
    assert steps(tmp_path / "run")[-1] == rows(tmp_path / "run")[-1]["step"] == 3
    assert "validation_loss" not in rows(tmp_path / "run")[-1]


@pytest.mark.parametrize("delay", [0.6, 1.2])
def test_ctrl_c_while_it_imports_is_a_line(tmp_path, delay):
    process = spawn("train", "sinusoid", "--workdir", tmp_path / "run")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert (said.code, said.err) == (130, "metajax: interrupted\n")


def test_a_hangup_saves(tmp_path):
    config = small(tmp_path)
    process = spawn("train", config, "--workdir", tmp_path / "run", "--training.steps", 100_000)
    wait_for(lambda: len(rows(tmp_path / "run")) >= 3)
    process.send_signal(signal.SIGHUP)
    said = finish(process)
    assert said.code == 129
    assert re.search(r"^stopped at step (\d+), saved in", said.out, re.M)
    assert steps(tmp_path / "run")[-1] == rows(tmp_path / "run")[-1]["step"]


@pytest.mark.slow
def test_a_slow_save_outlasts_the_time_of_a_call_and_ends_by_a_second_signal(tmp_path):
    text = (
        "import time; from metajax.experiment import checkpoints; from metajax.system import signals\n"
        "save = checkpoints.save\n"
        "signals.CALL_SECONDS[15] = 1.0\n"
        "def slow(*a, wait=False, **k): time.sleep(WAIT if wait else 0); save(*a, wait=wait, **k)\n"
        "checkpoints.save = slow\n"
    )
    for wait, code in ((4, 143), (100, 143)):
        config = small(tmp_path, text=text.replace("WAIT", str(wait)) + SMALL)
        directory = tmp_path / f"run_{wait}"
        process = spawn("train", config, "--workdir", directory, "--training.steps", 100_000, "--devices", 1)
        wait_for(lambda directory=directory: len(rows(directory)) >= 3)
        process.send_signal(signal.SIGTERM)
        if wait == 100:
            time.sleep(3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        said = finish(process)
        assert said.code == code
        assert ("stopped at step" in said.out) == (wait == 4)


def test_a_run_goes_on_without_its_readers(tmp_path):
    """`metajax train ... 2>&1 | head -1`."""
    process = spawn("train", small(tmp_path), "--workdir", tmp_path / "run", stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith("training in")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "evaluation.json").is_file()


def in_a_thread(*lines):
    codes = []
    thread = threading.Thread(target=lambda: codes.extend(run(*line).code for line in lines))
    thread.start()
    thread.join()
    return codes


def test_a_run_in_a_thread(tmp_path):
    train = ["train", small(tmp_path), "--workdir", tmp_path / "run", "--training.steps", 10]
    assert in_a_thread(train, ["evaluate", tmp_path / "run"], ["plot", tmp_path / "run"]) == [0, 0, 0]


@pytest.mark.slow
def test_measurements_in_a_thread(tmp_path):
    config = small(tmp_path)
    assert in_a_thread(["bench", config, "--seconds", 0.01], ["tune", config, "--seconds", 0.01]) == [0, 0]


@pytest.mark.slow
def test_a_damaged_compiled_program_is_a_line_and_is_compiled_again(tmp_path):
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "METAJAX_DATA_DIR": str(tmp_path / "data")}
    command = ["train", small(tmp_path), "--training.steps", 10, "--workdir"]
    assert finish(spawn(*command, tmp_path / "first", env=environment)).code == 0
    programs = list((tmp_path / "cache").glob("jit_run-*-cache"))
    assert programs
    for path in programs:
        path.write_bytes(path.read_bytes()[:50])
    second = finish(spawn(*command, tmp_path / "second", env=environment))
    assert second.code == 0
    assert set(second.err.splitlines()) == {
        "metajax: warning: a compiled program in the cache is damaged (jit_run): it is compiled again"
    }
    third = finish(spawn(*command, tmp_path / "third", env=environment))
    assert (third.code, third.err) == (0, "")


def test_a_first_step_that_is_not_finite_may_be_the_data(tmp_path):
    text = SLOW.replace("QUICK", "10**9").replace("Batch(x, x), Batch(x, x)", "Batch(x, x / 0), Batch(x, x / 0)")
    result = run("train", small(tmp_path, text=text), "--workdir", tmp_path / "run", "--evaluation.num-tasks", 2)
    fails(result, "stopped at step 0", "the data may be the cause", "labels that are not in [0, ways)")


def test_a_variable_that_jax_does_not_understand_is_a_line():
    fails(finish(spawn("train", "sinusoid", env={"JAX_ENABLE_X64": "maybe"})), "JAX does not start", "'maybe'")


@pytest.mark.parametrize("argument", [None, ["--version"]])
def test_main_leaves_handlers_as_they_were(monkeypatch, argument):
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook, warnings.showwarning
    monkeypatch.setattr(sys, "argv", ["metajax", "--version"])
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert metajax.cli.main(argument) == 0
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook, warnings.showwarning) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_it_starts_without_jax():
    script = "import sys, metajax.cli; metajax.cli.main(['--version']); assert 'jax' not in sys.modules"
    environment = {**os.environ, **fast_environment(), "PYTHONPATH": str(Path(metajax.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
