"""Compiled programs that are not what was written under their names."""

import os
from pathlib import Path

import pytest
from command_line import finish, small, spawn

from metajax.experiment import compiled


def programs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-cache")}


@pytest.fixture
def cache(tmp_path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}-cache").write_bytes(name.encode() * 9)
    compiled.record(tmp_path, 0)
    return tmp_path


def test_programs_that_were_swapped_are_removed(cache, caplog):
    (cache / "a-cache").rename(cache / "x")
    (cache / "b-cache").rename(cache / "a-cache")
    (cache / "x").rename(cache / "b-cache")
    compiled.drop_changed(cache)
    assert programs(cache) == {"c-cache": b"c" * 9}
    assert caplog.messages == [f"{cache}: 2 compiled programs had changed: they are compiled again"]


def test_programs_that_were_copied_stay(cache, caplog):
    for path in cache.glob("*-cache"):
        os.utime(path, (1, 1))
    (cache / "new-cache").write_bytes(b"of another process")
    compiled.drop_changed(cache)
    assert len(programs(cache)) == 4
    (cache / "new-cache").write_bytes(b"OF another process")
    compiled.drop_changed(cache)
    assert sorted(programs(cache)) == ["a-cache", "b-cache", "c-cache"]
    (cache / "c-cache").write_bytes(b"compiled again")
    compiled.record(cache, 0)  # by the process that has written it
    compiled.drop_changed(cache)
    assert len(programs(cache)) == 3
    assert caplog.text.count("had changed") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"a-cache": 3}', '{"a-cache": [1]}'])
def test_checksums_that_are_damaged_cost_nothing(cache, text):
    (cache / "checksums.json").write_text(text)
    compiled.drop_changed(cache)
    assert len(programs(cache)) == 3


@pytest.mark.slow
def test_a_command_compiles_again_what_was_swapped(tmp_path):
    env = {"METAJAX_DATA_DIR": str(tmp_path / "data"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    words = ["train", small(tmp_path), "--workdir", tmp_path / "run", "--training.steps", 5]
    assert finish(spawn(*words, env=env, fast=False)).code == 0
    (folder,) = (tmp_path / "data" / "compiled").iterdir()
    paths = sorted(folder.glob("*-cache"))
    for path, content in zip(paths, [path.read_bytes() for path in [*paths[1:], paths[0]]], strict=True):
        path.write_bytes(content)
    before = (tmp_path / "run" / "evaluation.json").read_text()
    again = finish(spawn("evaluate", tmp_path / "run", env=env, fast=False))
    assert again.code == 0
    (warning,) = again.err.splitlines()
    assert warning == f"metajax: warning: {folder}: {len(paths)} compiled programs had changed: they are compiled again"
    assert (tmp_path / "run" / "evaluation.json").read_text() == before
