"""Files that describe the project agree with each other and with the code."""

import importlib.metadata
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import metajax
from metajax.cli import main

ROOT = Path(__file__).parents[2]
TEXT = {".cff", ".md", ".py", ".toml", ".yml", ".yaml", ""}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
SLOW_WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/slow.yml").read_text())


def requirements():
    """Return the requirements of the project and of its extras, without references to the project's own extras."""
    listed = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
    return [requirement for requirement in listed if requirement.name != PROJECT["name"]]


def project_files():
    """Return the text files in which a user or a developer reads about the project."""
    folders = ("metajax", "configs", "benchmarks", "docs", "tests", ".github", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file() and path.name != "CHANGELOG.md"]
    return [path for path in files if path.suffix in TEXT and "_build" not in path.parts]


def test_the_version_stands_in_pyproject_alone():
    assert "version" not in PROJECT.get("dynamic", [])
    assignment = re.compile(r"^__version__\s*=", re.MULTILINE)
    assert [path for path in (ROOT / "metajax").rglob("*.py") if assignment.search(path.read_text())] == []


def test_the_package_reports_the_version_of_pyproject():
    if metajax.__version__ == "0+uninstalled":
        pytest.skip("metajax is not installed")
    assert metajax.__version__ == PROJECT["version"], "the installation is older: run pip install -e '.[dev]' again"


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert runpy.run_path(metajax.__file__)["__version__"] == "0+uninstalled"


def test_version_prints_the_version_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"metajax {metajax.__version__}\n"


def test_the_citation_names_the_version_and_its_date():
    """A version that CHANGELOG.md does not date yet has no date in CITATION.cff."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    dates = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == PROJECT["version"]
    assert str(citation.get("date-released")) == str(dict(dates).get(PROJECT["version"]))
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_every_address_of_the_project_is_in_its_repository():
    repository = PROJECT["urls"]["Repository"]
    assert [url for url in PROJECT["urls"].values() if not url.startswith(repository)] == []
    pattern = re.compile(r"https://github\.com/[\w.-]+/metajax\b")
    addresses = {address for path in project_files() for address in pattern.findall(path.read_text())}
    assert addresses == {repository}


def test_every_extra_that_a_text_names_exists():
    """Commands such as `pip install 'metajax[test]'`, in error messages, pages and scripts."""
    pattern = re.compile(r"(?:\bmetajax|(?<=['\"\s])\.)\[([a-z][a-z, _-]*)\]")
    named = {
        (extra.strip(), path.relative_to(ROOT).as_posix())
        for path in project_files()
        for extras in pattern.findall(path.read_text())
        for extra in extras.split(",")
    }
    assert ("test", "README.md") in named
    assert sorted(each for each in named if each[0] not in EXTRAS) == []


def test_every_requirement_has_a_lower_bound_and_no_upper_bound():
    assert len(requirements()) > 20
    for requirement in requirements():
        assert [bound.operator for bound in requirement.specifier] == [">="], str(requirement)


def test_a_package_has_one_lower_bound():
    bounds = {(canonicalize_name(requirement.name), str(requirement.specifier)) for requirement in requirements()}
    assert len(bounds) == len({name for name, _ in bounds})


def test_the_package_is_typed():
    assert (ROOT / "metajax/py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["metajax"]
    assert {"exclude", "only-include"}.isdisjoint(wheel)


def test_what_the_source_distribution_lists_exists():
    for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name).exists(), name


def test_the_workflow_runs_the_ci_script_on_the_oldest_and_the_newest_python():
    (job,) = WORKFLOW["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
    versions = job["strategy"]["matrix"]["python"]
    classifiers = re.findall(r"Python :: (\d\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert versions == [classifiers[0], classifiers[-1]]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_the_slow_tests_of_every_folder_run_each_week_in_one_part():
    assert set(SLOW_WORKFLOW[True]) == {"schedule", "workflow_dispatch"}  # YAML reads the key `on` as true
    (job,) = SLOW_WORKFLOW["jobs"].values()
    folders = [folder for part in job["strategy"]["matrix"]["tests"] for folder in part.split()]
    assert sorted(folders) == sorted({f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/test_*.py")})
    assert job["timeout-minutes"] == 30
    assert job["steps"][-1]["run"] == "nox -s slow -- -n 2 ${{ matrix.tests }}"


@pytest.mark.parametrize("name", ["ci", "slow"])
def test_the_workflows_may_only_read(name):
    text = (ROOT / f".github/workflows/{name}.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in next(iter(workflow["jobs"].values()))
    assert "secrets" not in text


def test_the_hooks_run_tools_of_the_dev_extra():
    """The hooks have no versions of their own, which would differ from those in pyproject.toml."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert [hook["entry"].split(" --")[0] for hook in hooks] == [
        "ruff check",
        "ruff format",
        "basedpyright",
        "lint-imports",
    ]
    assert {"ruff", "basedpyright", "import-linter", "pre-commit"} <= {Requirement(text).name for text in EXTRAS["dev"]}
    script = (ROOT / ".ci/run").read_text()
    for hook in hooks:
        assert f'"$venv/bin/{hook["entry"].split()[0]}"' in script


@pytest.fixture(scope="module")
def noxfile():
    """Return the names of the noxfile, which registers its sessions once."""
    pytest.importorskip("nox")
    return runpy.run_path(str(ROOT / "noxfile.py"))


def test_nox_has_the_sessions_that_the_pages_name(noxfile):
    import nox.registry

    sessions = nox.registry.get()
    assert {"tests", "oldest", "newest", "docs"} <= set(sessions)
    assert sessions["oldest"].python == PROJECT["requires-python"].removeprefix(">=")
    assert sessions["newest"].python == WORKFLOW["jobs"]["ci"]["strategy"]["matrix"]["python"][-1]
    named = {name for path in ROOT.glob("*.md") for name in re.findall(r"\bnox -s (\w+)", path.read_text())}
    assert named <= set(sessions)


def test_the_oldest_session_takes_the_lower_bounds(noxfile):
    project = {
        "dependencies": ["jax>=0.8.0", "tyro>=0.9"],
        "optional-dependencies": {"test": ["pytest[extra]>=8.0"], "dev": ["metajax[test]"]},
    }
    assert list(noxfile["lower_bounds"](project)) == ["jax==0.8.0", "tyro==0.9", "pytest==8.0"]
    assert len(list(noxfile["lower_bounds"](PROJECT))) == len(requirements())
