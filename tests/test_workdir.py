"""Work directories: settings and back, metrics, events, what a kill leaves behind."""

import dataclasses
import importlib.metadata
import json
import re
import struct
from pathlib import Path

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from test_cli_helpers import SMALL, small

import metajax
from metajax import metrics, workdir
from metajax.cli import configs
from metajax.errors import UserError
from metajax.experiment import Experiment, Folder

OWN = (
    SMALL
    + """
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    low: float = -1.0
    high: float = float("inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    slope: Range = Range()
    source: Path | None = None
    names: tuple[str, ...] = ("a", "b")

    def __post_init__(self):
        assert isinstance(self.slope, Range)

    def tasks(self, data_dir):
        raise NotImplementedError


config = dataclasses.replace(config, task=Lines(source=Path("x/y")))
"""
)


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


def experiment_of(folder: Path, text: str = SMALL) -> Experiment:
    return configs.load(str(small(folder, text=text)))


@pytest.mark.parametrize("name", configs.names())
def test_every_config_survives_json(tmp_path, name):
    experiment = configs.load(name)
    text = json.dumps(workdir.to_json(experiment, tmp_path))
    assert workdir.from_json(json.loads(text), tmp_path) == experiment


def test_paths_and_nones_survive_json(tmp_path):
    for task in (Folder(source=tmp_path / "images"), Folder()):
        assert workdir.from_json(json.loads(json.dumps(workdir.to_json(task, tmp_path))), tmp_path) == task


def test_types_of_the_config_file_come_from_its_copy(tmp_path):
    experiment = experiment_of(tmp_path, OWN)
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    (tmp_path / "small.py").unlink()
    again = workdir.load_experiment(tmp_path / "run")
    assert dataclasses.asdict(again) == dataclasses.asdict(experiment)
    assert again.task.source == Path("x/y")
    assert type(again.task).__module__ == "metajax_config"
    assert type(again.task.slope) is type(again.task).__dataclass_fields__["slope"].default.__class__


def test_create_writes_config_source_and_environment(tmp_path):
    experiment = experiment_of(tmp_path)
    workdir.create(tmp_path / "a" / "run", experiment, tmp_path / "small.py", devices=3)
    run = tmp_path / "a" / "run"
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "config.py", "environment.json"]
    assert (run / "config.py").read_text() == SMALL
    assert workdir.load_experiment(run) == experiment
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["metajax"] == metajax.__version__
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert environment["versions"][package] == importlib.metadata.version(package)
    assert environment["device"].startswith(jax.devices()[0].platform)
    assert environment["devices"] == 3
    assert workdir.changes_since(run, experiment, 3) == []


def test_changes_of_versions_and_devices_are_told(tmp_path):
    experiment = experiment_of(tmp_path)
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    path = tmp_path / "run" / "environment.json"
    environment = json.loads(path.read_text())
    environment["versions"]["jax"] = "0.1.2"
    environment["device"] = "tpu: v5"
    environment["precision"] = "tensorfloat32"
    path.write_text(json.dumps(environment))
    now = dataclasses.replace(experiment, execution=dataclasses.replace(experiment.execution, chunk_size=2))
    with jax.default_matmul_precision("bfloat16"):
        version, device, count, precision, chunk = workdir.changes_since(tmp_path / "run", now, 2)
    assert version == f"jax 0.1.2 is now {jax.__version__}"
    assert device.startswith("tpu: v5 is now cpu")
    assert count == "the run began on 1 devices and goes on on 2"
    assert precision == "the run began with products in tensorfloat32 and goes on in bfloat16"
    assert chunk == "execution.chunk_size is None in the run and 2 now"
    assert workdir.differences(experiment, now, tmp_path) == [], "nothing that a resume should refuse"


@pytest.mark.parametrize("last", ["environment.json", "config.py", "config.json"])
def test_a_kill_while_it_is_made_leaves_nothing_in_the_way(tmp_path, monkeypatch, last):
    experiment = experiment_of(tmp_path)

    class Killed(BaseException):
        pass

    write = Path.write_text

    def stop_at(path, text):
        write(path, text[: len(text) // 2])
        if path.name.startswith(last):
            raise Killed
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", stop_at)
        with pytest.raises(Killed):
            workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    assert not workdir.is_workdir(tmp_path / "run")
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    assert workdir.load_experiment(tmp_path / "run") == experiment
    assert (tmp_path / "run" / "config.py").read_text() == SMALL


@pytest.mark.parametrize("name", ["thesis.tex", "config.py"])
def test_a_folder_of_the_user_is_left_alone(tmp_path, name):
    experiment = experiment_of(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("years of work")
    with pytest.raises(UserError, match="mine is not empty and not a work directory"):
        workdir.create(tmp_path / "mine", experiment, tmp_path / "small.py", devices=1)
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["years of work"]


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    workdir.write_json(path, {"mean": 1})
    write = Path.write_text

    def half(path, text):
        write(path, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space"):
            workdir.write_json(path, {"mean": 2})
    assert workdir.read_json(path) == {"mean": 1}


def test_differences_name_the_field_and_both_values(tmp_path):
    one = experiment_of(tmp_path)
    two = dataclasses.replace(one, seed=3, inner=dataclasses.replace(one.inner, learning_rate=0.5))
    assert workdir.differences(one, one, tmp_path) == []
    assert workdir.differences(one, two, tmp_path) == [
        "inner.learning_rate is 0.01 in the run and 0.5 now",
        "seed is 0 in the run and 3 now",
    ]
    glyphs = dataclasses.replace(one, task=configs.load("glyphs_maml_5w1s").task)
    lines = workdir.differences(one, glyphs, tmp_path)
    assert "task is metajax.experiment.tasks:Sinusoid in the run and metajax.experiment.tasks:Glyphs now" in lines
    assert "task.ways is absent in the run and 5 now" in lines


def test_metrics_are_read_as_far_as_they_are_whole(tmp_path):
    assert metrics.read(tmp_path) == []
    lines = [{"step": step, "loss": 0.1 + step, "validation_loss": None} for step in (5, 10, 15)]
    for line in lines:
        metrics.append(tmp_path, line)
    assert metrics.read(tmp_path) == lines
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for damage in (whole[:-9], whole[:-20] + b"\xff\x00\n", whole + b'{"ste', whole + b"3\n", whole + b"{}\n"):
        (tmp_path / "metrics.jsonl").write_bytes(damage)
        found = metrics.read(tmp_path)
        assert found == lines[: len(found)]
        assert len(found) >= 2
    metrics.truncate(tmp_path, 10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    metrics.truncate(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_events_hold_scalars_and_a_resumed_run_drops_what_it_does_again(tmp_path):
    for began, last in [(0, 15), (10, 20)]:
        events = metrics.Events(tmp_path, began)
        for step in range(began + 5, last + 1, 5):
            events.add({"step": step, "loss": step / 2, "validation_loss": None})
        events.flush()
        assert read_events(tmp_path)[-1].step == last  # before it is closed
        events.close()
    first, *found = read_events(tmp_path)
    assert first.file_version == "brain.Event:2"
    told = [
        (event.step, "start" if event.session_log.status == SessionLog.START else event.file_version or "loss")
        for event in found
    ]
    assert told == [
        *[(5, "loss"), (10, "loss"), (15, "loss")],
        *[(0, "brain.Event:2"), (11, "start"), (15, "loss"), (20, "loss")],
    ]
    values = [(value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert values == [("loss", step / 2) for step in (5, 10, 15, 15, 20)]


def test_a_config_file_that_fails_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "bad.py", Path("bad.py")):
        path.write_text("x = 1\ndef f():\n    return {}['nothing']\nf()\n")
        with pytest.raises(UserError, match=re.escape(f"{path}:3: KeyError: 'nothing'")):
            workdir.load_module(path)
        path.write_text("x = 1\ny = (\n")
        with pytest.raises(UserError, match=re.escape(f"{path}:2: SyntaxError")):
            workdir.load_module(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"class": "metajax.experiment', "damaged"),
        ("[1, 2]", "holds no experiment"),
        ("{}", "holds no experiment"),
        ('{"class": "metajax.experiment.models:MLP"}', "holds no experiment"),
        ('{"class": "metajax.experiment.models:Nothing"}', "Nothing"),
        ('{"class": "nowhere:MLP"}', "nowhere"),
        ('{"class": 3}', "does not fit"),
        ('{"class": "os:getcwd"}', "does not fit"),
        ('{"class": "metajax.experiment.models:MLP", "depth": 3}', "depth"),
        ('{"class": "metajax.experiment.models:MLP", "hidden": [0]}', "model.hidden must be at least 1"),
        ('{"class": "metajax.experiment.models:MLP", "hidden": ["a"]}', "model.hidden must be a number, got 'a'"),
    ],
)
def test_a_damaged_config_is_refused_by_name(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        workdir.load_experiment(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"devices": "two"}', None])
def test_a_damaged_environment_is_refused_by_name(tmp_path, text):
    if text is not None:
        (tmp_path / "environment.json").write_text(text)
    with pytest.raises(UserError, match=r"environment\.json"):
        workdir.changes_since(tmp_path, configs.load("sinusoid_maml"), 1)
