"""Training in several processes on one machine, over loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from metajax.cli.device import join
from metajax.errors import UserError

TRAIN = [
    *(
        "train",
        "sinusoid_maml",
        "--devices",
        "1",
        "--training.steps-per-call",
        "5",
        "--training.checkpoint-every",
        "10",
    ),
    *("--evaluation.num-tasks", "8", "--validation.num-tasks", "8", "--execution.chunk-size", "2"),
]


def start(tmp_path, count, steps):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "metajax",
        *TRAIN,
        "--training.steps",
        str(steps),
        "--workdir",
        str(tmp_path / "run"),
    ]
    others = [] if count == 1 else [["--distributed", f"localhost:{port},{index},{count}"] for index in range(count)]
    return [
        subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
        for more in others or [[]]
    ]


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def finish(processes):
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def test_four_processes_do_what_one_does(tmp_path):
    first, *rest = finish(start(tmp_path / "four", 4, 20))
    assert "training in" in first
    assert not any("training in" in each for each in rest), "only the first speaks"
    finish(start(tmp_path / "one", 1, 20))
    many, one = metrics_of(tmp_path / "four" / "run"), metrics_of(tmp_path / "one" / "run")
    assert [row["step"] for row in many] == [row["step"] for row in one] == [5, 10, 15, 20]
    for a, b in zip(many, one, strict=True):
        for name in ("loss", "gradient_norm", "update_norm"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6)
    reports = [json.loads((tmp_path / name / "run" / "evaluation.json").read_text()) for name in ("four", "one")]
    np.testing.assert_allclose(*[each["transductive"]["loss"]["mean"] for each in reports], rtol=1e-5)


def test_a_process_that_dies_ends_the_run_with_a_line_and_it_resumes(tmp_path):
    processes = start(tmp_path, 2, 100_000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 5):
        assert time.monotonic() < deadline, processes[0].poll()
        time.sleep(0.2)
    processes[1].kill()
    said = processes[0].communicate(timeout=120)[0]
    processes[1].communicate()
    assert processes[0].returncode == 2, said
    assert "metajax: error: another process of the run has stopped" in said
    assert "Traceback" not in said
    processes = start(tmp_path, 2, 100_000)
    lines = []
    for line in processes[0].stdout:
        lines.append(line)
        if "resuming" in line:
            break
    assert any("resuming" in line for line in lines), lines
    processes[1].send_signal(signal.SIGTERM)  # one is told, all stop and save
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [143, 143]


@pytest.mark.parametrize("others", ["here", "localhost:1,2,2", "localhost,0,2", "localhost:1,0"])
def test_others_that_cannot_be_are_refused(others):
    with pytest.raises(UserError, match="--distributed is auto or ADDRESS:PORT,INDEX,COUNT"):
        join(others)
