"""What the README promises."""

import re
from pathlib import Path

import jax
import numpy as np

import metajax as mj
from metajax.experiment import presets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_import_example_runs_and_learns():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10, "ten lines"
    names: dict = {}
    exec(code, names)
    losses = np.asarray(names["metrics"]["loss"])
    assert losses[-100:].mean() < losses[:100].mean()
    predicted = names["apply"](names["adapted"], names["task"].query.x)
    before = names["apply"](names["state"].meta_params, names["task"].query.x)
    assert predicted.shape == names["task"].query.y.shape
    assert not np.allclose(predicted, before)


def test_the_commands_name_configs_that_exist():
    commands = re.findall(r"metajax train ([a-z]\w+)", README)
    assert len(commands) >= 4
    assert set(commands) <= set(presets.names())


def test_every_config_builds_its_model_and_says_what_to_expect():
    """Its docstring is its record: the command, the device, the time, the score."""
    for name in presets.names():
        text = presets.find(name).read_text()
        # Some data cannot be had where the others were measured, or take long: then the record says so.
        measured = ("two cores", "minutes", "±")
        record = ("Not measured here: ",) if "Not measured" in text else measured
        for word in (f"metajax train {name}", *record):
            assert word in text, f"{name}: {word!r} is missing"
        presets.load(name)


def test_the_links_lead_to_files():
    links = re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_it_fits_on_a_screen():
    assert len(README.splitlines()) <= 130


def test_the_commands_stand_alone():
    """CI and newcomers copy them: one line each, into a new environment."""
    new = "python3 -m venv .venv && .venv/bin/pip install -q "
    run = ".venv/bin/metajax train sinusoid && .venv/bin/metajax plot runs/sinusoid"
    assert f"\n{new}'.[all]' && {run}\n" in README
    assert f"\n{new}-e '.[test]' && .venv/bin/python -m pytest -n 2\n" in README


def test_the_public_names_are_documented():
    for name in mj.__all__:
        value = getattr(mj, name)
        if callable(value) and getattr(value, "__module__", "").startswith("metajax"):
            assert value.__doc__, name
    assert jax.tree.leaves(mj.Batch(1, 2)) == [1, 2], "no mask, no leaf"
