"""Omniglot: preparation from every kind of source, what can go wrong, splits, and the real data."""

import contextlib
import hashlib
import http.server
import io
import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metajax.data import (
    DATASETS,
    is_prepared,
    load,
    load_omniglot,
    omniglot,
    prepare,
    records,
    resolve_data_dir,
)
from metajax.data.disk import clear_leftovers
from metajax.data.download import RemoteFile
from metajax.data.pixels import decode
from metajax.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "omniglot"
COUNTS = {"background": 4, "evaluation": 3}


def drawing(seed: int, side: int = 105) -> bytes:
    """A one-bit PNG file, as in the official archives."""
    ink = np.random.default_rng(seed).random((side, side)) < 0.9
    file = io.BytesIO()
    Image.fromarray(ink).save(file, "PNG")
    assert Image.open(file).mode == "1"
    return file.getvalue()


def members(part: str) -> dict[str, bytes]:
    """Two alphabets with characters of three drawings each."""
    names = {"background": ["Greek/character01", "Greek/character02", "Latin/character01", "Latin/character02"]}
    characters = names.get(part, ["Atlantean/character01", "Tengwar/character01", "Tengwar/character02"])
    return {
        f"images_{part}/{name}/{number:04d}_{drawer:02d}.png": drawing(1000 * len(part) + 10 * number + drawer)
        for number, name in enumerate(characters, 1)
        for drawer in (1, 2, 3)
    }


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A source with two tiny archives in the official layout."""
    monkeypatch.setattr(omniglot, "CHARACTERS", COUNTS)
    monkeypatch.setattr(omniglot, "DRAWINGS", 3)
    monkeypatch.setattr(omniglot, "RANDOM_CHARACTER", {"train": 4, "validation": 1, "test": 2})
    source = tmp_path / "source"
    source.mkdir()
    for part in COUNTS:
        write_zip(source / f"images_{part}.zip", members(part))
    return source


def message(info: pytest.ExceptionInfo) -> str:
    text = str(info.value)
    assert "\n" not in text
    return text


def test_archives(tiny, tmp_path):
    data = tmp_path / "data"
    assert not is_prepared("omniglot", data)
    folder = prepare("omniglot", tiny, data)
    assert is_prepared("omniglot", data)
    assert (folder / "dataset_info.json").is_file()
    assert list(folder.glob("*.array_record-*"))
    loaded = load_omniglot("alphabet", size=105, data_dir=data)
    assert set(loaded.splits) == {"train", "test"}
    assert loaded.class_names["train"][0] == "background/Greek/character01"
    assert loaded.class_names["test"][-1] == "evaluation/Tengwar/character02"
    for part, split in (("background", "train"), ("evaluation", "test")):
        bank = loaded.splits[split]
        assert bank.images.shape == (3 * COUNTS[part], 105, 105, 1)
        assert bank.images.dtype == np.uint8
        assert bank.starts.dtype == bank.counts.dtype == np.int32
        assert bank.starts.tolist() == list(range(0, 3 * COUNTS[part], 3))
        for image, (_, data_) in zip(bank.images, sorted(members(part).items()), strict=True):
            expected = np.asarray(Image.open(io.BytesIO(data_)).convert("L"))
            np.testing.assert_array_equal(image[..., 0], expected)


@pytest.mark.parametrize("keep_zip", [False, True])
def test_unpacked_trees_give_the_same(tiny, tmp_path, keep_zip):
    prepare("omniglot", tiny, tmp_path / "a")
    tree = tmp_path / "tree"
    for part in COUNTS:
        for name, data in members(part).items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
    if keep_zip:  # one part packed, the other not, as in a half-unpacked clone of the repository
        (tree / "python").mkdir()
        (tree / "images_background").rename(tree / "python" / "images_background")
        (tiny / "images_evaluation.zip").rename(tree / "python" / "images_evaluation.zip")
    prepare("omniglot", tree, tmp_path / "b")
    one, two = (load_omniglot(data_dir=tmp_path / name) for name in "ab")
    assert one.class_names == two.class_names
    for split in one.splits:
        np.testing.assert_array_equal(one.splits[split].images, two.splits[split].images)


def test_random_split_is_fixed_disjoint_and_complete(tiny, tmp_path):
    prepare("omniglot", tiny, tmp_path)
    first, second = load_omniglot(data_dir=tmp_path), load_omniglot(data_dir=tmp_path)
    assert {k: len(v.counts) for k, v in first.splits.items()} == {"train": 4, "validation": 1, "test": 2}
    assert first.class_names == second.class_names
    everything = [name for names in first.class_names.values() for name in names]
    assert len(set(everything)) == len(everything) == 7
    alphabet = load_omniglot("alphabet", data_dir=tmp_path)
    pixels = {}
    for loaded in (alphabet, first):
        for split, bank in loaded.splits.items():
            for name, start in zip(loaded.class_names[split], bank.starts, strict=True):
                images = pixels.setdefault(name, bank.images[start : start + 3])
                np.testing.assert_array_equal(images, bank.images[start : start + 3])


def test_unprepared_names_the_command(tmp_path):
    with pytest.raises(UserError) as info:
        load_omniglot(data_dir=tmp_path)
    assert f"`metajax data prepare omniglot --data-dir {tmp_path}`, with --source DIR" in message(info)


def test_unknown_names(tmp_path):
    with pytest.raises(UserError, match="did you mean 'omniglot'"):
        load("omniglott")
    with pytest.raises(UserError, match=r"choose one of omniglot, fashion_mnist, cifar100, .*, folder"):
        prepare("xyz")
    with pytest.raises(UserError, match="no split 'vinyals': choose one of random_character, alphabet"):
        load("omniglot", split="vinyals", data_dir=tmp_path)
    with pytest.raises(UserError, match="size of an image is 0"):
        load_omniglot(size=0, data_dir=tmp_path)
    assert list(DATASETS["omniglot"].splits) == ["random_character", "alphabet"]


def spoil(tiny: Path, how: str) -> str:
    """Damages the source and returns what the message must name."""
    path = tiny / "images_background.zip"
    files = members("background")
    name = "images_background/Latin/character01/0003_02.png"
    if how == "missing":
        path.unlink()
        return "images_background.zip"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
        return f"{path}: not a complete zip archive"
    if how == "page":
        path.write_text("<html>quota exceeded</html>")
        return "9,464,212"
    if how == "corrupt png":
        write_zip(path, {**files, name: files[name][:80]})
        return f"{path}: {name}: not a readable PNG"
    if how == "small png":
        write_zip(path, {**files, name: drawing(0, 28)})
        return f"{name}: 28×28 pixels, it should have 105×105"
    if how == "flipped bytes":
        data = bytearray(path.read_bytes())
        at = data.index(name.encode()) + len(name) + 20
        data[at : at + 20] = bytes(20)
        path.write_bytes(data)
        return f"{path}: {name}: damaged in the archive"
    if how == "drawing gone":
        del files[name]
        write_zip(path, files)
        return f"{path}: Latin/character01 has 2 drawings, it should have 3"
    assert how == "character gone"
    write_zip(path, {key: data for key, data in files.items() if "/Latin/character01/" not in key})
    return f"{path}: holds 3 characters, Omniglot's background set has 4"


DAMAGES = ["missing", "truncated", "page", "corrupt png", "small png", "flipped bytes", "drawing gone"]


@pytest.mark.parametrize("how", [*DAMAGES, "character gone"])
def test_damaged_source(tiny, tmp_path, how):
    expected = spoil(tiny, how)
    data = tmp_path / "data"
    with pytest.raises(UserError) as info:
        prepare("omniglot", tiny, data)
    assert expected in message(info)
    assert not is_prepared("omniglot", data)
    assert not list(data.glob("omniglot/*"))


def test_no_such_source(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare("omniglot", tmp_path / "nowhere", tmp_path)


def test_interrupted_preparation_leaves_nothing_and_can_be_repeated(tiny, tmp_path, monkeypatch):
    calls = iter(range(100))

    def interrupted(*args):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return decode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(omniglot, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("omniglot", tiny, tmp_path)
    assert not is_prepared("omniglot", tmp_path)
    assert not list(tmp_path.glob("omniglot/*"))
    (tmp_path / "omniglot" / "incomplete.ABC_1.0.0").mkdir()  # what a killed process leaves
    assert not is_prepared("omniglot", tmp_path)
    prepare("omniglot", tiny, tmp_path)
    assert len(load_omniglot(data_dir=tmp_path).splits) == 3


def test_prepared_once(tiny, tmp_path, capfd):
    folder = prepare("omniglot", tiny, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("omniglot", tmp_path / "not looked at", tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert capfd.readouterr().out == ""


def test_two_processes_at_once(tiny, tmp_path, monkeypatch):
    """The slower one finds the folder taken when it renames its own."""

    def other_one_first(*args):
        monkeypatch.undo()
        monkeypatch.setattr(omniglot, "CHARACTERS", COUNTS)
        monkeypatch.setattr(omniglot, "DRAWINGS", 3)
        prepare("omniglot", tiny, tmp_path)
        return decode(*args)

    monkeypatch.setattr(omniglot, "decode", other_one_first)
    prepare("omniglot", tiny, tmp_path)
    assert is_prepared("omniglot", tmp_path)


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), RuntimeError(f"x: {os.strerror(28)}")])
def test_disk_full(tiny, tmp_path, monkeypatch, error):
    def full(*args):
        raise error

    monkeypatch.setattr(omniglot, "decode", full)
    with pytest.raises(UserError) as info:
        prepare("omniglot", tiny, tmp_path)
    assert "no space left" in message(info)
    assert str(tmp_path) in message(info)
    assert not is_prepared("omniglot", tmp_path)


def test_unwritable_data_dir(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as info:
        prepare("omniglot", tiny, tmp_path / "file" / "data")
    assert "METAJAX_DATA_DIR" in message(info)


def damage_cache(stem: Path, how: str) -> None:
    pixels, description = stem.with_suffix(".npy"), stem.with_suffix(".json")
    data = pixels.read_bytes()
    if how == "truncated":
        pixels.write_bytes(data[:-1000])
    elif how == "flipped":
        pixels.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "empty":
        pixels.write_bytes(b"")
    elif how == "gone":
        pixels.unlink()
    else:
        description.write_text('{"key": ')


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "gone", "description"])
def test_damaged_cache_is_rebuilt(tiny, tmp_path, caplog, how):
    prepare("omniglot", tiny, tmp_path)
    expected = np.array(load_omniglot(data_dir=tmp_path).splits["train"].images)
    damage_cache(tmp_path / "omniglot" / "decoded" / "28px", how)
    caplog.clear()  # the archives of this test are not the official ones
    with caplog.at_level(logging.WARNING):
        again = load_omniglot(data_dir=tmp_path)
    np.testing.assert_array_equal(again.splits["train"].images, expected)
    assert [record.name for record in caplog.records] == ["metajax.data"]
    assert "damaged cache" in caplog.text
    caplog.clear()
    load_omniglot(data_dir=tmp_path)
    assert not caplog.records


def test_cache_is_used_and_follows_the_records(tiny, tmp_path, monkeypatch):
    prepare("omniglot", tiny, tmp_path)
    load_omniglot(data_dir=tmp_path)
    load_omniglot(data_dir=tmp_path, size=20)
    with monkeypatch.context() as patch:
        patch.setattr(records, "decode", None)
        assert load_omniglot(data_dir=tmp_path).splits["train"].images.shape[1] == 28
        assert load_omniglot(data_dir=tmp_path, size=20).splits["train"].images.shape[1] == 20
    for path in (tmp_path / "omniglot" / "1.0.0").iterdir():
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(records, "decode", None)
    with pytest.raises(UserError):
        load_omniglot(data_dir=tmp_path)


def test_unwritable_cache_is_a_warning(tiny, tmp_path, caplog):
    prepare("omniglot", tiny, tmp_path)
    (tmp_path / "omniglot" / "decoded").write_text("in the way")
    loaded = load_omniglot(data_dir=tmp_path)
    assert len(loaded.splits["train"].images) == 12
    assert "cannot cache" in caplog.text


def test_damaged_records(tiny, tmp_path):
    folder = prepare("omniglot", tiny, tmp_path)
    for path in folder.glob("*.array_record*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError) as info:
        load_omniglot(data_dir=tmp_path)
    assert f"delete this folder and run `metajax data prepare omniglot --data-dir {tmp_path}` again" in message(info)


def test_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path / "chosen"))
    assert resolve_data_dir() == tmp_path / "chosen"
    assert resolve_data_dir(tmp_path) == tmp_path
    monkeypatch.delenv("METAJAX_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert resolve_data_dir() == tmp_path / "metajax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert resolve_data_dir() == Path.home() / ".cache" / "metajax"


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


class CutShort(Handler):
    """Promises the whole file and hangs up half-way."""

    def copyfile(self, source, outputfile):
        outputfile.write(source.read()[:500])


@contextlib.contextmanager
def serving(folder: Path, handler=Handler):
    handler.requests.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def remote_files(base: str, folder: Path) -> tuple[RemoteFile, ...]:
    contents = {f"images_{part}.zip": (folder / f"images_{part}.zip").read_bytes() for part in COUNTS}
    return tuple(
        RemoteFile(f"{base}/{name}", len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()
    )


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_download(tiny, tmp_path, monkeypatch):
    with serving(tiny) as base:
        monkeypatch.setattr(omniglot, "FILES", remote_files(base, tiny))
        prepare("omniglot", data_dir=tmp_path / "data")
        assert Handler.requests == ["/images_background.zip", "/images_evaluation.zip"]
        # Archives that have been downloaded are not fetched again.
        folder = records.directory(omniglot._STORE, tmp_path / "data")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        prepare("omniglot", data_dir=tmp_path / "data")
        assert len(Handler.requests) == 2
    assert load_omniglot(data_dir=tmp_path / "data").splits["train"].images.shape == (12, 28, 28, 1)


def test_download_with_a_wrong_checksum(tiny, tmp_path, monkeypatch):
    with serving(tiny) as base:
        files = remote_files(base, tiny)
        monkeypatch.setattr(omniglot, "FILES", files)
        real = (tiny / "images_evaluation.zip").read_bytes()
        (tiny / "images_evaluation.zip").write_bytes(real[:-100])
        with pytest.raises(UserError) as info:
            prepare("omniglot", data_dir=tmp_path / "data")
        text = message(info)
        assert f"{base}/images_evaluation.zip: downloaded {len(real) - 100:,} bytes" in text
        assert hashlib.sha256(real[:-100]).hexdigest() in text
        assert f"the right file has {len(real):,} bytes and sha256 {files[1].sha256}" in text
        assert "--source DIR" in text
        assert not is_prepared("omniglot", tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.tmp.*"))
        (tiny / "images_evaluation.zip").write_bytes(real)
        prepare("omniglot", data_dir=tmp_path / "data")
        assert is_prepared("omniglot", tmp_path / "data")


def test_download_cut_short(tiny, tmp_path, monkeypatch):
    with serving(tiny, CutShort) as base:
        monkeypatch.setattr(omniglot, "FILES", remote_files(base, tiny))
        with pytest.raises(UserError) as info:
            prepare("omniglot", data_dir=tmp_path / "data")
    text = message(info)
    assert "images_background.zip" in text
    assert "the right file has" in text
    assert not list((tmp_path / "data").rglob("*.tmp.*"))


def test_another_download_to_the_same_folder_is_left_alone(tiny, tmp_path, monkeypatch):
    with serving(tiny) as base:
        monkeypatch.setattr(omniglot, "FILES", remote_files(base, tiny))
        folder = tmp_path / "data" / "downloads" / "omniglot"
        (folder / "x.zip.tmp.0123").mkdir(parents=True)
        with clear_leftovers(folder, "nothing"):  # the other process
            prepare("omniglot", data_dir=tmp_path / "data")
            assert (folder / "x.zip.tmp.0123").exists()
        shutil.rmtree(records.directory(omniglot._STORE, tmp_path / "data"))
        prepare("omniglot", data_dir=tmp_path / "data")
        assert not (folder / "x.zip.tmp.0123").exists()


def test_download_of_what_is_not_there(tiny, tmp_path, monkeypatch):
    with serving(tiny) as base:
        files = [file._replace(url=file.url + "x") for file in remote_files(base, tiny)]
        monkeypatch.setattr(omniglot, "FILES", files)
        with pytest.raises(UserError, match="404"):
            prepare("omniglot", data_dir=tmp_path / "data")
    with pytest.raises(UserError) as info:  # and the server is gone
        prepare("omniglot", data_dir=tmp_path / "data")
    assert "cannot download (cannot reach 127.0.0.1)" in message(info)


def test_registered_checksums_are_those_of_tfds():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    for file in omniglot.FILES:
        assert (known[file.url].size, known[file.url].checksum) == (file.size, file.sha256)


def test_tensorflow_is_not_imported(tiny, tmp_path):
    code = f"""
import sys
from pathlib import Path
import metajax.data
assert "tensorflow_datasets" not in sys.modules, "slow to import, so only on demand"
from metajax.data import omniglot
omniglot.CHARACTERS = {COUNTS}
omniglot.DRAWINGS = 3
omniglot.RANDOM_CHARACTER = dict(train=4, validation=1, test=2)
omniglot.prepare_omniglot(Path({str(tiny)!r}), Path({str(tmp_path)!r}))
omniglot.load_omniglot(data_dir=Path({str(tmp_path)!r}))
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    # The archives of this test are not the official ones.
    assert len([line for line in done.stderr.splitlines() if "the official images_" in line]) == 2
    assert len(done.stderr.splitlines()) == 2


def test_lanczos_on_grey_levels():
    """Pillow resizes one-bit images by dropping pixels: they must be grey before."""
    data = drawing(7)
    expected = Image.open(io.BytesIO(data)).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    resized = decode(data, 28, 1)
    np.testing.assert_array_equal(resized[..., 0], np.asarray(expected))
    assert len(np.unique(resized)) > 20


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real Omniglot is not at {SHARED}")
def test_real_omniglot(tmp_path):
    prepare("omniglot", SHARED, tmp_path)
    native = load_omniglot("alphabet", size=105, data_dir=tmp_path)
    assert [len(native.splits[key].counts) for key in native.splits] == [964, 659]
    for part, split in (("background", "train"), ("evaluation", "test")):
        with zipfile.ZipFile(SHARED / f"images_{part}.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            bank = native.splits[split]
            assert len(names) == len(bank.images) == 20 * len(bank.counts)
            assert set(bank.counts.tolist()) == {20}
            for index in range(0, len(names), 97):
                label, _ = divmod(index, 20)
                assert native.class_names[split][label] == part + "/" + "/".join(names[index].split("/")[1:3])
                expected = np.asarray(Image.open(archive.open(names[index])).convert("L"))
                np.testing.assert_array_equal(bank.images[index, ..., 0], expected)
    assert 0.9 < (native.splits["train"].images[::50] == 255).mean() < 0.99, "dark ink on a light ground"
    loaded = load_omniglot(data_dir=tmp_path)
    assert {k: len(v.counts) for k, v in loaded.splits.items()} == {
        "train": 1100,
        "validation": 100,
        "test": 423,
    }
    everything = [name for names in loaded.class_names.values() for name in names]
    assert sorted(everything) == sorted(native.class_names["train"] + native.class_names["test"])
    # The split is a promise to users: it must not change from one release to the next.
    digest = hashlib.sha256("\n".join(everything).encode()).hexdigest()
    assert digest[:16] == "c1352ac0361c1cb6"
