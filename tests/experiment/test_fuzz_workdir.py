"""Random damage to the files of a run: a line or the right result, never a traceback, a hang or a write elsewhere."""

import contextlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, run, small
from marks import slow_except

from metajax.core.evaluator import Report
from metajax.core.trainer import TrainState, init_state
from metajax.errors import UserError
from metajax.experiment import Experiment, build, checkpoints, metrics, workdir
from metajax.report import plots
from metajax.system import files

TINY = (
    SMALL.replace(
        "steps=40, tasks_per_step=4, steps_per_call=5, checkpoint_every=10",
        "steps=4, tasks_per_step=2, steps_per_call=2, checkpoint_every=2",
    )
    .replace("num_tasks=8", "num_tasks=2")
    .replace("num_tasks=4", "num_tasks=2")
)
TEXTS = ["config.json", "environment.json", "metrics.jsonl", "evaluation.json", "config.py"]


TINY += """
import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(MLPConfig):
    pass


config = dataclasses.replace(config, model=Mine(hidden=(8,)))
"""  # so that config.py counts


@pytest.fixture(scope="module", autouse=True)
def _own_records(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAJAX_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A run of four steps, and a folder beside it that nothing may write to."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "outside").mkdir()
    (folder / "outside" / "precious").write_text('{"years": "of work"}')
    assert run("train", small(folder, text=TINY), "--workdir", folder / "run").code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def experiment(tiny) -> Experiment:
    return workdir.load_experiment(tiny)


@pytest.fixture(scope="module")
def like(experiment) -> TrainState:
    parts = build(experiment)
    return init_state(parts.learner, parts.optimizer, parts.params)


@contextlib.contextmanager
def no_hang(case: str, seconds: int = 30) -> Iterator[None]:
    def stop(signum, frame):
        raise AssertionError(f"{case} hangs")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def any_json(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any type."""
    plain = [
        None,
        True,
        -1,
        0,
        3,
        2**31,
        2**64,
        10**400,
        0.5,
        -1e300,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\ud800",
        "a\0b",
    ]
    names = ["metajax.models.mlp:MLPConfig", "os:system", "metajax_config:X", "metajax.cli:main", ":", "metajax.:x"]
    values: list[Callable[[], Any]] = [
        lambda: rng.choice(plain),
        lambda: [any_json(rng, depth + 1) for _ in range(rng.randrange(3))],
        lambda: {rng.choice(["step", "loss", "mean", "x"]): any_json(rng, depth + 1) for _ in range(rng.randrange(3))},
        lambda: {"class": rng.choice(names), "hidden": any_json(rng, depth + 1)},
    ]
    return rng.choice(values if depth < 3 else values[:1])()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def one_value_changed(content: bytes, rng: random.Random) -> bytes:
    """JSON, or lines of JSON, with one value replaced, removed or renamed."""
    lines = content.split(b"\n") if content.count(b"\n{") else [content]
    at = rng.randrange(len(lines))
    try:
        value = json.loads(lines[at])
        container, key = rng.choice(places(value))
    except (ValueError, IndexError):  # not JSON, or a line with nothing in it
        return content[: rng.randrange(len(content) + 1)]
    if rng.random() < 0.2:
        del container[key]
    else:
        container[key] = any_json(rng)
    lines[at] = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if damaged:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


CONTENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": flipped,
    "truncated": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "changed": one_value_changed,
    "json": lambda content, rng: json.dumps(any_json(rng)).encode(),
    "empty": lambda content, rng: b"",
    "garbage": lambda content, rng: rng.randbytes(rng.choice([1, 100, 10_000])),
    "repeated": lambda content, rng: content * 2,
    "nested": lambda content, rng: rng.choice([b"[", b'{"class":']) * rng.choice([100, 100_000]),
    "lines": lambda content, rng: b"\n".join(rng.sample(content.split(b"\n"), content.count(b"\n") + 1)),
}
KINDS = ["missing", "fifo", "folder", "link outside", "link in a circle", "link to a device", "link to nothing"]


@contextlib.contextmanager
def damaged(path: Path, how: str, rng: random.Random) -> Iterator[None]:
    """Damage a file, and restore it afterwards."""
    content = path.read_bytes()
    path.unlink()
    if how in CONTENTS:
        path.write_bytes(CONTENTS[how](content, rng))
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how.startswith("link"):
        outside = path.parents[len(path.parts) - path.parts.index("run") - 1] / "outside" / "precious"
        targets = {"outside": outside, "circle": path, "device": "/dev/zero", "nothing": "gone"}
        path.symlink_to(targets[how.rpartition(" ")[2]])
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def untouched(folder: Path) -> None:
    """Check that nothing was written beside a run."""
    assert [path.name for path in (folder / "outside").iterdir()] == ["precious"]
    assert (folder / "outside" / "precious").read_text() == '{"years": "of work"}'


def look(directory: Path, experiment: Experiment) -> None:
    """Call what reads the small files of a run; each may refuse, in a line."""
    report = directory / "evaluation.json"
    readers: list[Callable[[], Any]] = [
        lambda: workdir.load_experiment(directory),
        lambda: workdir.load_experiment(directory, trust=False),
        lambda: workdir.differences(directory, experiment),
        lambda: workdir.changes_since(directory, experiment, 1),
        lambda: workdir.unknown_beginning(directory),
        lambda: workdir.data_differs(directory, {"train": "5 classes"}),
        lambda: workdir.trained_on(directory),
        lambda: workdir.config_folder(directory / "config.py"),
        lambda: workdir.code_differs(directory, experiment, directory.parent / "small.py"),
        lambda: workdir.changed_modules(directory, experiment, directory / "config.py"),
        lambda: workdir.check_writable(directory),
        lambda: metrics.truncate(directory, 4),
    ]
    for read in readers:
        with contextlib.suppress(UserError):
            read()
    try:
        rows = metrics.read(directory)
    except UserError:
        rows = []
    for row in rows:
        assert type(row["step"]) is int
    for draw in (
        lambda: plots.learning_curve(rows),
        lambda: plots.adaptation(Report.from_json(files.read_json(report))),
    ):
        with contextlib.suppress(UserError, ValueError):
            draw()


@pytest.mark.parametrize("seeds", slow_except([range(30), range(30, 60)], [0]), ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_small_files(tiny, experiment, name, seeds):
    for seed in seeds:
        rng = random.Random(f"{name} {seed}")
        how = KINDS[seed] if seed < len(KINDS) else rng.choice(list(CONTENTS))
        with no_hang(f"{name} {seed} ({how})"), damaged(tiny / name, how, rng):
            look(tiny, experiment)
        for kept in tiny.glob("metrics.jsonl.damaged_*"):
            kept.unlink()
    untouched(tiny.parent)
    assert workdir.differences(tiny, experiment) == []


def test_files_of_a_checkpoint(tiny, like):
    """A state that comes back is exactly one that was saved."""
    folder = tiny / "checkpoints"
    saved = {step: checkpoints.restore(folder, like, step)[0] for step in checkpoints.saved_steps(folder)}
    assert sorted(saved) == [2, 4]
    paths = sorted(path for path in (folder / "4").rglob("*") if path.is_file())
    for seed in range(60):
        rng = random.Random(seed)
        how, path = rng.choice([*KINDS, *CONTENTS, "flipped", "truncated"]), rng.choice(paths)
        with no_hang(f"{path} {seed} ({how})"), damaged(path, how, rng):
            state, problems = checkpoints.restore(folder, like)
            step = int(state.step)
            assert len(problems) == (step == 2), (seed, problems)
            checkpoints.best_step(folder)
        for name in ("meta_params", "opt_state"):
            found, wanted = (list(map(bytes, _leaves(getattr(each, name)))) for each in (state, saved[step]))
            assert found == wanted, (seed, path, how)
    untouched(tiny.parent)


def _leaves(tree: Any) -> list[bytes]:
    import jax

    return [leaf.tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("command", "cases"), [("evaluate", 6), ("plot", 3), ("train", 6)])
def test_commands(tiny, tmp_path, command, cases):
    """Exit status 0 comes with the right figures, 2 with one line."""
    shutil.copytree(tiny.parent, tmp_path / "fuzz")
    directory, config = tmp_path / "fuzz" / "run", tmp_path / "fuzz" / "small.py"
    words = {"train": ["train", config, "--workdir", directory]}.get(command, [command, directory])
    before = files.read_json(directory / "evaluation.json")
    states = [path for path in (directory / "checkpoints").rglob("*") if path.is_file()]
    for seed in range(cases):
        rng = random.Random(f"{command} {seed}")
        name = rng.choice([*TEXTS, "checkpoint"])
        path = rng.choice(states) if name == "checkpoint" else directory / name
        how = rng.choice([*KINDS, *CONTENTS])
        case = f"{command} {seed}: {path.name} {how}"
        shutil.copytree(directory, tmp_path / "kept")
        with no_hang(case, 60), damaged(path, how, rng):
            result = run(*words)
            assert result.code in (0, 2), (case, result)
            assert "Traceback" not in result.out + result.err, (case, result)
            errors = [line for line in result.err.splitlines() if line.startswith("metajax: error: ")]
            assert len(errors) == (result.code == 2), (case, result)
            assert result.err.isprintable() or all(line.startswith("metajax: ") for line in result.err.splitlines())
            if result.code == 0 and command == "evaluate" and name != "config.json":
                after = files.read_json(directory / "evaluation.json")
                assert after == before or after["checkpoint"] == 2, case
        shutil.rmtree(directory)
        shutil.copytree(tmp_path / "kept", directory)
        shutil.rmtree(tmp_path / "kept")
        untouched(tmp_path / "fuzz")
    left = {path.name for path in (tmp_path / "fuzz").iterdir()}
    assert left - {".run.lock"} == {"outside", "run", "small.py"}
