"""Runs that are killed, interrupted, damaged or out of space, and go on exactly."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_same_run, damage, fails, finish, read_events, rows, run, small, spawn, state, steps
from marks import slow_except

from metajax.experiment import checkpoints, loop, metrics, workdir
from metajax.experiment import run as experiment_run
from metajax.system import signals

LONG = ["--training.steps", 500, "--training.checkpoint-every", 20, "--training.steps-per-call", 5]
"""Seconds of short calls, with a checkpoint being written most of the time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(folder) -> Path:
    return small(folder)


@pytest.fixture(scope="module")
def undisturbed(folder, config) -> Path:
    """40 steps in this process."""
    assert run("train", config, "--workdir", folder / "short").code == 0
    return folder / "short"


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def losses(directory: Path) -> dict[int, float | None]:
    """Return the validation loss that was saved with each checkpoint on disk."""
    return {step: checkpoints.loss(directory / "checkpoints", step) for step in steps(directory)}


def wait_for_lines(process: subprocess.Popen, directory: Path, lines: int) -> None:
    """Wait until a training has written so many lines of metrics."""
    path = directory / "metrics.jsonl"
    while process.poll() is None:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.001)
    raise AssertionError(f"it ended by itself: {process.communicate()}")


def signal_at(monkeypatch, step: int, signum: int = signal.SIGINT, times: int = 1) -> None:
    """Send a signal to this process in the call that ends at `step`."""
    append = metrics.append

    def append_and_send(directory, row):
        append(directory, row)
        if row["step"] == step:
            for _ in range(times):
                signal.raise_signal(signum)

    monkeypatch.setattr(metrics, "append", append_and_send)


@pytest.mark.slow
def test_killed_three_times_it_ends_as_if_it_never_was(folder, config, tmp_path):
    seed = int.from_bytes(os.urandom(4))
    print(f"{seed = }")
    options = [config, *LONG, "--workdir"]
    assert finish(spawn("train", *options, folder / "long")).code == 0
    moments = sorted(random.Random(seed).sample(range(5, 75), 3))
    for moment in moments:
        process = spawn("train", *options, tmp_path / "killed")
        wait_for_lines(process, tmp_path / "killed", moment)
        process.send_signal(signal.SIGKILL)
        assert finish(process).code == -signal.SIGKILL
        assert not (tmp_path / "killed" / "evaluation.json").exists()
    last = finish(spawn("train", *options, tmp_path / "killed"))
    assert last.code == 0, last.err
    assert last.err == ""
    assert re.search(r"resuming .* from step \d", last.out)
    assert_same_run(folder / "long", tmp_path / "killed")
    assert len(rows(folder / "long")) == 100


@pytest.mark.parametrize(("signum", "code"), slow_except([(signal.SIGHUP, 129), (signal.SIGTERM, 143)], [1]))
def test_a_signal_saves_and_the_same_command_goes_on(config, tmp_path, signum, code):
    options = [config, *LONG, "--training.steps", 200, "--validation.num-tasks", 0, "--workdir"]
    fast = signum != signal.SIGHUP  # else each process compiles anew and in full, as a user's does
    process = spawn("train", *options, tmp_path / "stopped", fast=fast)
    wait_for_lines(process, tmp_path / "stopped", 3)
    process.send_signal(signum)
    stopped = finish(process)
    assert stopped.code == code, stopped.err
    assert stopped.err == "metajax: stopping, and saving if this call returns within 20 seconds\n"
    (step,) = re.findall(r"^stopped at step (\d+), saved in (?:.*); the same command resumes$", stopped.out, re.M)
    assert int(step) == rows(tmp_path / "stopped")[-1]["step"] == steps(tmp_path / "stopped")[-1]
    assert int(step) < 200
    assert not (tmp_path / "stopped" / "evaluation.json").exists()
    resumed = finish(spawn("train", *options, tmp_path / "stopped", fast=fast))
    assert (resumed.code, resumed.err) == (0, "")
    assert f"resuming {tmp_path / 'stopped'} from step {step}" in resumed.out
    if not fast:
        assert finish(spawn("train", *options, tmp_path / "whole", fast=fast)).code == 0
        assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("step", [5, 20, 35])
def test_wherever_it_is_interrupted_it_goes_on_exactly(undisturbed, config, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        stopped = run("train", config, "--workdir", tmp_path / "run")
    assert stopped.code == 130
    assert f"stopped at step {step}, saved in {tmp_path / 'run'}; the same command resumes" in stopped.out
    assert max(steps(tmp_path / "run")) == step
    resumed = run("train", config, "--workdir", tmp_path / "run")
    assert (resumed.code, resumed.err) == (0, "")
    a, b = state(undisturbed), state(tmp_path / "run")
    assert {name: a[name].tobytes() for name in a} == {name: b[name].tobytes() for name in b}
    assert rows(undisturbed) == rows(tmp_path / "run")
    evaluations = [json.loads((path / "evaluation.json").read_text()) for path in (undisturbed, tmp_path / "run")]
    assert evaluations[0] == evaluations[1]


def test_a_signal_in_the_last_call_is_heard(undisturbed, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 40)
        assert run("train", config, "--workdir", tmp_path / "run").code == 130
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert run("train", config, "--workdir", tmp_path / "run").code == 0
    assert_same_run(undisturbed, tmp_path / "run")


BEST = ["--training.keep", 1, "--evaluation.checkpoint", "best"]


@pytest.fixture(scope="module")
def best(folder, config) -> Path:
    """A run of 40 steps that keeps its last checkpoint and the best one, and evaluates the best one."""
    assert run("train", config, *BEST, "--workdir", folder / "best").code == 0
    return folder / "best"


def stop_before_validation(monkeypatch, step: int) -> None:
    """Send a signal in the call that ends at `step`."""
    make_row = loop._row

    def make_and_send(ends, stacked):
        if ends == step:
            signal.raise_signal(signal.SIGTERM)
        return make_row(ends, stacked)

    monkeypatch.setattr(loop, "_row", make_and_send)


def stop_in_validation(monkeypatch, step: int) -> None:
    """Save and stop as the watch thread does in a process of one command."""
    ends = iter(range(10, 100, 10))

    @contextlib.contextmanager
    def saved_at_once(self, save):
        if next(ends) == step:
            save()
            raise signals.Stopped(signal.SIGTERM)
        yield

    monkeypatch.setattr(signals.StopRequests, "saved_at_once", saved_at_once)


@pytest.mark.parametrize("stop", [stop_before_validation, stop_in_validation])
@pytest.mark.parametrize("step", slow_except([10, 20, 30, 40], [1, 3]))
def test_a_checkpoint_that_was_not_validated_is_validated_on_resume(best, config, tmp_path, monkeypatch, step, stop):
    again = ("train", config, *BEST, "--workdir", tmp_path / "run")
    with monkeypatch.context() as patch:
        stop(patch, step)
        assert run(*again).code == 143
    assert steps(tmp_path / "run")[-1] == rows(tmp_path / "run")[-1]["step"] == step
    assert "validation_loss" not in rows(tmp_path / "run")[-1]
    resumed = run(*again)
    assert (resumed.code, resumed.err) == (0, "")
    assert_same_run(best, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(best)
    assert scalars(tmp_path / "run") == scalars(best)


def scalars(directory: Path) -> dict[tuple[int, str], float]:
    """Return the values in the event files except the speed."""
    values = [(event.step, value) for event in read_events(directory) for value in event.summary.value]
    return {(step, value.tag): value.simple_value for step, value in values if value.tag != "tasks_per_second"}


def test_a_second_signal_stops_at_once(undisturbed, config, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_at(patch, 25, times=2)
        stopped = run("train", config, "--workdir", tmp_path / "run")
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "metajax: interrupted"
    assert max(steps(tmp_path / "run")) == 20  # what was saved before stays
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert run("train", config, "--workdir", tmp_path / "run").code == 0
    assert_same_run(undisturbed, tmp_path / "run")


def test_without_a_checkpoint_it_starts_again(undisturbed, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 5, times=2)
        run("train", config, "--workdir", tmp_path / "run")
    assert steps(tmp_path / "run") == []
    assert [row["step"] for row in rows(tmp_path / "run")] == [5]
    resumed = run("train", config, "--workdir", tmp_path / "run")
    assert "from the start: it had saved no checkpoint yet" in resumed.out
    assert_same_run(undisturbed, tmp_path / "run")


def test_tensorboard_shows_a_resumed_run_once(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 25, times=2)  # 25 is written and will be written again
        run("train", config, "--workdir", tmp_path / "run")
    run("train", config, "--workdir", tmp_path / "run")
    shown: dict[int, float] = {}
    for event in read_events(tmp_path / "run"):
        if event.session_log.status:  # as TensorBoard does on a restart
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == "loss":
                assert event.step not in shown
                shown[event.step] = value.simple_value
    assert shown == pytest.approx({row["step"]: row["loss"] for row in rows(tmp_path / "run")}, rel=1e-6)


@pytest.mark.parametrize("how", ["garbled", "truncated", "gone"])
def test_a_damaged_last_checkpoint_falls_back_and_goes_on_exactly(undisturbed, copy, config, how, capfd):
    damage(copy / "checkpoints" / "40", how)
    evaluated = run("evaluate", copy, "--output", copy / "other.json")
    for result in (evaluated, run("train", config, "--workdir", copy)):
        (line,) = result.err.splitlines()
        assert result.code == 0
        assert line.startswith(f"metajax: warning: checkpoint {copy / 'checkpoints' / '40'} cannot be read (")
        assert line.endswith("; falling back to the previous one")
    assert json.loads((copy / "other.json").read_text())["checkpoint"] == 30
    (copy / "other.json").unlink()
    assert f"resuming {copy} from step 30" in result.out
    assert_same_run(undisturbed, copy)
    time.sleep(0.2)
    assert capfd.readouterr() == ("", "")  # nor did Orbax say more


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(copy):
    damage(copy / "checkpoints" / "30", "truncated")
    fails(run("evaluate", copy, "--checkpoint", 30), str(copy / "checkpoints" / "30"), "cannot be read")


def test_if_none_can_be_read_it_says_so(copy, config):
    for step in steps(copy):
        damage(copy / "checkpoints" / str(step), "truncated")
    for result in (run("evaluate", copy), run("train", config, "--workdir", copy)):
        fails(result, str(copy / "checkpoints" / "40"), str(copy / "checkpoints" / "30"), "cannot be read")


def test_a_half_written_checkpoint_does_not_count(undisturbed, copy, config):
    saved = copy / "checkpoints" / "40"
    half = saved.with_name("40.orbax-checkpoint-tmp-7")
    saved.rename(half)
    shutil.rmtree(half / "default" / "d")
    evaluated = run("evaluate", copy, "--output", copy / "other.json")
    assert (evaluated.code, evaluated.err) == (0, "")
    assert json.loads((copy / "other.json").read_text())["checkpoint"] == 30
    (copy / "other.json").unlink()
    resumed = run("train", config, "--workdir", copy)
    assert (resumed.code, resumed.err) == (0, "")
    assert f"resuming {copy} from step 30" in resumed.out
    assert not half.exists()
    assert_same_run(undisturbed, copy)


def test_metrics_that_were_cut_short_are_written_again(undisturbed, copy, config):
    shutil.rmtree(copy / "checkpoints" / "40")
    path = copy / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert run("train", config, "--workdir", copy).code == 0
    assert_same_run(undisturbed, copy)


@pytest.mark.parametrize(
    "options",
    [
        ["--inner.learning-rate", "1e30"],  # at once
        ["--outer.learning-rate", "1e6", "--outer.optimizer", "sgd", "--outer.clip-norm", "None"],  # after a while
    ],
)
def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(config, tmp_path, options):
    result = run("train", config, "--workdir", tmp_path / "run", *options)
    fails(result, "is not finite", str(tmp_path / "run" / "checkpoints"), "outer.learning_rate")
    step, metric, good = re.findall(
        r"stopped at step ([\d,]+): (\w+) is not finite.* checkpoint ([\d,]+) of", result.err
    )[0]
    assert step == good
    assert metric in ("loss", "gradient_norm", "update_norm")
    assert steps(tmp_path / "run")[-1] == int(good)
    found = state(tmp_path / "run")
    assert found[".step"] == int(good)
    assert all(np.isfinite(array).all() for array in found.values())
    assert all(row["step"] <= int(good) for row in rows(tmp_path / "run"))
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert (int(good) > 0) == ("--outer.learning-rate" in options), "choose other settings"
    evaluated = run("evaluate", tmp_path / "run", "--checkpoint", int(good), "--steps", 0)
    assert evaluated.code == 0


@pytest.mark.parametrize("size", slow_except(["8k", "130k"], [1]))  # full when the run begins, and at a checkpoint
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(undisturbed, config, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        result = finish(spawn("train", config, "--workdir", disk / "run"))
        fails(result, "no space left on device", str(disk / "run"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        resumed = finish(spawn("train", config, "--workdir", disk / "run"))
        assert (resumed.code, resumed.err) == (0, "")
        assert_same_run(undisturbed, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("command", ["train", "evaluate", "plot"])
def test_a_disk_that_cannot_be_written_to_is_one_line(undisturbed, config, tmp_path, command):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        shutil.copytree(undisturbed, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        words = {"train": ["train", config, "--workdir"], "evaluate": ["evaluate"], "plot": ["plot"]}[command]
        fails(run(*words, disk / "run"), "read-only file system", str(disk / "run"))
        if command == "train":
            fails(run(*words, disk / "new"), "read-only file system", str(disk / "new"))
        result = run("evaluate", disk / "run", "--output", tmp_path / "other.json", "--checkpoint", "best")
        assert (result.code, result.err) == (0, "")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_kill_before_it_began_is_not_in_the_way(config, tmp_path):
    """A kill between the files of a new work directory leaves nothing in the way."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text("{}")
    (tmp_path / "run" / "config.py.partial").write_text("half")
    assert run("train", config, "--workdir", tmp_path / "run", "--training.steps", 5).code == 0
    assert steps(tmp_path / "run") == [5]


def test_a_place_that_cannot_be_used_is_told_before_the_data_is_read(copy, config, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")

    def build(*args, **options):
        raise AssertionError("the data is read")

    monkeypatch.setattr(experiment_run, "build", build)
    fails(run("train", config, "--workdir", tmp_path / "mine"), "is not empty and not a work directory")
    with workdir.lock(copy):
        fails(run("train", config, "--workdir", copy), "another process is training", str(copy))


def test_a_run_that_another_process_begins_meanwhile_is_compared(copy, config, tmp_path, monkeypatch):
    check_training = experiment_run.check_training

    def check_and_begin(*args):
        shutil.copytree(copy, tmp_path / "run")
        check_training(*args)

    monkeypatch.setattr(experiment_run, "check_training", check_and_begin)
    fails(run("train", config, "--workdir", tmp_path / "run", "--seed", 1), "seed is 0 in the run and 1 now")


def test_two_processes_do_not_train_in_one_place(undisturbed, copy, config):
    with workdir.lock(copy):
        fails(run("train", config, "--workdir", copy), "another process is training", str(copy))
        assert run("evaluate", copy, "--output", copy / "other.json").code == 0
    (copy / "other.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "40")
    assert run("train", config, "--workdir", copy).code == 0
    assert_same_run(undisturbed, copy)


@pytest.mark.parametrize("refused", ["lock", "file"])
def test_where_there_are_no_locks_it_trains_all_the_same(undisturbed, config, tmp_path, monkeypatch, refused):
    """On some cluster file systems, and where only the work directory itself can be written to."""
    fcntl = pytest.importorskip("fcntl")
    directory = tmp_path / "run"
    if refused == "file":
        (tmp_path / ".run.lock").mkdir()
    else:

        def refuse(*args):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    result = run("train", config, "--workdir", directory)
    assert (result.code, result.err) == (0, "")
    assert_same_run(undisturbed, directory)


def test_a_finished_run_goes_on_to_more_steps_as_if_it_were_one(undisturbed, config, tmp_path):
    """Also where the first end is no step at which a checkpoint is due."""
    assert run("train", config, "--workdir", tmp_path / "run", "--training.steps", 25).code == 0
    longer = run("train", config, "--workdir", tmp_path / "run")
    assert (longer.code, longer.err) == (0, "")
    assert "from step 25" in longer.out
    a, b = state(undisturbed), state(tmp_path / "run")
    assert {name: a[name].tobytes() for name in a} == {name: b[name].tobytes() for name in b}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["steps"] == 40
    again = run("train", config, "--workdir", tmp_path / "run")
    assert "only evaluating it; a larger --training.steps continues training" in again.out
    fails(
        run("train", config, "--workdir", tmp_path / "run", "--training.steps", 30), "training.steps is 40 in the run"
    )


def test_a_schedule_that_ends_with_the_run_forbids_more_steps(config, tmp_path):
    options = [config, "--workdir", tmp_path / "run", "--outer.schedule", "cosine", "--training.steps"]
    assert run("train", *options, 5).code == 0
    fails(run("train", *options, 10), "training.steps is 5 in the run and 10 now", "a cosine schedule depend on")
