"""Code of a config file: what it imports, what of it has changed, and who may execute it."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
from command_line import SMALL, fails, run, small

from metajax.errors import UserError
from metajax.experiment import config_code, presets, workdir

MODEL = """
import dataclasses

import jax.numpy as jnp
from flax import nnx

import sizes


class Body(nnx.Module):
    def __init__(self, rngs):
        self.a, self.head = nnx.Linear(1, sizes.WIDTH, rngs=rngs), nnx.Linear(sizes.WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.a(x)))


@dataclasses.dataclass(frozen=True)
class Net:
    def build(self, shape, outputs, rngs):
        import late

        return Body(rngs)
"""
CONFIG = SMALL.replace("from metajax.experiment import *", "from metajax.experiment import *\nfrom my_model import Net")
CONFIG = CONFIG.replace("MLPConfig(hidden=(8,))", "Net()")
TINY = ["--training.steps", 10, "--validation.num-tasks", 0, "--evaluation.num-tasks", 2, "--evaluation.steps", 1]


@pytest.fixture(autouse=True)
def _as_found(tmp_path, monkeypatch):
    """Keep the records of begun runs, Python's path and its modules as they were."""
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("my_model", "sizes", "late", config_code.CONFIG_MODULE):
        sys.modules.pop(name, None)


@pytest.fixture
def mine(tmp_path) -> Path:
    """A folder with a config and the modules that it imports."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_model.py").write_text(MODEL)
    (folder / "sizes.py").write_text("WIDTH = 8\n")
    (folder / "late.py").write_text("")
    (folder / "exp.py").write_text(CONFIG)
    return folder


def begin(mine: Path) -> Path:
    result = run("train", mine / "exp.py", "--workdir", mine.parent / "run", *TINY)
    assert (result.code, result.err) == (0, "")
    return mine.parent / "run"


def test_a_config_imports_the_files_beside_it(mine, tmp_path, monkeypatch):
    directory = begin(mine)
    resumed = run("train", mine / "exp.py", "--workdir", directory, *TINY)
    assert (resumed.code, resumed.err) == (0, "")
    monkeypatch.chdir(mine)
    shutil.copytree(directory, tmp_path / "moved")  # the copy knows where its config was
    for command in ("evaluate", "plot"):
        result = run(command, tmp_path / "moved")
        assert (result.code, result.err) == (0, "")
    again = run("train", directory / "config.py", "--workdir", tmp_path / "again", *TINY)
    assert (again.code, again.err) == (0, "")
    assert (tmp_path / "again" / "evaluation.json").read_text() == (directory / "evaluation.json").read_text()
    assert "my_model:Net" in (tmp_path / "again" / "config.json").read_text()


def test_a_folder_that_is_gone_is_named(mine, tmp_path, monkeypatch):
    directory = begin(mine)
    mine.rename(tmp_path / "elsewhere")
    result = run("evaluate", directory)
    fails(result, "config.py:6: ModuleNotFoundError: No module named 'my_model'", f"{mine}, is gone", "PYTHONPATH")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "elsewhere"), *sys.path])
    assert run("evaluate", directory).code == 0


def test_two_configs_may_each_have_a_module_of_one_name(mine, tmp_path):
    shutil.copytree(mine, tmp_path / "other")
    (tmp_path / "other" / "my_model.py").write_text(MODEL.replace("class Net:", "class Net:\n    more: int = 3\n"))
    first = presets.load(str(mine / "exp.py"))
    second = presets.load(str(tmp_path / "other" / "exp.py"))
    assert not hasattr(first.model, "more")
    assert second.model.more == 3
    assert not hasattr(presets.load(str(mine / "exp.py")).model, "more")


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("my_model.py", "jnp.tanh(self.a(x))", "5 * jnp.sin(9 * self.a(x))", "my_model"),
        ("sizes.py", "WIDTH = 8", "WIDTH = 8 + 0", "sizes"),  # imported by what is imported
        ("late.py", "", "print(end='')", "late"),  # imported inside a function
        (
            "my_model.py",
            "class Body(nnx.Module):",
            'class Body(nnx.Module):\n    """Better said."""  # and more\n',
            None,
        ),
        ("my_model.py", "import dataclasses\n", "import dataclasses\n# a comment\n", None),
    ],
)
def test_imported_code_that_changed(mine, name, old, new, changed):
    directory = begin(mine)
    before = (directory / "evaluation.json").read_bytes()
    path = mine / name
    path.write_text(path.read_text().replace(old, new, 1))
    trained, evaluated, drawn = (
        run("train", mine / "exp.py", "--workdir", directory, *TINY),
        run("evaluate", directory, "--output", mine / "new.json"),
        run("plot", directory),
    )
    assert (evaluated.code, drawn.code) == (0, 0)
    assert (directory / "evaluation.json").read_bytes() == before
    if changed is None:
        assert (trained.code, trained.err, evaluated.err, drawn.err) == (0, "", "", "")
        return
    fails(trained, f"begun with other code of {changed}, which", "Choose another --workdir, or the same code")
    warning = f"warning: code of {directory} has changed since the run began: {changed}. "
    for result in (evaluated, drawn):
        assert warning in result.err


def test_imported_code_of_another_shape_names_the_parameter(mine):
    directory = begin(mine)
    (mine / "sizes.py").write_text("WIDTH = 9\n")
    result = run("evaluate", directory)
    assert result.code == 2
    (_, error) = result.err.splitlines()
    assert "the model's parameters differ from the checkpoint: it has float32[8] where float32[9]" in error
    assert "at meta_params/a/bias (and 8 more)" in error
    assert error.count("checkpoint") <= 3
    text = (mine / "my_model.py").read_text()
    (mine / "my_model.py").write_text(text.replace("self.head", "self.tail"))
    (mine / "sizes.py").write_text("WIDTH = 8\n")
    result = run("evaluate", directory)
    assert "it has float32[1] where nothing is expected, at meta_params/head/bias (and" in result.err


def test_modules_of_installed_packages_and_of_python_do_not_count(mine):
    found = config_code.fingerprints(mine / "exp.py", mine)
    assert sorted(found) == ["late", "my_model", "sizes"]


def test_packages_and_relative_imports_are_followed(tmp_path):
    package = tmp_path / "pack" / "deep"
    package.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("raise AssertionError('executed')")
    (tmp_path / "pack" / "top.py").write_text("from . import other\nfrom .deep import leaf")
    (tmp_path / "pack" / "other.py").write_text("from .... import beyond\nx = (")
    (package / "leaf.py").write_text("from ..other import x\nimport pack.top")
    (tmp_path / "exp.py").write_text("import pack.top as t, nowhere.at.all, os.path")
    names = ["pack", "pack.deep.leaf", "pack.other", "pack.top"]
    assert sorted(config_code.fingerprints(tmp_path / "exp.py", tmp_path)) == names, "and nothing is executed"


def test_a_fingerprint_of_another_python_is_that_of_the_file():
    now = {"a": ["file", "code"]}
    assert config_code.changed_modules({"a": ["file", "code of Python 3.99"]}, now) == []
    assert config_code.changed_modules({"a": ["other file", "code"]}, now) == []
    assert config_code.changed_modules({"a": ["other file", "other code"]}, now) == ["a"]
    assert config_code.changed_modules({}, now) == ["a"]
    assert config_code.changed_modules(None, now) == [], "it was not recorded"
    for damaged in ({"a": 3}, {"a": None}, {"a": [[]]}):
        assert config_code.changed_modules(damaged, now) == ["a"]


OWN = (
    SMALL
    + """
import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(MLPConfig):
    pass


config = dataclasses.replace(config, model=Mine(hidden=(8,)))
"""
)
MARK = "\npathlib.Path(__file__).with_name('executed').touch()\n"


@pytest.fixture
def handed(tmp_path) -> Path:
    """A run that somebody else began."""
    assert run("train", small(tmp_path, text=OWN + MARK), "--workdir", tmp_path / "handed", *TINY).code == 0
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "executed").unlink()
    return tmp_path / "handed"


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_code_of_a_run_that_somebody_else_began_is_not_executed(handed, command):
    fails(run(command, handed), str(handed / "config.py"), "no record that you began", "pass --trust to execute it")
    assert not (handed / "executed").exists()
    trusted = run(command, handed, "--trust")
    assert (trusted.code, trusted.err) == (0, "")
    assert (handed / "executed").exists()
    (handed / "executed").unlink()
    fails(run(command, handed), "--trust")
    assert not (handed / "executed").exists(), "trust is for one command"


def test_trusted_code_imports_from_the_work_directory(mine, tmp_path, monkeypatch):
    directory = begin(mine)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(mine)])  # as in a new process
    for name in ("my_model", "sizes", "late"):
        sys.modules.pop(name, None)
    fails(run("evaluate", directory), f"the modules that it imports from {directory}; pass --trust")
    fails(run("evaluate", directory, "--trust"), "No module named 'my_model'", f"searched in {directory}")
    for name in ("my_model.py", "sizes.py", "late.py"):
        shutil.copy(mine / name, directory / name)
    with (mine / "my_model.py").open("a") as file:
        file.write("raise AssertionError('executed')")
    assert run("evaluate", directory, "--trust").code == 0


def test_code_of_a_run_of_ones_own_is_executed_until_it_changes(tmp_path):
    directory = tmp_path / "run"
    assert run("train", small(tmp_path, text=OWN), "--workdir", directory, *TINY).code == 0
    (directory / "config.py").chmod(0o644)
    assert run("evaluate", directory).code == 0
    shutil.copytree(directory, tmp_path / "copy")
    assert run("evaluate", tmp_path / "copy").code == 0
    with (directory / "config.py").open("a") as file:
        file.write(MARK)
    for command in ("evaluate", "plot"):
        fails(run(command, directory), "no record that you began")
    assert not (directory / "executed").exists()
    environment = tmp_path / "copy" / "environment.json"
    began = json.loads(environment.read_text())
    began["config"]["folder"] = str(tmp_path / "data")  # where somebody else could put modules of theirs
    environment.write_text(json.dumps(began))
    fails(run("evaluate", tmp_path / "copy"), "no record that you began")
    environment.unlink()
    evaluated = run("evaluate", tmp_path / "copy")
    assert evaluated.code == 0, "the record has the folder"
    assert "the versions, devices and data that the run began with are unknown" in evaluated.err


@pytest.mark.parametrize("how", ["writable folder", "writable record", "other user", "link", "folder is a link"])
def test_a_record_that_another_user_may_have_written_does_not_count(tmp_path, monkeypatch, how):
    directory = tmp_path / "run"
    assert run("train", small(tmp_path, text=OWN), "--workdir", directory, *TINY).code == 0
    begun = tmp_path / "state" / "metajax" / "begun"
    (record,) = begun.iterdir()
    assert (stat.S_IMODE(begun.lstat().st_mode), stat.S_IMODE(record.lstat().st_mode)) == (0o700, 0o600)
    assert run("evaluate", directory).code == 0
    if how == "writable folder":
        begun.chmod(0o777)
    elif how == "writable record":
        record.chmod(0o620)
    elif how == "other user":
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    elif how == "link":
        record.symlink_to(record.rename(tmp_path / "elsewhere.json"))
    else:
        begun.symlink_to(begun.rename(tmp_path / "elsewhere"))
    fails(run("evaluate", directory), "no record that you began")


def test_a_shared_data_folder_has_no_records(tmp_path):
    assert run("train", small(tmp_path, text=OWN), "--workdir", tmp_path / "run", *TINY).code == 0
    (record,) = (tmp_path / "state" / "metajax" / "begun").iterdir()
    shared = tmp_path / "data" / "begun"
    shared.parent.mkdir(exist_ok=True)
    record.parent.rename(shared)
    fails(run("evaluate", tmp_path / "run"), "no record that you began")


def test_training_never_executes_code_of_the_work_directory(handed, tmp_path):
    with (handed / "config.py").open("a") as file:
        file.write("\n__import__('os').abort()\n")
    result = run("train", tmp_path / "small.py", "--workdir", handed, *TINY)
    fails(result, "begun with other code than")
    result = run("train", tmp_path / "small.py", "--workdir", handed, *TINY, "--seed", 3)
    fails(result, "seed is 0 in the run and 3 now")
    result = run("train", "sinusoid", "--workdir", handed)
    fails(result, "model is metajax_config:Mine in the run and metajax.models.mlp:MLPConfig now")
    assert not (handed / "executed").exists()


def test_a_run_of_a_shipped_preset_executes_no_code(tmp_path):
    directory = tmp_path / "run"
    assert run("train", small(tmp_path), "--workdir", directory, *TINY).code == 0
    (directory / "config.py").write_text("import pathlib\n" + MARK)
    for command in ("evaluate", "plot"):
        result = run(command, directory)
        assert (result.code, result.err) == (0, "")
    (directory / "config.py").unlink()
    assert run("evaluate", directory).code == 0
    assert not (directory / "executed").exists()


def test_no_record_can_be_written(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    result = run("train", small(tmp_path, text=OWN), "--workdir", tmp_path / "run", *TINY)
    assert result.code == 0
    assert "evaluate and plot will ask for --trust" in result.err + capfd.readouterr().err
    fails(run("evaluate", tmp_path / "run"), "--trust")


@pytest.mark.parametrize("command", ["evaluate", "plot"])
def test_the_help_says_what_is_executed(command):
    assert "--trust" in run(command, "--help").out
    assert "code in a work directory is not" in run("train", "--help").out


class Silent(BaseException):
    """Its text is not to be had."""

    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise SystemExit(7)", ":2: SystemExit: 7"),
        ("import sys; sys.exit()", ":2: SystemExit"),
        ("raise BaseException('x')", ":2: BaseException: x"),
        ("from test_config_code import Silent; raise Silent", ":2: Silent"),
        ("raise ExceptionGroup('many', [ValueError('one')])", ":2: ExceptionGroup: many (1 sub-exception)"),
        ("def f(): f()\nf()", ": RecursionError: maximum recursion depth"),
        ("exit()", ":2: SystemExit"),
        ("x = " + "(" * 300, "SyntaxError: too many nested parentheses"),
        ("x = '" + "\\x00" + "'\n\0", "SyntaxError"),
        ("import exp", "ModuleNotFoundError: No module named 'exp'"),
    ],
)
def test_whatever_a_config_raises_is_a_line(tmp_path, line, said):
    path = small(tmp_path, text=f"x = 1\n{line}\n")
    with pytest.raises(UserError) as caught:
        config_code.load_module(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_an_interrupt_while_a_config_is_read_is_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        config_code.load_module(small(tmp_path, text="raise KeyboardInterrupt"))


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "gone"])
def test_a_config_that_is_no_file(tmp_path, kind):
    path = tmp_path / "x.py"
    make = {"fifo": lambda: os.mkfifo(path), "folder": path.mkdir, "gone": lambda: None}
    make["device"] = lambda: path.symlink_to("/dev/zero")
    make[kind]()
    with pytest.raises(UserError, match=r"x\.py"):
        config_code.load_module(path)
    fails(run("train", path), "x.py")


def test_a_check_of_the_users_own_settings(tmp_path):
    text = OWN.replace(
        "    pass\n", "    size: int = 1\n    def __post_init__(self):\n        assert self.size > 0, 'too small'\n"
    )
    path = small(tmp_path, text=text)
    fails(run("train", path, "--model.size", -1), "a setting does not take this value: AssertionError: too small")
    directory = tmp_path / "run"
    assert run("train", path, "--workdir", directory, *TINY).code == 0
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"size": 1', '"size": -1'))
    fails(run("evaluate", directory), str(config), "Mine does not take these settings: AssertionError")


def test_same_code_looks_at_every_statement(tmp_path):
    one, other = small(tmp_path, "one.py"), small(tmp_path, "other.py", SMALL + "\njax.config.update('x', 1)\n")
    assert not config_code.same_code(one, other), "a statement may change anything"
    other.write_text(SMALL.replace('"""Sinusoids', '"""Other words') + "# comment\n")
    assert config_code.same_code(one, other)
    assert not workdir.is_workdir(tmp_path)
