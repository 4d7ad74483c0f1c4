"""Random command lines and config files: a line each, or a valid experiment; never a traceback."""

import dataclasses
import random
import re
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import SMALL, run
from marks import slow_except

from metajax.cli import bench, configs, evaluate, plot, train, tune
from metajax.cli.parse import _flags
from metajax.core.evaluator import Report, Scores
from metajax.errors import UserError
from metajax.experiment import Experiment, presets, rendezvous
from metajax.experiment.checks import types_are_right

CONFIGS = ["sinusoid", "glyphs", "omniglot", "varied", "folder"]

VALUES = [
    *("0", "1", "2", "-1", "7.5", "1e-3", "1e400", "-inf", "nan", "None", "True", "no", "", " ", "''", "٣", "1_000"),
    *("9" * 19, "9" * 4000, "9" * 6000, "2147483648", "4294967296", "0x10", "1e9", "--", "-", "=", "a=b", "a,b", "[1]"),
    *(
        "ü",
        "日本",
        "\ud83d",
        "a\0b",
        "\x1b[31m",
        "a\nb",
        "%s",
        "{}",
        "x" * 5000,
        "../..",
        "~",
        "/dev/null",
        "*",
        "adam",
    ),
    *("localhost:1,0,2", "localhost:99999,0,2", "auto", ":,,", "localhost:1,2,2", "[::1]:70,1,2", "constant", "last"),
]


class Reached(NamedTuple):
    """What reached the work itself."""

    experiments: list[Experiment]


@pytest.fixture
def reached(tmp_path, monkeypatch) -> Reached:
    """Run in an empty folder; nothing trains, measures, downloads or waits for other processes."""
    found = Reached([])

    def work(*args, **kwargs):
        experiments = [arg for arg in args if isinstance(arg, Experiment)]
        assert len(experiments) == 1
        found.experiments.append(experiments[0])
        raise UserError("as far as a test goes")

    def trained(experiment, *args, **kwargs):
        found.experiments.append(experiment)
        return Report(1, 0, Scores(0, {}))

    def instead(*args, **kwargs):
        raise UserError("as far as a test goes")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(train, "run_experiment", trained)
    for module in (bench, tune, evaluate, plot):
        monkeypatch.setattr(module, "build", work)
    monkeypatch.setattr(bench, "_measure", instead)
    monkeypatch.setattr(rendezvous, "meet", instead)
    monkeypatch.setattr("metajax.data.prepare", instead)
    return found


def check(words: list[str], reached: Reached) -> None:
    """Check that a command did its work, or said in a line why it did not."""
    reached.experiments.clear()
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(30)
    try:
        result = run(*words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if not words:
        assert (result.code, result.out[:14]) == (2, "usage: metajax")
        return
    shown = [word[:40] for word in words]
    assert "Traceback" not in result.out + result.err, (shown, result.err)
    for experiment in reached.experiments:
        types_are_right(experiment)
        for part in (experiment.training, experiment.inner, experiment.evaluation):
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                assert not isinstance(value, int) or 0 <= value < 2**31, (shown, field.name)
    if result.code in (0, None):
        harmless = {"--help", "-h", "--version", "--tyro-print-completion", "--tyro-write-completion"}
        listed = words[:1] == ["configs"] or words[:2] == ["data", "list"]
        assert reached.experiments or listed or harmless & {word.partition("=")[0] for word in words}, shown
    else:
        lines = [line for line in result.err.splitlines() if not line.startswith("metajax: warning: ")]
        assert result.code == 2, (shown, result)
        assert len(lines) == 1, (shown, lines)
        assert re.match(r"metajax: error: .{5}", lines[0]), (shown, lines)
        assert len(lines[0]) < 4200, shown


def _too_long(signum, frame):
    raise AssertionError("it hangs")


def test_a_right_line_reaches_the_work(reached):
    check(["train", "sinusoid", "--seed", "1", "--outer.clip-norm", "None", "--seed", "2"], reached)
    assert [(each.seed, each.outer.clip_norm) for each in reached.experiments] == [(2, None)]
    check(["bench", "glyphs", "--task.ways=7"], reached)
    assert [each.task.ways for each in reached.experiments] == [7]


def flags_of(config: str) -> list[str]:
    preset = presets.read(config)
    line = configs._Line(train.Options(), preset.arguments, preset.experiment())
    return list(_flags(line))


def random_words(chance: random.Random, flags: dict[str, list[str]]) -> list[str]:
    config = chance.choice(CONFIGS)
    command = chance.choice(["train"] * 6 + ["bench", "tune", "evaluate", "plot", "data", "configs", "trian", ""])
    heads = {
        "evaluate": ["evaluate", chance.choice(["runs", ".", "", "\0", "x" * 300])],
        "plot": ["plot", chance.choice(["runs", ".", "ü"])],
        "data": [
            "data",
            chance.choice(["list", "inspect", "prepare", "lst"]),
            chance.choice(["folder", "omniglot", "q"]),
        ],
        "configs": ["configs", chance.choice([*CONFIGS, "sinus", "\0"])],
        "": [],
    }
    words = heads.get(command, [command, config])
    own = {
        "evaluate": ["--checkpoint", "--split", "--num-tasks", "--steps", "--seed", "--protocol", "--on", "--output"],
        "plot": ["--format", "--seed", "--data-dir"],
        "data": ["--split", "--source", "--size", "--strict", "--split-lists", "--data-dir"],
        "bench": ["--seconds", "--only", "--output"],
        "tune": ["--seconds", "--data-dir"],
    }
    names = own.get(command, []) + (flags[config] if command in ("train", "bench", "tune") else [])
    pairs = []
    for _ in range(chance.randint(0, 4)):
        flag, value = chance.choice(names or ["--x"]), chance.choice(VALUES)
        kind = chance.random()
        if kind < 0.15:  # a typo
            i = chance.randrange(2, len(flag))
            flag = flag[:i] + chance.choice(["", "z", "ü", "\0", "."]) + flag[i + 1 :]
        if kind < 0.6:
            pairs.append([flag, value])
        elif kind < 0.8:
            pairs.append([f"{flag}={value}"])
        elif kind < 0.9:
            pairs.append([flag])
        else:
            pairs.append([flag, value, flag, chance.choice(VALUES)])
    chance.shuffle(pairs)
    words = [*words, *(word for pair in pairs for word in pair)]
    if chance.random() < 0.1:
        words.insert(chance.randint(0, len(words)), chance.choice([*VALUES, "--help", config]))
    if chance.random() < 0.05:
        chance.shuffle(words)
    return words


@pytest.mark.parametrize("part", slow_except(range(8), range(4)))
def test_random_command_lines(reached, part):
    flags = {config: flags_of(config) for config in CONFIGS}
    for case in range(40):
        check(random_words(random.Random(1000 * part + case), flags), reached)


WRONG = [
    *("None", "True", "3", "-1", "2.5", "'x'", "()", "[1]", "{}", "object()", "Inner", "lambda: 0", "float('nan')"),
    *("10**400", "MLPConfig()", "SinusoidConfig()", "1j", "b'x'", "..."),
    *("Path('.')", "print", "jnp", "nan", "1/0", "exit(3)"),
]
TAILS = [
    *("config = None", "config = [config]", "del config", "config.seed = 3", "raise KeyError", "while True: break"),
    *(
        "import nothing_of_the_kind",
        "config = Experiment()",
        "def f(:",
        "\tx",
        "x = '",
        "assert False",
        "\x00",
        "é = 1",
    ),
    *("config = __import__('dataclasses').replace(config, seed=2**40)", "raise SystemExit(7)", "config = Experiment"),
    *("class E(Exception):\n    def __str__(self): raise ValueError\nraise E()", "raise RecursionError('deep')"),
    *(
        "def f(): f()\nf()",
        "[].pop()",
        "open('/nowhere/at/all')",
        "raise MemoryError",
        "raise Exception('a\\nb' * 500)",
    ),
]


def random_config(chance: random.Random) -> str:
    text, kind = SMALL, chance.random()
    if kind < 0.6:  # a value of another type
        values = [match.span(1) for match in re.finditer(r"=([\w.]+|\(8,\))(?=[,)])", text)]
        for start, end in sorted(chance.sample(values, chance.randint(1, 2)), reverse=True):
            text = text[:start] + chance.choice(WRONG) + text[end:]
    elif kind < 0.8:
        text += chance.choice(TAILS) + "\n"
    else:  # anything
        for _ in range(chance.randint(1, 5)):
            i = chance.randrange(len(text))
            text = text[:i] + chance.choice(["", "(", ")", ",", "=", "\n", " ", "x", "ü", '"']) + text[i + 1 :]
    return text


@pytest.mark.parametrize("part", range(4))
def test_random_config_files(reached, part):
    for case in range(40):
        text = random_config(random.Random(1000 * part + case))
        Path("mine.py").write_text(text, encoding="utf-8")
        check(["train", "mine.py"], reached)
