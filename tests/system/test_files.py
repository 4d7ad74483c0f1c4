"""Files that others may have prepared: no write through a link, no read of what is not a regular file."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from command_line import fails, run, small

from metajax.data.disk import resolve_data_dir
from metajax.errors import UserError
from metajax.experiment import checkpoints, metrics, workdir
from metajax.report import plots
from metajax.system import files


def special(path: Path, kind: str) -> None:
    """Put something that is no regular file in a file's place."""
    make = {"fifo": lambda: os.mkfifo(path), "folder": path.mkdir, "loop": lambda: path.symlink_to(path)}
    make |= {"device": lambda: path.symlink_to("/dev/zero"), "missing": lambda: path.symlink_to("gone")}
    make[kind]()


SPECIAL = ["fifo", "folder", "loop", "device", "missing"]


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "x.json"
    special(path, kind)
    for read in (files.read_bytes, files.read_json):
        with pytest.raises(UserError, match=r"x\.json"):
            read(path)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: no disk
    with pytest.raises(UserError, match="has 1,099,511,627,776 bytes, more than the 268,435,456 that are read"):
        files.read_bytes(path)


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "precious").write_text("years of work")
    link = tmp_path / "report.json"
    for target in ("precious", "gone"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        files.check_writable(link)
        files.write_json(link, {"a": 1})
        assert not link.is_symlink()
        assert files.read_json(link) == {"a": 1}
    assert (tmp_path / "precious").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "report.json"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / "report.json"
    special(path, kind)
    before = path.lstat().st_mode
    for write in (files.check_writable, lambda path: files.write_json(path, {})):
        with pytest.raises(UserError, match=r"report\.json is (a folder|not a regular file)"):
            write(path)
    assert path.lstat().st_mode == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_temporary_files_cannot_be_foreseen(tmp_path, monkeypatch):
    names = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda partial, path: (names.append(partial.name), replace(partial, path)))
    for _ in range(3):
        files.write_text(tmp_path / ("x" * 250), "text")  # a long name has room for no ending
    assert len(set(names)) == 3
    assert all(map(files.is_partial, names))
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / ("x" * 250)).stat().st_mode) == 0o666 & ~umask


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path):
    old, new, mine = (tmp_path / f".metajax-{n:016x}{end}" for n, end in enumerate([".partial", ".partial", ".mine"]))
    for path in (old, new, mine):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(mine, (0, 0))
    files.remove_stale_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, mine])


def test_writable_is_checked_where_the_nearest_folder_is(tmp_path):
    files.check_writable(tmp_path / "a" / "b" / "c.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "c.json", tmp_path / ("y" * 300), tmp_path / "nul\0"):
        with pytest.raises(UserError, match="cannot be written: "):
            files.check_writable(place)


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_nothing_is_appended_through_a_link(tmp_path, kind):
    (tmp_path / "precious").write_text("years of work")
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("precious") if kind == "link" else os.mkfifo(path)
    with pytest.raises(UserError, match=r"metrics\.jsonl is (a symbolic link|not a regular file)"):
        metrics.append(tmp_path, {"step": 1})
    assert (tmp_path / "precious").read_text() == "years of work"


def test_a_lock_file_keeps_its_content_and_is_no_link(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / ".run.lock"
    path.write_text("precious")
    with files.lock(path) as first, files.lock(path) as second:
        assert (first, second) == (True, False)
    with files.lock(path) as again:
        assert again
    assert path.read_text() == "precious"
    link = tmp_path / ".x.lock"
    link.symlink_to(path)
    with pytest.raises(UserError, match=r"\.x\.lock is a symbolic link"), workdir.lock(tmp_path / "x"):
        pass
    assert path.read_text() == "precious"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert run("train", small(folder), "--workdir", folder / "run").code == 0
    return folder / "run"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["plots", "checkpoints", "tensorboard"])
def test_a_folder_of_a_run_that_leads_elsewhere_is_refused(trained, tmp_path, name):
    shutil.copytree(trained, tmp_path / "copy")
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    (copy / name).rename(elsewhere) if (copy / name).exists() else elsewhere.mkdir()
    (elsewhere / "fits.png").write_text("precious")
    (copy / name).symlink_to(elsewhere)
    before = snapshot(elsewhere)
    words = ["plot", copy] if name == "plots" else ["train", trained.parent / "small.py", "--workdir", copy]
    fails(run(*words), f"{copy / name} is a symbolic link out of {copy}")
    assert snapshot(elsewhere) == before
    (copy / name).unlink()
    elsewhere.rename(copy / "inside")
    (copy / name).symlink_to("inside")  # is as good as a folder
    if name == "tensorboard":
        assert run(*words).code == 0


def test_no_checkpoint_is_written_or_removed_through_a_link(trained, tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "checkpoints"
    (elsewhere / "metrics").mkdir(parents=True)
    (elsewhere / "metrics" / "precious").write_text("")
    folder.mkdir()
    (folder / "7").symlink_to(elsewhere)
    assert checkpoints.saved_steps(folder) == []
    checkpoints.discard_after(folder, 0)
    checkpoints.prune(folder, 1)
    with pytest.raises(UserError, match="7 is a symbolic link"), checkpoints.open_checkpoints(folder):
        pass
    assert (elsewhere / "metrics" / "precious").exists()


def test_planted_names_of_older_versions_do_no_harm(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "copy" / "evaluation.json.partial").symlink_to(tmp_path / "precious")
    assert run("evaluate", tmp_path / "copy").code == 0
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("command", ["evaluate", "output", "plot", "train"])
def test_what_cannot_be_written_is_told_before_it_is_measured(trained, tmp_path, monkeypatch, command):
    shutil.copytree(trained, tmp_path / "copy")
    copy = tmp_path / "copy"
    (copy / "evaluation.json").unlink()
    (copy / "evaluation.json").mkdir()
    (copy / "plots").mkdir()
    (copy / "plots" / "learning_curve.png").mkdir()

    def measured(*args, **options):
        raise AssertionError("it was measured")

    monkeypatch.setattr("metajax.experiment.run.evaluator", measured)
    monkeypatch.setattr("metajax.cli.plot.build", measured)
    monkeypatch.setattr("metajax.experiment.run.build", measured)
    words = {
        "evaluate": ["evaluate", copy],
        "output": ["evaluate", copy, "--output", copy / "evaluation.json"],
        "plot": ["plot", copy],
        "train": ["train", trained.parent / "small.py", "--workdir", copy],
    }[command]
    name = "learning_curve.png" if command == "plot" else "evaluation.json"
    fails(run(*words), f"{name} is a folder, not a file")


def test_a_plot_that_is_cut_short_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    figure = plots.learning_curve([{"step": 1, "loss": 2.0}])
    plots.save(figure, path)
    before = path.read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        plots.save(figure, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["--workdir=~/one", "~/one"])
def test_the_home_folder_behind_an_equals_sign(trained, tmp_path, monkeypatch, how):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(trained, home / "one")
    shutil.copy(trained.parent / "small.py", home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    if how.startswith("--"):
        result = run("train", "~/small.py", how)
        assert "is trained, to step 40" in result.out
    else:
        result = run("evaluate", how, "--output=~/report.json", "--on=~/small.py")
        assert (home / "report.json").is_file()
    assert result.code == 0, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_no_more_checkpoints_than_asked_for_stay_after_a_kill(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    folder = tmp_path / "copy" / "checkpoints"
    kept = checkpoints.saved_steps(folder)
    for step in (1, 2):  # neither the best nor among the last
        shutil.copytree(folder / "40", folder / str(step))
        shutil.rmtree(folder / str(step) / "metrics")
    assert run("train", trained.parent / "small.py", "--workdir", tmp_path / "copy").code == 0
    assert checkpoints.saved_steps(folder) == kept


def test_an_interval_of_one_task_is_not_printed(trained, tmp_path):
    result = run("evaluate", trained, "--num-tasks", 1, "--output", tmp_path / "one.json")
    assert result.code == 0
    assert "1 test task: an interval needs more" in result.out
    assert "±" not in result.out


def test_on_takes_overrides_of_the_other_task(trained, tmp_path):
    other = small(tmp_path)
    words = ["evaluate", trained, "--output", tmp_path / "x.json", "--on"]
    result = run(*words, other, "--task.test.shots", 7, "--num-tasks", 2)
    assert (result.code, result.err) == (0, "")
    assert files.read_json(tmp_path / "x.json")["num_tasks"] == 2
    fails(run(*words, other, "--task.test.shotz", 7), "--task.test.shotz", "did you mean --task.test.shots?")
    fails(run(*words, other, "--task.test.shots", 0), "at least 1")
    fails(run(*words, other, "--inner.steps", 7), "--inner.steps")
    fails(run("evaluate", trained, "--task.test.shots", 7), "--task.test.shots")
    fails(
        run(*words, other, "--task.oracle"), "the tasks of", "do not fit", "inputs of 3", "have inputs of 1 and targets"
    )
    fails(run(*words, "glyphs"), "the tasks of glyphs do not fit", "28×28×1 and 5 classes")
    assert "--task.test.shots" in run("evaluate", "--on", other, "--help").out


@pytest.mark.parametrize(
    "words",
    [
        ("train", "~nosuchuser/x.py"),
        ("data", "inspect", "folder", "--source", "~nosuchuser/x"),
        ("data", "list", "--data-dir=~nosuchuser/x"),
        ("data", "prepare", "~nosuchuser/x"),
        ("train", "folder", "--task.source", "~nosuchuser/x"),
    ],
)
def test_the_home_folder_of_an_unknown_user_is_no_crash(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert "Traceback" not in result.err
    if words[:2] != ("data", "list"):
        fails(result, "~nosuchuser")


def test_the_folder_of_data_of_an_unknown_user(monkeypatch):
    monkeypatch.setenv("METAJAX_DATA_DIR", "~nosuchuser/x")
    assert resolve_data_dir() == Path("~nosuchuser/x")


def test_json_that_nests_deeply_or_is_large_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"class": ' + "[" * 400 + "]" * 400 + "}")
    with pytest.raises(UserError, match="is damaged: it nests too deeply"):
        files.read_json(path)
    path.write_text("[" * 40 + "]" * 40)
    files.read_json(path)
    path.write_text(f'["{"a" * 2**22}"]')
    with pytest.raises(UserError, match=r"has [\d,]+ bytes, more than the 4,194,304 that are read"):
        files.read_json(path)
