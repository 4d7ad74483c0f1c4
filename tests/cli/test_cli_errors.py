"""Mistakes of a user: one line that names what is wrong and what would be right, and no more."""

import contextlib
import errno
import io
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import SMALL, fails, finish, rows, run, small, spawn
from PIL import Image

from metajax.experiment import presets

TRAIN = ["train", "sinusoid"]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """Run in an empty folder, with no data sets; nothing may be left behind but what a test makes."""
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert run("train", small(folder), "--workdir", folder / "trained").code == 0
    return folder / "trained"


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def draw_folder(folder: Path, classes: dict[str, int], images: int = 3) -> Path:
    """A folder `split/class/image` of random grey images."""
    generator = np.random.default_rng(0)
    for split, count in classes.items():
        for c in range(count):
            (folder / split / f"{split}{c}").mkdir(parents=True)
            for i in range(images):
                pixels = generator.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{split}{c}" / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ["'trian'", "did you mean 'train'?"]),
        (["fly"], ["'fly'", "train, evaluate, bench, tune, plot, data, configs"]),
        (["--fly"], ["'--fly'"]),
        (["train"], ["CONFIG", "metajax configs"]),
        (["train", "--workdir", "x"], ["CONFIG", "'--workdir'"]),
        (["train", "sinusoi"], ["'sinusoi'", "did you mean 'sinusoid'?"]),
        (["train", "qqq"], ["'qqq'", "`metajax configs` lists them"]),
        (["train", "nothing.py"], ["nothing.py"]),
        (["train", "sinusoid.py"], ["sinusoid.py"]),
        ([*TRAIN, "--training.stepz", "4"], ["--training.stepz", "did you mean --training.steps?"]),
        ([*TRAIN, "--inner.learning-rat", "4"], ["--inner.learning-rat", "did you mean --inner.learning-rate?"]),
        ([*TRAIN, "--model.channels", "8"], ["--model.channels"]),  # of another model
        ([*TRAIN, "more"], ["more"]),
        ([*TRAIN, "--training.steps", "many"], ["--training.steps", "'many'"]),
        ([*TRAIN, "--training.steps", "1.5"], ["--training.steps", "'1.5'"]),
        ([*TRAIN, "--training.steps"], ["--training.steps"]),
        ([*TRAIN, "--model.hidden", "wide"], ["--model.hidden", "'wide'"]),
        ([*TRAIN, "--inner.optimizer", "sgdd"], ["inner.optimizer", "'sgdd'", "did you mean 'sgd'?"]),
        ([*TRAIN, "--outer.schedule", "step"], ["--outer.schedule", "'constant', 'linear', 'cosine'"]),
        ([*TRAIN, "--evaluation.checkpoint", "first"], ["--evaluation.checkpoint", "'last', 'best'"]),
        ([*TRAIN, "--training.steps", "0"], ["training.steps", "at least 1", "0"]),
        ([*TRAIN, "--training.tasks-per-step", "-3"], ["training.tasks_per_step", "at least 1", "-3"]),
        ([*TRAIN, "--training.steps-per-call", "0"], ["training.steps_per_call"]),
        ([*TRAIN, "--training.checkpoint-every", "0"], ["training.checkpoint_every"]),
        ([*TRAIN, "--execution.chunk-size", "0"], ["execution.chunk_size"]),
        ([*TRAIN, "--training.keep", "0"], ["training.keep"]),
        ([*TRAIN, "--inner.steps", "-1"], ["inner.steps"]),
        ([*TRAIN, "--inner.learning-rate", "-0.1"], ["inner.learning_rate", "above 0", "-0.1"]),
        ([*TRAIN, "--inner.learning-rate", "nan"], ["inner.learning_rate", "nan"]),
        ([*TRAIN, "--inner.options.momentum", "x"], ["--inner.options.momentum takes a number", "'x'"]),
        ([*TRAIN, "--inner.options.momentum", "nan"], ["inner.options", "momentum", "finite number", "nan"]),
        ([*TRAIN, "--inner.options.decay", "0.9"], ["sgd has no argument 'decay': choose one of momentum"]),
        ([*TRAIN, "--outer.options.weight-decay", "1"], ["adam has no argument 'weight_decay'"]),
        ([*TRAIN, "--outer.optimizer", "adamz"], ["outer.optimizer", "did you mean 'adam"]),
        ([*TRAIN, "--outer.learning-rate", "0"], ["outer.learning_rate", "above 0"]),
        ([*TRAIN, "--outer.learning-rate", "inf"], ["outer.learning_rate", "inf"]),
        ([*TRAIN, "--outer.final-fraction", "2"], ["outer.final_fraction", "from 0 to 1"]),
        ([*TRAIN, "--outer.clip-norm", "0"], ["outer.clip_norm"]),
        ([*TRAIN, "--evaluation.num-tasks", "0"], ["evaluation.num_tasks"]),
        ([*TRAIN, "--evaluation.steps", "-1"], ["evaluation.steps", "at least 0"]),
        ([*TRAIN, "--validation.num-tasks", "-1"], ["validation.num_tasks"]),
        ([*TRAIN, "--seed", "-1"], ["seed", "-1"]),
        ([*TRAIN, "--seed", "4294967296"], ["seed", "4294967296"]),
        ([*TRAIN, "--task.train.shots", "0"], ["task", "shots", "at least 1"]),
        ([*TRAIN, "--model.hidden", "8", "0"], ["model.hidden", "at least 1"]),
        ([*TRAIN, "--inner.batch-size", "99"], ["inner.batch_size is 99", "only 10 examples"]),
        ([*TRAIN, "--evaluation.batch-size", "99"], ["evaluation.batch_size is 99", "only 5 examples"]),
        (
            [*TRAIN, "--evaluation.checkpoint", "best", "--validation.num-tasks", "0"],
            ["evaluation.checkpoint", "validation.num_tasks"],
        ),
        ([*TRAIN, "--inner.frozen", "heads"], ["inner.frozen", "'heads'"]),
        ([*TRAIN, "--devices", "0"], ["--devices", "at least 1"]),
        ([*TRAIN, "--devices", "two"], ["--devices", "two"]),
        ([*TRAIN, "--devices", "3000"], ["--devices is 3000", "devices"]),
        (["evaluate"], ["WORKDIR"]),
        (["evaluate", "gone"], ["gone", "no such folder"]),
        (["plot"], ["WORKDIR"]),
        (["plot", "gone"], ["gone", "no such folder"]),
        (["configs", "sinusoi"], ["did you mean 'sinusoid'?"]),
        (["data", "lst"], ["'lst'", "did you mean 'list'?"]),
        (["data", "prepare"], ["NAME"]),
        (["data", "prepare", "omniglt"], ["'omniglt'", "did you mean 'omniglot'?"]),
        (["data", "inspect", "folder"], ["--source"]),
        (["data", "inspect", "omniglot"], ["metajax data prepare omniglot"]),
        (["data", "inspect", "omniglot", "--source", "x"], ["--source"]),
        (["data", "inspect", "cifar100", "--split-lists", "x"], ["--split-lists are for folders"]),
        (["data", "inspect", "cifar100", "--split", "fc10"], ["no split 'fc10'", "cifar_fs, fc100"]),
        (["data", "prepare", "cub"], ["no data set 'cub'", "caltech_birds2011"]),
        (["data", "prepare", "quickdraw_bitmap"], ["tfds build quickdraw_bitmap --file_format=array_record"]),
        (["train", "cifar_fs"], ["cifar100 is not prepared", "metajax data prepare cifar100"]),
        (["train", "fc100", "--task.dataset", "cifar10"], ["--task.dataset", "'cifar10'"]),
        (["train", "omniglot"], ["omniglot is not prepared", "metajax data prepare omniglot"]),
        (["train", "omniglot", "--data-dir", "gone"], ["gone", "metajax data prepare omniglot"]),
        (["train", "folder"], ["task.source", "--task.source FOLDER"]),
        (["train", "folder", "--task.source", "gone"], ["gone"]),
        ([*TRAIN, "--training.steps", "1e5"], ["--training.steps takes an integer, got '1e5': write 100000 ("]),
        ([*TRAIN, "--devices=2.0"], ["--devices takes an integer, got '2.0': write 2 ("]),
        ([*TRAIN, "--training.steps", "2.5"], ["--training.steps takes an integer, got '2.5' ("]),
        ([*TRAIN, "--seed", "1e400"], ["--seed takes an integer, got '1e400' ("]),
        ([*TRAIN, "--model.hidden", "3", "1e2"], ["--model.hidden does not take ['3', '1e2'] ("]),
        ([*TRAIN, "--inner.learning-rate", "fast"], ["--inner.learning-rate takes a number, got 'fast' ("]),
        ([*TRAIN, "--outer.clip-norm", "much"], ["--outer.clip-norm takes a number, got 'much' ("]),
        (["evaluate", "run", "--num-tasks", "1e3"], ["--num-tasks takes an integer, got '1e3': write 1000 ("]),
        (["train", "~/gone.py"], [f"there is no config file {Path.home() / 'gone.py'}"]),
    ],
)
def test_it_is_told_in_one_line(words, said):
    fails(run(*words), *said)
    assert list(Path().iterdir()) == [], "nothing is left behind"


def test_a_file_is_no_work_directory():
    Path("notes").write_text("mine")
    fails(run(*TRAIN, "--workdir", "notes"), "notes is a file", "--workdir")
    fails(run("plot", "notes"), "notes is not a work directory of metajax: it is a file")
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("notes", "mine")], "and no lock beside it"


def test_no_words_after_data():
    result = run("data")
    assert result.code == 2
    assert result.err == "metajax: error: data needs one of list, prepare, inspect\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "7"], ["'7'", "last, best, or one of", "40"]),
        (["--checkpoint", "first"], ["'first'", "last, best, or one of"]),
        (["--checkpoint", "-1"], ["'-1'", "last, best, or one of"]),
        (["--split", "tets"], ["--split", "'tets'", "'test', 'validation', 'train'"]),
        (["--num-tasks", "0"], ["evaluation.num_tasks", "at least 1"]),
        (["--num-tasks", "x"], ["--num-tasks", "'x'"]),
        (["--steps", "-1"], ["steps"]),
        (["--seed", "-1"], ["seed"]),
        (["--seed", "4294967296"], ["seed", "4294967296"]),
        (["--on", "sinusoi"], ["did you mean 'sinusoid'?"]),
        (["--on", "nothing.py"], ["nothing.py"]),
        (["--on", "glyphs"], ["the tasks of glyphs do not fit", "28×28×1 and 5 classes"]),
        (["--task.source", "x"], ["--task.source goes with --on CONFIG"]),
        (["--task.test.shots=3"], ["--task.test.shots goes with --on CONFIG"]),
        (["--on", "omniglot"], ["metajax data prepare omniglot"]),
        (["--output", "gone/deep/x.json"], ["--output", "no folder gone/deep"]),
        (["--output", "."], ["--output", "a folder"]),
        (["--devices", "0"], ["--devices"]),
        (["--devices", "99"], ["--devices is 99"]),
        (["--nothing"], ["--nothing"]),
    ],
)
def test_evaluate_tells_in_one_line_and_leaves_the_report(trained, words, said):
    before = (trained / "evaluation.json").read_bytes()
    fails(run("evaluate", trained, *words), *said)
    assert (trained / "evaluation.json").read_bytes() == before
    assert sorted(path.name for path in trained.iterdir()) == [
        *["checkpoints", "config.json", "config.py", "environment.json"],
        *["evaluation.json", "metrics.jsonl", "tensorboard"],
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("learning_rate=0.01", 'learning_rate="0.01"', ["inner.learning_rate must be a number, got '0.01'"]),
        (
            "learning_rate=0.01",
            'learning_rate=0.01, optimizer="sdg"',
            ["inner.optimizer", "'sdg'", "did you mean 'sgd'?"],
        ),
        ("learning_rate=0.01", 'learning_rate=0.01, frozen="bias"', ["inner.frozen", "tuple", "'bias'"]),
        ("learning_rate=0.01", "learning_rate=0.01, options=None", ["inner.options must be a dict", "got None"]),
        ("MLPConfig(hidden=(8,))", "MLPConfig(hidden=(8, 8.5))", ["model.hidden", "tuple", "8.5"]),
        ("MLPConfig(hidden=(8,))", "ResNet12Config(widths=(0, 1, 1, 1))", ["model.widths must be at least 1, got 0"]),
        ("MLPConfig(hidden=(8,))", "7", ["model must be settings of a model, got 7"]),
        ("MLPConfig(hidden=(8,))", "MLPConfig", ["model must be settings, MLPConfig(...), got the class MLPConfig"]),
    ],
)
def test_a_config_with_a_field_of_a_wrong_type(tmp_path, right, wrong, said):
    assert right in SMALL
    fails(run("train", small(tmp_path, text=SMALL.replace(right, wrong)), "--workdir", tmp_path / "run"), *said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "said"), [(["--format", "gif"], "png"), (["--seed", "-1"], "seed")])
def test_plot_tells_in_one_line(trained, words, said):
    fails(run("plot", trained, *words), said)


def test_plot_says_when_there_is_no_learning_curve(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"ste')
    plotted = run("plot", tmp_path / "run")
    assert plotted.code == 0, "the rest is drawn"
    assert "metrics.jsonl has no line that can be read: no learning curve" in plotted.err


@pytest.mark.slow
def test_a_split_that_the_tasks_do_not_have(tmp_path):
    source = draw_folder(tmp_path / "images", {"train": 3, "test": 3})
    text = SMALL.replace("SinusoidConfig(", "FolderConfig(")
    text = text.replace("MLPConfig(hidden=(8,))", "Conv4Config(channels=4)")
    text = text.replace("train=Shots(shots=5, queries=5), test=Shots(shots=3, queries=10)", "source=None")
    options = ["--task.source", source, "--task.ways", 3, "--task.size", 8, "--task.channels", 1]
    options += ["--task.train.queries", 2, "--task.test.queries", 2, "--training.steps", 1]
    result = run("train", small(tmp_path, text=text), "--workdir", tmp_path / "run", *options)
    assert result.code == 0, result.err
    assert "validation_loss" not in rows(tmp_path / "run")[-1]  # there is no split for it
    fails(run("evaluate", tmp_path / "run", "--split", "validation"), "'validation'", "train, test")
    fails(run("evaluate", tmp_path / "run", "--checkpoint", "best"), "no checkpoint", "last, or one of 1")
    image = next((source / "train").rglob("*.*"))
    more = image.with_stem("one_more")
    shutil.copy(image, more)
    again = run("train", small(tmp_path, text=text), "--workdir", tmp_path / "run", *options)
    fails(again, "begun with other data: train had", "Choose another --workdir, or the same data")
    evaluated = run("evaluate", tmp_path / "run")
    assert evaluated.code == 0, "it may be what the user wants"
    assert "was trained on other data: train had" in evaluated.err
    more.unlink()
    shutil.rmtree(source / "train")
    assert run("evaluate", tmp_path / "run").code == 0
    again = run("train", small(tmp_path, text=text), "--workdir", tmp_path / "again", *options)
    fails(again, "task has no train split, only test")
    shutil.rmtree(source)
    fails(run("evaluate", tmp_path / "run"), str(source))


IMAGES = """from metajax.experiment import *

config = Experiment(
    task=GlyphsConfig(ways=3, size=16, test=Shots(queries=2)),
    model=Conv4Config(channels=4, pool=True),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.1),
    outer=Outer(learning_rate=1e-3),
    training=TrainingSettings(steps=1, tasks_per_step=2),
    validation=Validation(num_tasks=0),
    evaluation=EvaluationSettings(steps=1, num_tasks=4),
)
"""


@pytest.fixture(scope="module")
def trained_on_images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    assert run("train", small(folder, text=IMAGES), "--workdir", folder / "trained").code == 0
    return folder / "trained"


FITS = ["--task.size", 16, "--task.channels", 1, "--task.ways", 3, "--task.test.queries", 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FITS[2:], "84×84×1 and 3 classes, the run's have inputs of 16×16×1 and 3 classes; pass --task.size 16"),
        ([*FITS[:2], *FITS[4:]], "pass --task.channels 1"),
        ([*FITS[:4], *FITS[6:], "--task.ways", 2], "pass --task.ways 3"),
        ([*FITS, "--task.ways", 4, "--task.test.ways", 2], "pass --task.ways 3 --task.test.ways 3"),
        (FITS[6:], "pass --task.size 16 --task.channels 1 --task.ways 3"),
    ],
)
def test_tasks_that_do_not_fit_a_network_name_the_options(trained_on_images, tmp_path, options, said):
    source = draw_folder(tmp_path / "images", {"test": 5})
    words = ["--on", "folder", "--task.source", source, *options]
    fails(run("evaluate", trained_on_images, *words), said)


@pytest.mark.slow
def test_other_sizes_that_a_network_takes_name_the_option(tmp_path):
    config = small(tmp_path, text=IMAGES.replace(", pool=True", ""))
    assert run("train", config, "--workdir", tmp_path / "run").code == 0
    result = run("evaluate", tmp_path / "run", "--on", config, "--task.size", 20)
    assert result.code == 0
    assert "its tasks have inputs of 20×20×1" in result.err
    assert "; --task.size 16 makes them equal" in result.err


@pytest.mark.slow
def test_only_the_evaluated_split_is_needed(trained_on_images, tmp_path):
    source = draw_folder(tmp_path / "images", {"train": 1, "val": 2, "test": 3})
    words = ["evaluate", trained_on_images, "--on", "folder", "--task.source", source, *FITS]
    result = run(*words)
    assert result.code == 0, result.err
    fails(run(*words, "--split", "train"), "has only 1 class in its split 'train', and a task has 3 ways")
    fails(run(*words, "--split", "validation"), "has only 2 classes in its split 'validation'")
    fails(run("train", *words[3:], "--workdir", tmp_path / "run"), "has only 1 class in its split 'train'")


@pytest.mark.slow
def test_images_that_were_moved(tmp_path):
    source, moved = draw_folder(tmp_path / "images", {"train": 3, "test": 3}), tmp_path / "moved"
    directory = tmp_path / "run"
    config = small(
        tmp_path, text=IMAGES.replace("GlyphsConfig(ways=3, size=16,", "FolderConfig(ways=3, size=16, channels=1,")
    )
    words = ["train", config, "--workdir", directory, "--task.train.queries", 2, "--task.source"]
    assert run(*words, source).code == 0
    before = json.loads((directory / "evaluation.json").read_text())
    source.rename(moved)
    for command in ("evaluate", "plot"):
        fails(run(command, directory), f"{source}: no such folder", "with --task.source FOLDER records their new place")
    resumed = run(*words, moved)
    assert resumed.code == 0, resumed.err
    assert f"task.source is {source} in the run and {moved} now, with the same images" in resumed.out
    assert json.loads((directory / "config.json").read_text())["task"]["source"] == str(moved)
    assert run("evaluate", directory).code == 0
    assert json.loads((directory / "evaluation.json").read_text()) == before
    other = draw_folder(tmp_path / "others", {"train": 4, "test": 3})
    fails(run(*words, other), "begun with other data: ", "and has 12 images of 4 classes")
    fails(run(*words, moved, "--seed", 1), "holds another experiment: seed is 0 in the run and 1 now")
    environment = json.loads((directory / "environment.json").read_text())
    (directory / "environment.json").write_text(json.dumps({**environment, "data": {}}))
    fails(run(*words, other), f"task.source is {moved} in the run and {other} now")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task.ways", 4], ["4", "3"]),
        (["--task.ways", 3, "--task.train.shots", 3, "--task.train.queries", 1], ["train"]),
        (["--task.ways", 3, "--task.test.shots", 1, "--task.test.queries", 3], ["test"]),
        (["--task.ways", 1], ["task.ways", "at least 2"]),
        (["--task.size", 0], ["task.size"]),
        (["--task.channels", 2], ["--task.channels"]),
    ],
)
def test_more_than_a_data_set_holds(tmp_path, options, said):
    source = draw_folder(tmp_path / "images", {"train": 3, "test": 3})
    fits = ["--task.train.shots", 1, "--task.train.queries", 2, "--task.test.queries", 2]
    result = run("train", "folder", "--task.source", source, *fits, *options)
    fails(result, *said)
    assert not Path("runs").exists()


@pytest.mark.parametrize("kind", ["file", "below a file", "folder"])
def test_a_place_that_is_taken(tmp_path, kind):
    taken = tmp_path / "taken"
    if kind == "folder":
        taken.mkdir()
        (taken / "thesis.tex").write_text("years of work")
    else:
        taken.write_text("years of work")
    place = taken / "x" if kind == "below a file" else taken
    fails(run("train", small(tmp_path), "--workdir", place), str(taken))
    for command in ("evaluate", "plot"):
        fails(run(command, place), str(taken), "not a work directory")
    assert (taken / "thesis.tex" if kind == "folder" else taken).read_text() == "years of work"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nconfig = (\n", [":2: ", "SyntaxError"]),
        ("import metajax\n\n1 / 0\n", [":3: ", "ZeroDivisionError"]),
        ("import nothing_like_it\n", [":1: ", "nothing_like_it"]),
        ("raise ValueError('one\\ntwo\\nthree')\n", ["one two three"]),
        ("x = 1\n", ["must set `config`"]),
        ("config = 3\n", ["must set `config`"]),
        ("from metajax.experiment import *\nconfig = Inner(learning_rate=-1)\n", ["inner.learning_rate"]),
        ("from metajax.experiment import *\nconfig = Inner(lerning_rate=1)\n", [":2: ", "lerning_rate"]),
        ("from metajax.experiment import *\nconfig = Experiment(task=SinusoidConfig())\n", [":2: ", "'model'"]),
        ("\0", ["SyntaxError"]),
        (SMALL.replace("MAMLConfig", "MAML"), [":8: ", "'MAML'", "calls these settings MAMLConfig since version 0.2"]),
        (SMALL.replace("learner=", "my_learner="), [":5: ", "my_learner"]),
        (SMALL.replace("MLPConfig(hidden=(8,))", "Conv4Config()"), ["model", "images"]),
    ],
)
def test_a_broken_config_file(tmp_path, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = run("train", path)
    fails(result, *said)
    assert list(Path().iterdir()) == []
    if "images" not in said:
        assert str(path) in result.err


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"\xff\xfe\x00")
    fails(run("train", tmp_path / "mine.py"), "mine.py")
    (tmp_path / "folder.py").mkdir()
    fails(run("train", tmp_path / "folder.py"), "folder.py")


@pytest.mark.parametrize("name", ["config.json", "evaluation.json"])
@pytest.mark.parametrize("text", ['{"class": "met', "[]", "{}", "\xff"])
def test_a_damaged_file_of_a_run(copy, name, text):
    (copy / name).write_text(text, encoding="latin-1")
    words = {
        "config.json": [["train", small(copy.parent), "--workdir", copy], ["evaluate", copy], ["plot", copy]],
        "evaluation.json": [["plot", copy]],
    }
    for command in words[name]:
        fails(run(*command), str(copy / name))


def test_a_run_without_checkpoints(copy):
    shutil.rmtree(copy / "checkpoints")
    for command in ("evaluate", "plot"):
        fails(run(command, copy), "no checkpoint yet", "metajax train")


def test_a_run_of_another_version(copy):
    config = json.loads((copy / "config.json").read_text())
    config["training"]["momentum"] = 0.9
    (copy / "config.json").write_text(json.dumps(config))
    fails(run("evaluate", copy), str(copy / "config.json"), "momentum")


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "latin-1", "ascii"])
def test_the_line_is_whole_whatever_standard_output_is(encoding):
    """Tyro draws its message in another box where the output is not UTF-8."""
    from metajax.cli import main

    out, err = io.TextIOWrapper(io.BytesIO(), encoding), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*TRAIN, "--outer.schedule", "step"])
    assert code == 2
    assert err.getvalue() == (
        "metajax: error: invalid choice 'step' for argument '--outer.schedule'. Expected one of "
        "('constant', 'linear', 'cosine') (metajax train sinusoid --help lists the options)\n"
    )


def test_in_a_process_of_its_own(tmp_path):
    """Exit status and streams are real."""
    result = finish(spawn("train", "sinusoi"))
    fails(result, "did you mean 'sinusoid'?")
    assert result.out == ""
    fails(finish(spawn("train", small(tmp_path, text="import jax\n1 / 0\n"))), ":2: ZeroDivisionError")


def test_shipped_configs_all_refuse_alike():
    """Every config is read before anything is written, and each of its fields is checked."""
    for name in presets.names():
        fails(run("train", name, "--training.steps", 0), "training.steps must be at least 1, got 0")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", ["train", "bench", "tune", "evaluate", "plot"])
def test_without_a_device_a_command_is_a_line(trained, tmp_path, monkeypatch, command):
    def fail(*args, **options):
        raise RuntimeError("Unable to initialize backend 'cuda': no driver")

    monkeypatch.setattr(jax, "devices", fail)
    config = small(tmp_path)
    config.with_name("small.tuned.json").write_text("{}")  # has entries by device
    fails(run(command, trained if command in ("evaluate", "plot") else config), "JAX finds no device", "no driver")


@pytest.mark.parametrize("command", ["train", "evaluate", "data"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EINVAL, errno.ENXIO, None])
def test_what_the_system_refuses_is_a_line(monkeypatch, command, number):
    def refuse(*args, **options):
        raise OSError("the disk is upset") if number is None else OSError(number, os.strerror(number), "some file")

    monkeypatch.setattr(f"metajax.cli.{command}.{'run_experiment' if command == 'train' else 'parse'}", refuse)
    words = {"train": TRAIN, "evaluate": ["evaluate", "x"], "data": ["data", "list"]}[command]
    expected = ["the disk is upset"] if number is None else [os.strerror(number).lower(), "some file"]
    fails(run(*words), *expected)
