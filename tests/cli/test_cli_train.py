"""The commands, end to end: what they write and what they print."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import (
    SMALL,
    Result,
    assert_same_run,
    fails,
    fast_environment,
    finish,
    read_events,
    rows,
    run,
    small,
    spawn,
    state,
    steps,
)

import metajax
from metajax import __version__
from metajax.experiment import presets

IMAGES = '''"""Three glyphs, small enough for a test."""

from metajax.experiment import *

config = Experiment(
    task=GlyphsConfig(ways=3, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=2), size=16),
    model=Conv4Config(channels=4),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.4),
    outer=Outer(learning_rate=1e-2),
    training=TrainingSettings(steps=4, tasks_per_step=2, steps_per_call=2, checkpoint_every=2),
    validation=Validation(num_tasks=0),
    evaluation=EvaluationSettings(steps=1, num_tasks=3),
)
'''

OPPOSITE = (
    SMALL
    + """
import dataclasses

import jax
import jax.numpy as jnp

from metajax.core.losses import regression_loss
from metajax.core.types import Batch, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opposite:
    height: float = 9.0

    def tasks(self, data_dir):
        def sampler(height):
            def sample(rng):
                batch = Batch(jax.random.normal(rng, (4, 1)), jnp.full((4, 1), height))
                return Task(batch, batch)

            return sample

        up, down = sampler(self.height), sampler(-self.height)
        return Tasks({"train": Split(up), "validation": Split(down), "test": Split(down)}, 1, regression_loss)


config = dataclasses.replace(config, task=Opposite(), inner=Inner(learning_rate=1e-6))
"""
)
"""The longer it trains, the worse it validates."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(folder) -> Path:
    return small(folder)


@pytest.fixture(scope="module")
def trained(folder, config) -> tuple[Path, Result]:
    """A finished run and what training it printed; tests read it and copy it, and do not change it."""
    result = run("train", config, "--workdir", folder / "trained", "--seed", 5)
    assert result.code == 0, result.err
    return folder / "trained", result


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "copy"))


def report(directory: Path, name: str = "evaluation.json") -> dict:
    return json.loads((directory / name).read_text())


def test_train_prints_little_and_quietly(trained, folder):
    directory, result = trained
    lines = result.out.splitlines()
    assert result.err == ""
    assert lines[0] == f"training in {directory} on 2 cpu devices"
    assert re.fullmatch(r"evaluating checkpoint \d+(, which validated best,)? on 8 test tasks", lines[1])
    assert "8 test tasks, mean ± 95 % interval" in lines
    assert lines[-2:] == [f"the whole report is {directory / 'evaluation.json'}", f"metajax plot {directory} draws it"]
    assert "\x1b" not in result.out
    assert "tasks/s" not in result.out
    assert len(lines) < 15


def test_train_writes_the_resolved_config(trained):
    directory, _ = trained
    config = report(directory, "config.json")
    assert config["seed"] == 5
    assert config["training"]["steps"] == 40
    assert config["inner"]["optimizer"] == "sgd"  # a default that the file does not mention
    assert (directory / "config.py").read_text().endswith(SMALL)


def test_train_writes_the_environment(trained):
    environment = report(trained[0], "environment.json")
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["metajax"] == __version__
    assert environment["device"].startswith("cpu")
    assert environment["devices"] == 2
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))


def test_train_writes_metrics_once_a_call_and_validates_at_checkpoints(trained):
    found = rows(trained[0])
    assert [row["step"] for row in found] == list(range(5, 41, 5))
    for row in found:
        assert np.isfinite([row["loss"], row["gradient_norm"]]).all()
        assert ("validation_loss" in row) == (row["step"] % 10 == 0)
    text = (trained[0] / "metrics.jsonl").read_text()
    assert all(json.loads(line)["tasks_per_second"] > 0 for line in text.splitlines())


def test_train_writes_the_same_to_tensorboard(trained):
    told = {}
    for event in read_events(trained[0]):
        for value in event.summary.value:
            told.setdefault(event.step, {})[value.tag] = value.simple_value
    assert list(told) == list(range(5, 41, 5))
    for row in rows(trained[0]):
        scalars = told[row.pop("step")]
        assert scalars.pop("tasks_per_second") > 0
        assert scalars == pytest.approx(row, rel=1e-6)


def test_train_keeps_the_last_checkpoints_and_the_best(trained):
    losses = {row["step"]: row["validation_loss"] for row in rows(trained[0]) if "validation_loss" in row}
    assert list(losses) == [10, 20, 30, 40]
    best = min(losses, key=losses.__getitem__)
    assert steps(trained[0]) == sorted({best, 30, 40})


def test_a_best_checkpoint_that_is_old_is_kept_and_evaluated(tmp_path):
    config = small(tmp_path, text=OPPOSITE)
    options = ["--training.keep", 1, "--evaluation.checkpoint", "best"]
    assert run("train", config, "--workdir", tmp_path / "run", *options).code == 0
    losses = [row["validation_loss"] for row in rows(tmp_path / "run") if "validation_loss" in row]
    assert losses == sorted(losses)
    assert steps(tmp_path / "run") == [10, 40]
    assert report(tmp_path / "run")["checkpoint"] == 10


def test_train_evaluates_at_every_inner_step(trained):
    found = report(trained[0])
    assert (found["split"], found["seed"], found["num_tasks"], found["checkpoint"]) == ("test", 5, 8, 40)
    assert found["inner_steps"] == 2
    for key in ("mean", "ci95", "median"):
        assert len(found["transductive"]["loss"][key]) == 3
        assert np.isfinite(found["transductive"]["loss"][key]).all()
    assert min(found["transductive"]["loss"]["ci95"]) > 0
    assert found["transductive"]["diverged"] == 0
    assert "non_transductive" not in found
    printed = [line.split() for line in trained[1].out.splitlines() if re.match(r" +\d", line)]
    expected = zip(found["transductive"]["loss"]["mean"], found["transductive"]["loss"]["ci95"], strict=True)
    assert [row[1:] for row in printed] == [[f"{mean:.3f}", "±", f"{half:.3f}"] for mean, half in expected]


@pytest.mark.slow
def test_images_are_evaluated_in_both_ways_and_drawn(tmp_path):
    directory = tmp_path / "run"
    result = run("train", small(tmp_path, text=IMAGES), "--workdir", directory)
    assert (result.code, result.err) == (0, "")
    found = report(directory)
    for kind in ("transductive", "non_transductive"):
        accuracy = found[kind]["accuracy"]
        assert len(accuracy["mean"]) == len(accuracy["ci95"]) == 2
        assert all(0 <= mean <= 1 for mean in accuracy["mean"])
    assert all("accuracy" in row for row in rows(directory))
    (directory / "evaluation.json").unlink()
    result = run("plot", directory)
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in (directory / "plots").iterdir()) == ["episode.png", "learning_curve.png"]
    assert (directory / "plots" / "episode.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_name_a_run_lies_below_runs(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    assert run("train", config, "--training.steps", 5, "--validation.num-tasks", 0).code == 0
    assert steps(tmp_path / "runs" / "small") == [5]
    assert not any("validation_loss" in row for row in rows(tmp_path / "runs" / "small"))


def test_a_shipped_config_trains_with_overrides(tmp_path):
    options = ["--training.steps", 4, "--training.steps-per-call", 2, "--validation.num-tasks", 2]
    options += ["--evaluation.num-tasks", 3, "--evaluation.steps", 1, "--model.hidden", 6, 7]
    result = run("train", "sinusoid", "--workdir", tmp_path / "run", *options)
    assert result.code == 0, result.err
    assert report(tmp_path / "run", "config.json")["model"]["hidden"] == [6, 7]
    assert report(tmp_path / "run")["inner_steps"] == 1


def test_the_seed_decides_all(trained, config, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    for directory, seed in [(same, 5), (other, 6)]:
        assert run("train", config, "--workdir", directory, "--seed", seed).code == 0
    assert rows(same) == rows(trained[0])
    assert report(same) == report(trained[0])
    assert rows(other)[0]["loss"] != rows(same)[0]["loss"]


def test_other_settings_are_refused_with_field_and_both_values(copy, config):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    result = run("train", config, "--workdir", copy, "--seed", 5, "--inner.learning-rate", "0.5")
    fails(result, str(copy), "inner.learning_rate is 0.01 in the run and 0.5 now")
    result = run("train", config, "--workdir", copy)
    fails(result, "seed is 5 in the run and 0 now")
    result = run("train", "glyphs", "--workdir", copy)
    fails(result, "sinusoid:SinusoidConfig in the run and", "glyphs:GlyphsConfig now")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_only_evaluated(copy, config):
    before = report(copy)
    kept = ["metrics.jsonl", "config.json", "environment.json"]
    contents = {name: (copy / name).read_bytes() for name in kept}
    times = {path: path.stat().st_mtime_ns for path in (copy / "checkpoints").rglob("*")}
    (copy / "evaluation.json").unlink()
    result = run("train", config, "--workdir", copy, "--seed", 5)
    assert result.code == 0
    assert re.search(r"is trained, to step \d+: only evaluating it", result.out)
    assert "resuming" not in result.out
    assert report(copy) == before
    assert {name: (copy / name).read_bytes() for name in kept} == contents
    assert {path: path.stat().st_mtime_ns for path in (copy / "checkpoints").rglob("*")} == times


def test_evaluate_agrees_with_train(copy):
    before = report(copy)
    (copy / "evaluation.json").unlink()
    result = run("evaluate", copy)
    assert (result.code, result.err) == (0, "")
    assert report(copy) == before
    assert re.match(rf"evaluating checkpoint {before['checkpoint']} on 8 test tasks\n", result.out)
    assert f"the whole report is {copy / 'evaluation.json'}" in result.out


def test_evaluate_chooses_checkpoints(copy):
    losses = {row["step"]: row["validation_loss"] for row in rows(copy) if row["step"] in steps(copy)}
    best = min(losses, key=losses.__getitem__)
    chosen = {}
    for checkpoint, step in [("last", 40), ("best", best), ("30", 30)]:
        assert run("evaluate", copy, "--checkpoint", checkpoint, "--output", copy / "other.json").code == 0
        chosen[checkpoint] = report(copy, "other.json")
        assert chosen[checkpoint]["checkpoint"] == step
    assert chosen["last"]["transductive"] != chosen["30"]["transductive"]
    assert report(copy)["checkpoint"] == 40  # --output leaves the report alone


def test_evaluate_takes_tasks_steps_split_and_seed(copy):
    before = report(copy)

    def measure(*options):
        result = run("evaluate", copy, *options)
        assert result.code == 0
        (path,) = re.findall(r"^the whole report is (.*)$", result.out, re.MULTILINE)
        return json.loads(Path(path).read_text()), json.loads(Path(path).read_text())["transductive"]["loss"]["mean"]

    assert measure()[0] == before
    default = before["transductive"]["loss"]["mean"]
    found, more = measure("--num-tasks", 16, "--steps", 4)
    assert (found["num_tasks"], found["inner_steps"], len(more)) == (16, 4, 5)
    assert more[:3] != default
    _, longer = measure("--steps", 4)
    assert longer[:3] == pytest.approx(default, rel=1e-5)
    found, train = measure("--split", "train")
    assert found["split"] == "train"
    assert train != default
    found, other = measure("--seed", 6)
    assert found["seed"] == 6
    assert other != default
    assert report(copy) == before, "an evaluation with other options may not replace the run's own"


def test_evaluate_on_other_tasks(copy, tmp_path):
    wide = small(tmp_path, "wide.py", SMALL.replace("test=Shots(shots=3", "test=Shots(shots=9"))
    before = report(copy)
    assert run("evaluate", copy, "--on", wide).code == 0
    found = report(copy, "evaluation_on_wide.json")
    assert found["on"] == str(wide)
    assert found["transductive"]["loss"]["mean"][0] != before["transductive"]["loss"]["mean"][0]
    assert report(copy) == before


def test_two_devices_measure_the_same_tasks(copy):
    for devices in (1, 2, 8):
        assert run("evaluate", copy, "--devices", devices, "--output", copy / f"{devices}.json").code == 0
    one, *others = (report(copy, f"{devices}.json")["transductive"]["loss"] for devices in (1, 2, 8))
    for other in others:
        for key in ("mean", "ci95", "median"):
            assert other[key] == pytest.approx(one[key], rel=1e-5)


def test_two_devices_train_alike_and_a_change_is_told(trained, config, tmp_path):
    directory = tmp_path / "run"
    result = run("train", config, "--workdir", directory, "--seed", 5, "--devices", 2)
    assert result.code == 0
    assert f"training in {directory} on 2 cpu devices" in result.out
    assert report(directory, "environment.json")["devices"] == 2
    a, b = state(trained[0]), state(directory)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=name)
    result = run("train", config, "--workdir", directory, "--seed", 5, "--devices", 1)
    assert result.code == 0
    assert result.err.splitlines() == [
        "metajax: warning: the run began on 2 devices and continues on 1: results are the same up to rounding"
    ]


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plot_a_sinusoid(copy, kind, magic):
    result = run("plot", copy, "--format", kind)
    assert (result.code, result.err) == (0, "")
    names = ["learning_curve", "adaptation", "fits"]
    assert result.out.splitlines() == [str(copy / "plots" / f"{name}.{kind}") for name in names]
    for name in names:
        content = (copy / "plots" / f"{name}.{kind}").read_bytes()
        assert content.startswith(magic)
        assert len(content) > 3000


def test_a_style_file_in_the_current_folder_is_ignored(copy, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "matplotlibrc").write_text("figure.dpi: {\nfont.size 77\nno such thing\n")
    monkeypatch.chdir(here)
    result = finish(spawn("plot", copy, env={"PYTHONPATH": str(Path(metajax.__file__).parents[1])}))
    assert (result.code, result.err) == (0, "")


def test_configs_lists_and_shows():
    result = run("configs")
    assert (result.code, result.err) == (0, "")
    listed = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.out.splitlines())
    assert list(listed) == presets.names()
    assert listed["sinusoid"].startswith("Sinusoid regression")
    result = run("configs", "sinusoid")
    assert result.code == 0
    assert result.out.startswith("Sinusoid regression")
    assert re.search(r"--baseline none\|pretrained\|oracle \(default: none\)\n      A baseline instead", result.out)
    assert str(presets.find("sinusoid")) in result.out


def test_data_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path))
    result = run("data", "list")
    assert (result.code, result.err) == (0, "")
    for name in ("omniglot", "fashion_mnist"):
        assert re.search(rf"^{name} +not prepared", result.out, re.MULTILINE)
    assert re.search(r"^folder ", result.out, re.MULTILINE)
    assert str(tmp_path) in result.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["train", "evaluate", "plot", "data", "configs", "--version"]),
        (["train"], ["CONFIG", "--workdir"]),
        (["train", "sinusoid"], ["--training.steps", "--inner.learning-rate", "--workdir", "--devices"]),
        (["evaluate"], ["WORKDIR", "--checkpoint", "--on", "--split", "--num-tasks"]),
        (["plot"], ["WORKDIR", "--format"]),
        (["data"], ["list", "prepare", "inspect"]),
        (["data", "list"], ["--data-dir"]),
        (["data", "prepare"], ["NAME", "--source"]),
        (["data", "inspect"], ["NAME", "--split", "--strict"]),
        (["configs"], ["NAME"]),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(words, named, flag):
    result = run(*words, flag)
    assert (result.code, result.err) == (0, "")
    for word in named:
        assert word in result.out


@pytest.mark.parametrize(
    "words",
    [
        *[["train", name] for name in ("sinusoid", "fc100", "folder", "varied")],
        *[["evaluate"], ["plot"], ["bench"], ["tune", "sinusoid"], ["data", "list"], ["data", "prepare"]],
        *[["data", "inspect"], ["configs"]],
    ],
)
def test_help_shows_a_default_once(words):
    result = run(*words, "--help")
    assert result.code == 0
    for option in re.split(r"\s--", re.sub(r"[│\s]+", " ", result.out)):
        assert option.count("(default") <= 1, option


def test_version_in_a_process_of_its_own():
    expected = f"metajax {__version__}\n"
    assert finish(spawn("--version")) == (0, expected, "")
    script = Path(sys.executable).with_name("metajax")
    if script.exists():
        assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout == expected


def test_files_of_the_current_folder_are_not_imported(tmp_path):
    for name in ("jax.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit('of the current folder')")
    package = Path(metajax.__file__).parents[1]
    process = spawn("configs", cwd=tmp_path, env={"PYTHONPATH": str(package)})
    result = finish(process)
    assert (result.code, result.err) == (0, "")
    assert "sinusoid" in result.out


def test_no_words_show_the_usage():
    result = run()
    assert result.code == 2
    assert result.out.startswith("usage: metajax COMMAND")


def test_a_reader_that_goes_away_is_no_error():
    process = spawn("configs")
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == ""
    process.stderr.close()


def test_progress_on_a_terminal(config, tmp_path):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    options = {"stdin": follower, "stdout": follower, "stderr": follower, "text": False}
    process = spawn("train", config, "--workdir", tmp_path / "run", env={"TERM": "xterm"}, **options)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:  # the end
                raise
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    final = rows(tmp_path / "run")[-1]["loss"]
    assert re.search(rf"40/40 .*[\d,]+ tasks/s  loss {final:.4f}", text)
    assert "Traceback" not in text


def test_an_error_on_a_terminal_is_the_same_line(tmp_path):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    options = {"stdin": follower, "stdout": follower, "stderr": follower, "text": False}
    process = spawn("train", "sinusoid", "--training.stepz", "3", env={"TERM": "xterm"}, **options)
    os.close(follower)
    assert process.wait(timeout=60) == 2
    text = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert text.startswith("metajax: error: ")
    assert "--training.stepz" in text
    assert "did you mean --training.steps?" in text
    assert len(text.splitlines()) == 1


def test_tensorflow_is_not_needed(config, tmp_path):
    """A `tensorflow` that ends the process is on the path, and hidden from imports as if it were absent."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        "    absent = name.split('.')[0] in ('tensorflow', 'tf_keras', 'keras')\n"
        "    return None if absent else find(name, path, target)\n"
        "PathFinder.find_spec = staticmethod(find_spec)\n"
    )
    (tmp_path / "hook" / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    script = f"""
try:
    import tensorflow
except ImportError:
    pass
else:
    raise SystemExit("the hook does not work")
import sys
from metajax.cli import main
code = main(["train", {str(config)!r}, "--workdir", "run"]) or main(["evaluate", "run"])
code = code or main(["plot", "run"]) or main(["data", "list"])
assert "tensorflow" not in sys.modules
raise SystemExit(code)
"""
    env = {**os.environ, **fast_environment(), "PYTHONPATH": str(tmp_path / "hook"), "METAJAX_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "plots" / "fits.png").is_file()


COUNTED = """
import collections, json, sys
import jax
from metajax.cli import main

events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
code = main(sys.argv[1:])
print(json.dumps(events))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path):
    variables = {**os.environ, **fast_environment(), "METAJAX_DATA_DIR": str(tmp_path / "data")}
    del variables["JAX_COMPILATION_CACHE_DIR"]
    events, kept = [], []
    for name in ("first", "second"):
        command = [sys.executable, "-c", COUNTED, "train", small(tmp_path), "--workdir", tmp_path / name]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        events.append(json.loads(done.stdout.splitlines()[-1]))
        kept.append(sorted(path.name for path in (tmp_path / "data" / "compiled").glob("*/*-cache")))
    assert events[0]["cache_misses"] > 0
    assert "cache_misses" not in events[1]
    assert events[1]["cache_hits"] == events[1]["compile_requests_use_cache"] >= events[0]["cache_misses"]
    assert kept[0] == kept[1] != [], "in a folder of the kind of machine"
    assert_same_run(tmp_path / "first", tmp_path / "second")
