"""Sessions that test metajax in several environments and build its documentation.

`nox -s tests` tests with the packages that pip chooses, `nox -s oldest` with the lower bound of every dependency,
`nox -s newest` on the newest Python, `nox -s base` without the extras. `nox -s slow` runs the slow tests, and
`nox -s docs` builds the site. Words after `--` go to pytest, for example
`nox -s oldest -- tests/core/test_inner_loop.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement

nox.options.sessions = ["tests"]


def lower_bounds(project: dict[str, Any]) -> Iterator[str]:
    """Yield `name==version` for the lower bound of each dependency of the project and of its extras.

    Args:
        project: The table `[project]` of `pyproject.toml`.
    """
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in map(Requirement, requirements):
            yield from (
                f"{requirement.name}=={bound.version}" for bound in requirement.specifier if bound.operator == ">="
            )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the doctests."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that the other sessions leave out because they take long."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session(python="3.11")  # the oldest supported Python; later ones have no wheels of the oldest packages
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest supported version of each dependency."""
    project = nox.project.load_toml(Path(__file__).with_name("pyproject.toml"))["project"]
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(lower_bounds(project)))
    session.install("-e", ".[test]", "--constraint", str(constraints))
    session.run("pytest", *session.posargs)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Run the tests with the newest JAX and the newest version of each other dependency."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def base(session: nox.Session) -> None:
    """Run the tests of the library without the packages of the extras."""
    session.install("-e", ".", "pytest", "hypothesis")
    session.run("pytest", "tests/core", "tests/learners", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into `docs/_build/html`; warnings are errors."""
    session.install("-e", ".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
