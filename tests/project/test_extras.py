"""The library imports only the base dependencies; other features name the missing extra."""

import subprocess
import sys

import pytest

EXTRAS = ["tyro", "typeguard", "tensorboardX", "matplotlib", "PIL", "tensorflow_datasets", "grain", "requests", "scipy"]
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
"""Makes every import of these packages raise a `ModuleNotFoundError`."""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False)


def test_the_library_needs_no_extra():
    code = "import metajax as mj\nfor name in mj.__all__:\n    if name not in ('run', 'train'): getattr(mj, name)"
    assert python(code).returncode == 0


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import metajax as mj; mj.run", "all"),
        ("import metajax as mj; mj.train", "all"),
        ("from metajax.report import plots", "cli"),
        ("from metajax.experiment import metrics", "cli"),
        ("from metajax.data import pixels", "data"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(code, extra):
    last = python(code).stderr.splitlines()[-1]
    assert last.startswith("metajax.errors.MissingPackageError: ")
    assert last.endswith(f"is not installed: pip install 'metajax[{extra}]'")


def test_the_command_line_says_it_in_a_line():
    result = python("from metajax.cli import main; sys.exit(main(['configs']))")
    assert result.returncode == 2
    assert result.stderr == "metajax: error: tyro is not installed: pip install 'metajax[all]'\n"
