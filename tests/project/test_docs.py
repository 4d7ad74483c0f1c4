"""The code and the commands in the documentation work."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

import metajax as mj
from metajax.cli import configs
from metajax.experiment import build
from metajax.experiment.optimizers import optimizers

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python\n" in page.read_text()]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_the_python_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """The blocks of a page are one program. The build of the site runs the notebooks."""
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict = {"__name__": "docs"}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, name(page), "exec"), names)


def config_blocks() -> Iterator[Any]:
    """Yield the blocks of the pages that are config files."""
    for page in WITH_CODE:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            if re.search(r"^config = ", code, re.MULTILINE):
                yield pytest.param(code, id=name(page))


@pytest.mark.parametrize("code", list(config_blocks()))
def test_a_config_of_a_page_is_complete(code, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(code)
    assert build(configs.load(str(path))).tasks.outputs == 1


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_name_configs_that_exist(page):
    commands = set(re.findall(r"metajax (?:train|tune|bench) ([a-z]\w+)(?![\w./])", page.read_text()))
    assert commands <= set(configs.names())


def options(settings: Any, prefix: str = "--") -> Iterator[str]:
    """Yield the options of settings, such as `--inner.first-order`."""
    for field in dataclasses.fields(settings):
        option = prefix + field.name.replace("_", "-")
        value = getattr(settings, field.name)
        yield option
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{option}.")


def test_the_options_of_a_page_are_fields_of_configs():
    known = {option for config in configs.names() for option in options(configs.load(config))}
    arguments = {argument for each in optimizers().values() for argument in inspect.signature(each).parameters}
    known |= {f"--{part}.options.{each.replace('_', '-')}" for part in ("inner", "outer") for each in arguments}
    for page in [ROOT / "README.md", *PAGES]:
        for option in re.findall(r"--[a-z]+\.[a-z0-9.-]*[a-z0-9]", page.read_text()):
            assert option.replace(".no-", ".") in known, f"{page}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_to_files(page):
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_reference_has_every_public_name():
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.rst"))
    modules = {"learners", "models", "tasks"}
    assert {name for name in mj.__all__ if not re.search(rf"metajax\.(\w+\.)*{name}\b", reference)} <= modules


def test_the_site_has_a_page_for_every_public_learner():
    """The table of algorithms names each learner of the package."""
    listed = (ROOT / "docs" / "algorithms" / "index.md").read_text()
    files = {path.stem for path in (ROOT / "metajax" / "learners").glob("[a-z]*.py")}
    files -= {"config"}  # the interface of the settings
    assert {learner for learner in files if f"metajax/learners/{learner}.py" not in listed} == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "algorithms").glob("*.md")), ids=name)
def test_the_scores_of_an_algorithm_are_recorded_or_published(page):
    known = (ROOT / "docs" / "results.md").read_text() + (ROOT / "benchmarks" / "published.json").read_text()
    scores = re.findall(r"\d+\.\d+ ± \d+\.\d+", page.read_text())
    assert {score for score in scores if score not in known} == set()
