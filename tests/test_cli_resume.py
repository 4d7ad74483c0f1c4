"""Runs that are killed, interrupted, damaged or out of space, and go on exactly."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli_helpers import (
    SMALL,
    assert_same_run,
    damage,
    fails,
    finish,
    rows,
    run,
    small,
    spawn,
    state,
    steps,
)
from test_workdir import read_events

LONG = ["--training.steps", 1000, "--training.checkpoint-every", 20, "--training.steps-per-call", 5]
"""Some seconds of small calls, with a checkpoint being written most of the time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(folder) -> Path:
    return small(folder)


@pytest.fixture(scope="module")
def undisturbed(folder, config) -> Path:
    """The short run, in this process."""
    assert run("train", config, "--workdir", folder / "short").code == 0
    return folder / "short"


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def wait_for_lines(process: subprocess.Popen, directory: Path, lines: int) -> None:
    """Wait until a training has written so many lines of metrics."""
    path = directory / "metrics.jsonl"
    while process.poll() is None:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.001)
    raise AssertionError(f"it ended by itself: {process.communicate()}")


def interrupt_at(monkeypatch, step: int, signum: int = signal.SIGINT, times: int = 1) -> None:
    """Make training receive a signal in the call that ends at `step`."""
    from metajax.cli.progress import Progress

    update = Progress.update

    def update_and_interrupt(self, row):
        update(self, row)

    from metajax.cli import train

    save = train.workdir.append_metrics

    def append(directory, row):
        save(directory, row)
        if row["step"] == step:
            for _ in range(times):
                signal.raise_signal(signum)

    monkeypatch.setattr(train.workdir, "append_metrics", append)
