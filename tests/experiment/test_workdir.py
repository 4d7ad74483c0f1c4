"""Work directories: settings and back, metrics, events, what a kill leaves behind."""

import dataclasses
import importlib.metadata
import json
import os
import re
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import SMALL, read_events, small
from tensorboardX.proto.event_pb2 import SessionLog

import metajax
from metajax.core.evaluator import Report
from metajax.errors import UserError
from metajax.experiment import Experiment, FolderConfig, config_code, metrics, presets, workdir
from metajax.report import plots
from metajax.system import files

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


@pytest.fixture(autouse=True)
def _own_records(tmp_path_factory, monkeypatch):
    """Keep the records of begun runs apart from the user's."""
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path_factory.mktemp("data")))


def experiment_of(folder: Path, text: str = SMALL) -> Experiment:
    return presets.load(str(small(folder, text=text)))


@pytest.mark.parametrize("name", presets.names())
def test_every_config_survives_json(tmp_path, name):
    experiment = presets.load(name)
    text = json.dumps(workdir.to_json(experiment))
    assert workdir.from_json(json.loads(text), tmp_path) == experiment


def test_paths_and_nones_survive_json(tmp_path):
    for task in (FolderConfig(source=tmp_path / "images"), FolderConfig()):
        assert workdir.from_json(json.loads(json.dumps(workdir.to_json(task))), tmp_path) == task


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
    first, second, copied = (run / "config.py").read_text().split("\n", 2)
    assert first == f'# A copy of "{tmp_path / "small.py"}".'
    assert second.startswith("# This copy has the settings before overrides")
    assert "config.json" in second
    assert copied == SMALL
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
    same = ": results are the same up to rounding"
    assert version == f"jax 0.1.2 is now {jax.__version__}{same}"
    assert device.startswith("tpu: v5 is now cpu")
    assert count == f"the run began on 1 devices and continues on 2{same}"
    assert precision == f"the run began with matrix products in tensorfloat32 and continues in bfloat16{same}"
    assert chunk == f"execution.chunk_size is None in the run and 2 now{same}"
    assert workdir.differences(tmp_path / "run", now) == [], "nothing that a resume should refuse"


@pytest.mark.parametrize("last", ["environment.json", "config.py", "config.json"])
def test_a_kill_while_it_is_made_leaves_nothing_in_the_way(tmp_path, monkeypatch, last):
    experiment = experiment_of(tmp_path)

    class Killed(BaseException):
        pass

    replace = os.replace

    def stop_at(partial, path):
        if path.name == last:
            raise Killed
        replace(partial, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at)
        patch.setattr(Path, "unlink", lambda path, missing_ok: None)  # a killed process tidies nothing
        with pytest.raises(Killed):
            workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    assert not workdir.is_workdir(tmp_path / "run")
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    assert workdir.load_experiment(tmp_path / "run") == experiment
    assert (tmp_path / "run" / "config.py").read_text().endswith(SMALL)


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
    files.write_json(path, {"mean": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space") as caught:
            files.write_json(path, {"mean": 2})
    assert caught.value.filename == str(path)
    assert files.read_json(path) == {"mean": 1}
    assert list(tmp_path.iterdir()) == [path], "and no temporary file"


def test_differences_name_the_field_and_both_values(tmp_path):
    one = experiment_of(tmp_path)
    two = dataclasses.replace(one, seed=3, inner=dataclasses.replace(one.inner, learning_rate=0.5))
    workdir.create(tmp_path / "run", one, tmp_path / "small.py", devices=1)
    assert workdir.differences(tmp_path / "run", one) == []
    assert workdir.differences(tmp_path / "run", two) == [
        "inner.learning_rate is 0.01 in the run and 0.5 now",
        "seed is 0 in the run and 3 now",
    ]
    glyphs = dataclasses.replace(one, task=presets.load("glyphs").task)
    lines = workdir.differences(tmp_path / "run", glyphs)
    assert "task is metajax.tasks.sinusoid:SinusoidConfig in the run and metajax.tasks.glyphs:GlyphsConfig now" in lines
    assert "task.ways is absent in the run and 5 now" in lines


def test_metrics_are_appended_read_and_truncated(tmp_path):
    assert metrics.read(tmp_path) == []
    lines = [{"step": step, "loss": 0.1 + step, "validation_loss": None} for step in (5, 10, 15)]
    for line in lines:
        metrics.append(tmp_path, line)
    assert metrics.read(tmp_path) == lines
    whole = (tmp_path / "metrics.jsonl").read_bytes()
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
            config_code.load_module(path)
        path.write_text("x = 1\ny = (\n")
        with pytest.raises(UserError, match=re.escape(f"{path}:2: SyntaxError")):
            config_code.load_module(path)


@pytest.mark.parametrize(
    "text", ['{"class": "metajax.experiment', "[1, 2]", "{}", "null", "[" * 9999, "\xff", "1" * 9999]
)
def test_a_config_that_holds_no_experiment_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'config.json'} is damaged")):
        workdir.load_experiment(tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"class": "metajax.models.mlp:Nothing"}, "Nothing"),
        ({"class": 3}, "does not fit"),
        ({"class": "metajax.errors:UserError"}, "not a type of settings"),
        ({"class": "metajax.models.mlp:nnx.Module"}, "not a type of settings"),
        ({"class": "metajax.nowhere:MLP"}, "metajax.nowhere"),
        ({"class": "metajax.models.mlp:MLPConfig", "depth": 3}, "depth"),
        ({"class": "metajax.models.mlp:MLPConfig", "hidden": [0]}, "model.hidden must be at least 1"),
        ({"class": "metajax.models.mlp:MLPConfig", "hidden": ["a"]}, "model.hidden must be a number, got 'a'"),
        ({"class": "metajax.models.mlp:MLPConfig", "hidden": [1.5]}, "model.hidden must be tuple"),
        ("x", "model must be settings of a model, got 'x'"),
        (None, "model must be"),
        ([], "model must be"),
    ],
)
def test_a_wrong_value_in_a_config_is_refused_by_name(tmp_path, model, said):
    workdir.create(tmp_path / "run", experiment_of(tmp_path), tmp_path / "small.py", devices=1)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": model}))
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        workdir.load_experiment(tmp_path / "run")
    assert str(path) in str(caught.value)


def test_a_run_of_an_older_version_is_refused_in_one_line(tmp_path):
    experiment = experiment_of(tmp_path)
    run = tmp_path / "run"
    workdir.create(run, experiment, tmp_path / "small.py", devices=1)
    path = run / "config.json"
    path.write_text(path.read_text().replace("metajax.models.mlp:MLPConfig", "metajax.experiment.models:MLP"))
    environment = json.loads((run / "environment.json").read_text())
    environment["versions"]["metajax"] = "0.1.0"
    (run / "environment.json").write_text(json.dumps(environment))
    expected = (
        f"{path} is from another version of metajax: this version has no settings of type "
        "metajax.experiment.models:MLP. Use the version that began the run (0.1.0), "
        "or begin it again in another --workdir"
    )
    for read in (workdir.load_experiment, workdir.training_steps, lambda run: workdir.differences(run, experiment)):
        with pytest.raises(UserError) as caught:
            read(run)
        assert str(caught.value) == expected
    (run / "environment.json").unlink()
    with pytest.raises(UserError, match=r"the version that began the run, or begin it again in another --workdir$"):
        workdir.load_experiment(run)


@pytest.mark.parametrize("name", ["nowhere:MLP", "os:getcwd", "subprocess:Popen", "metajax_config:Mine"])
def test_no_module_is_imported_by_name(tmp_path, monkeypatch, name):
    """Neither a module that a config.json names, nor a config.py that this user did not write."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nowhere.py").write_text("raise AssertionError('imported')")
    workdir.create(tmp_path / "run", experiment_of(tmp_path), tmp_path / "small.py", devices=1)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"class": name}}))
    (tmp_path / "run" / "config.py").write_text("raise AssertionError('executed')")
    with pytest.raises(UserError, match=r"config\.py, and there is no record that you began a run with it.*--trust"):
        workdir.load_experiment(tmp_path / "run")
    (tmp_path / "run" / "config.py").write_text("import os, subprocess")
    with pytest.raises(UserError, match="does not fit"):
        workdir.load_experiment(tmp_path / "run", trust=True)
    (tmp_path / "run" / "config.py").unlink()
    with pytest.raises(UserError, match=rf"{name}, but .*config\.py, which defines it, is missing"):
        workdir.load_experiment(tmp_path / "run")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"devices": "two"}', "[" * 9999, None])
def test_without_its_environment_a_run_goes_on_with_a_warning(tmp_path, text):
    experiment = experiment_of(tmp_path)
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1, data={"train": "5"})
    path = tmp_path / "run" / "environment.json"
    assert workdir.unknown_beginning(tmp_path / "run") == ""
    assert workdir.data_differs(tmp_path / "run", {"train": "6"}) == "train had 5 and has 6 now"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    (warning,) = workdir.changes_since(tmp_path / "run", experiment, 1)
    assert warning.startswith(str(path))
    assert warning.endswith("the versions, devices and data that the run began with are unknown")
    assert workdir.data_differs(tmp_path / "run", {"train": "6"}) == ""
    assert workdir.trained_on(tmp_path / "run") == {}


def test_a_field_that_an_older_version_did_not_have_has_its_default(tmp_path):
    experiment = experiment_of(tmp_path, OWN)
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["inner"]["batch_size"], config["task"]["slope"]["high"], config["execution"]["remat"]
    path.write_text(json.dumps(config))
    assert workdir.differences(tmp_path / "run", experiment) == []
    assert workdir.changes_since(tmp_path / "run", experiment, 1) == []
    assert workdir.to_json(workdir.load_experiment(tmp_path / "run")) == workdir.to_json(experiment)


def test_what_is_no_setting_is_refused_by_name(tmp_path):
    text = OWN.replace("    low: float = -1.0", "    low: object = len")
    with pytest.raises(UserError, match=r"config\.task\.slope\.low is <built-in function len>: settings are numbers"):
        workdir.create(tmp_path / "run", experiment_of(tmp_path, text), tmp_path / "small.py", devices=1)
    assert not (tmp_path / "run").exists()


def test_lists_and_paths_survive_in_own_types(tmp_path):
    fields = "    low: float = -1.0\n    each: list[int] = dataclasses.field(default_factory=lambda: [1, 2])\n"
    fields += "    places: tuple[Path, ...] = (Path('a'), Path('b'))\n"
    fields += "    by: dict[str, int] = dataclasses.field(default_factory=dict)"
    experiment = experiment_of(tmp_path, OWN.replace("    low: float = -1.0", fields))
    workdir.create(tmp_path / "run", experiment, tmp_path / "small.py", devices=1)
    slope = workdir.load_experiment(tmp_path / "run").task.slope
    assert (slope.each, slope.places, slope.by) == ([1, 2], (Path("a"), Path("b")), {})


def test_a_name_that_is_not_utf_8(tmp_path):
    name = os.fsdecode(b"b\xff")
    files.write_json(tmp_path / "x.json", {"path": name, "sign": "±"})
    assert files.read_json(tmp_path / "x.json") == {"path": name, "sign": "±"}
    assert "±" in (tmp_path / "x.json").read_text()
    with pytest.raises(UserError, match=r"b\\udcff' is not a name in UTF-8; choose another --workdir"):
        workdir.check_writable(tmp_path / name)


def test_a_config_in_another_encoding(tmp_path):
    path = tmp_path / "small.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\n# Andr\xe9\n" + SMALL.encode())
    experiment = presets.load(str(path))
    workdir.create(tmp_path / "run", experiment, path, devices=1)
    assert "# André" in (tmp_path / "run" / "config.py").read_text()
    assert presets.load(str(tmp_path / "run" / "config.py")) == experiment


LINES = [{"step": step, "loss": 0.5 + step} for step in (5, 10, 15, 20)]


def metrics_file(folder: Path, *, damage: int | None = None, text: bytes = b'cut{"st/\n', end: bytes = b"") -> Path:
    """A metrics file of `LINES`, with a damaged one in place of line `damage`."""
    lines = [json.dumps(line).encode() + b"\n" for line in LINES]
    if damage is not None:
        lines[damage - 1] = text
    (folder / "metrics.jsonl").write_bytes(b"".join(lines) + end)
    return folder / "metrics.jsonl"


BAD_LINES = [
    *[b'cut{"st/', b"", b"3", b"{}", b"[1]", b"null", b'{"step": "x"}', b'{"step": null}', b'{"step": [1]}'],
    *[b'{"step": true}', b'{"step": 1.5}', b'{"step": -1}', b'{"step": 5, "loss": "x"}', b'{"step": 5, "loss": {}}'],
    *[b"\xff\x00", b'{"step": ' + b"9" * 5000 + b"}", b'{"step": 5, "loss": ' + b"9" * 400 + b"}", b"[" * 99999],
]


@pytest.mark.parametrize("text", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_damaged_line_of_the_metrics_costs_that_line_alone(tmp_path, caplog, text):
    path = metrics_file(tmp_path, damage=2, text=text + b"\n")
    before = path.read_bytes()
    others = [LINES[0], *LINES[2:]]
    assert metrics.read(tmp_path) == others
    metrics.truncate(tmp_path, 20)  # nothing follows
    assert path.read_bytes() == before
    assert [each.getMessage() for each in caplog.records] == [f"{path}:2: 1 damaged line is left out"] * 2
    caplog.clear()
    metrics.truncate(tmp_path, 15)
    assert metrics.read(tmp_path) == others[:-1]
    old = tmp_path / "metrics.jsonl.damaged_1"
    assert old.read_bytes() == before
    assert [each.getMessage() for each in caplog.records] == [
        f"{path}:2: 1 damaged line is left out",
        f"the file as it was is {old}",
    ]
    plots.learning_curve(metrics.read(tmp_path))


def test_several_damaged_lines_are_counted_and_no_file_is_lost(tmp_path, caplog):
    path = metrics_file(tmp_path, damage=1, end=b"x\ny\n")
    (tmp_path / "metrics.jsonl.damaged_1").write_text("earlier")
    metrics.truncate(tmp_path, 10)
    assert f"{path}:1: 3 damaged lines are left out" in caplog.text
    assert metrics.read(tmp_path) == [LINES[1]]
    assert (tmp_path / "metrics.jsonl.damaged_1").read_text() == "earlier"
    assert (tmp_path / "metrics.jsonl.damaged_2").exists()


@pytest.mark.parametrize("cut", [b'{"ste', b'{"step": 25', b"\x00\x00"])
def test_a_last_line_that_was_cut_short_is_written_again(tmp_path, caplog, cut):
    path = metrics_file(tmp_path, end=cut)
    assert metrics.read(tmp_path) == LINES
    metrics.truncate(tmp_path, 20)
    metrics.append(tmp_path, {"step": 25})
    assert metrics.read(tmp_path) == [*LINES, {"step": 25}]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert caplog.text == "", "nothing was lost: the line is later than the checkpoint"
    path.write_bytes(path.read_bytes()[:-5])
    metrics.truncate(tmp_path, 25)
    assert f"{path}:5: 1 damaged line is left out" in caplog.text, "here something was"


def test_a_last_line_without_its_end_is_whole(tmp_path):
    path = metrics_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    metrics.truncate(tmp_path, 15)
    assert metrics.read(tmp_path) == LINES[:-1]


def test_a_line_after_a_last_line_without_its_end_is_a_line_of_its_own(tmp_path):
    path = metrics_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    metrics.truncate(tmp_path, LINES[-1]["step"])
    metrics.append(tmp_path, {"step": 99, "loss": 0.5})
    assert metrics.read(tmp_path) == [*LINES, {"step": 99, "loss": 0.5}]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_damaged(tmp_path, caplog, monkeypatch, end):
    monkeypatch.setattr(files, "_MOST_LINE_BYTES", 100)
    monkeypatch.setattr(files.read_file, "__defaults__", (100,))  # the limit of other files does not hold here
    long = b'{"step": 25, "loss": 0.5' + b" " * 300 + b"}"
    path = metrics_file(tmp_path, end=long + end)
    assert path.stat().st_size > 300
    assert metrics.read(tmp_path) == LINES
    assert [each.getMessage() for each in caplog.records] == [f"{path}:5: 1 damaged line is left out"]
    before = path.read_bytes()
    metrics.truncate(tmp_path, 15)
    assert (tmp_path / "metrics.jsonl.damaged_1").read_bytes() == before
    metrics.append(tmp_path, {"step": 17})
    assert metrics.read(tmp_path) == [*LINES[:-1], {"step": 17}]


def test_metrics_of_a_long_run_need_little_memory(tmp_path):
    line = b'{"step": 1, "loss": 0.5, "accuracy": 0.25, "validation_loss": null}\n'
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        for _ in range(100):
            file.write(line * 1000)
    tracemalloc.start()
    try:
        assert sum(row["step"] for row in metrics.rows(tmp_path)) == 100_000
        metrics.truncate(tmp_path, 0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_missing_metrics_are_told(tmp_path, caplog):
    metrics.truncate(tmp_path, 0)
    assert caplog.text == ""
    metrics.truncate(tmp_path, 20)
    assert "metrics.jsonl is missing: the metrics up to step 20 are lost" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_metrics_of_a_library_user(tmp_path, kind):
    """Paths may be texts, folders may be missing, and numbers may be those of JAX and NumPy."""
    folder = kind(tmp_path / "new" / "run")
    row = {"step": np.int64(3), "loss": jnp.float32(0.5), "half": jnp.bfloat16(2), "n": np.int32(7), "bad": jnp.nan}
    metrics.append(folder, row)
    assert metrics.read(folder) == [{"step": 3, "loss": 0.5, "half": 2.0, "n": 7, "bad": None}]
    events = metrics.Events(folder)
    events.add(row)
    events.close()
    (_, event) = read_events(Path(folder))
    assert [(value.tag, value.simple_value) for value in event.summary.value] == [
        ("loss", 0.5),
        ("half", 2.0),
        ("n", 7.0),
    ]
    with pytest.raises(TypeError, match=r"loss must be a scalar, got float32\[3\]"):
        metrics.append(folder, {"step": 4, "loss": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"note must be a scalar, got <U1\[\]"):
        metrics.append(folder, {"step": 4, "note": "x"})
    with pytest.raises(TypeError, match="a row of metrics has a step, got only loss"):
        metrics.append(folder, {"loss": 4})


@pytest.mark.parametrize("kind", [str, Path])
def test_plots_of_a_library_user(tmp_path, kind):
    rows = [{"step": 1, "loss": np.float32(2)}, {"step": 2, "loss": None, "validation_loss": float("nan")}]
    for ending, magic in {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items():
        path = kind(tmp_path / "new" / f"curve.{ending}")
        plots.save(plots.learning_curve(rows), path)
        assert Path(path).read_bytes().startswith(magic)
    assert len(list((tmp_path / "new").iterdir())) == 3, "and no temporary files"
    with pytest.raises(ValueError, match="no row of the metrics has a loss"):
        plots.learning_curve([{"step": 1}])
    with pytest.raises(ValueError, match="its loss is not a number"):
        plots.learning_curve([{"step": 1, "loss": "x"}])


def test_a_report_of_tasks_that_diverged_is_drawn():
    loss = {"mean": [1.0, None], "ci95": [None, None], "median": [1.0, None]}
    report = {"inner_steps": 1, "num_tasks": 1, "transductive": {"diverged": 1, "loss": loss}}
    (axes,) = plots.adaptation(Report.from_json(report)).axes
    assert axes.get_legend().get_title().get_text() == "1 task"
    for wrong in ([], {}, {**report, "inner_steps": 2}, {**report, "transductive": {"diverged": 1}}):
        with pytest.raises(ValueError, match=r"report|no mean"):
            Report.from_json(wrong)
