"""Fashion-MNIST: IDX files of every kind, what can go wrong, splits, and the real data."""

import gzip
import hashlib
import http.server
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metajax.data import DATASETS, fashion_mnist, is_prepared, load, load_fashion_mnist, prepare
from metajax.errors import UserError

REAL = Path("/usr/share/datasets/fashion-mnist")
COUNTS = {"train": 60, "test": 30}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape)
    return header + array.tobytes()


def contents(part: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(part))
    images = rng.integers(0, 256, (COUNTS[part], 28, 28), dtype=np.uint8)
    labels = rng.permutation(np.arange(COUNTS[part]) % 10).astype(np.uint8)
    return images, labels


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """A source with four tiny files in the official format."""
    monkeypatch.setattr(fashion_mnist, "IMAGES", COUNTS)
    source = tmp_path / "source"
    source.mkdir()
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = contents(part)
        (source / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (source / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return source


def test_by_example_keeps_the_official_parts(tiny, tmp_path):
    assert not is_prepared("fashion_mnist", tmp_path)
    prepare("fashion_mnist", tiny, tmp_path)
    assert is_prepared("fashion_mnist", tmp_path)
    loaded = load_fashion_mnist("by_example", data_dir=tmp_path)
    assert list(loaded.splits) == ["train", "test"]
    for part, bank in loaded.splits.items():
        images, labels = contents(part)
        assert loaded.class_names[part] == fashion_mnist.CLASSES
        for label, (start, count) in enumerate(zip(bank.starts, bank.counts, strict=True)):
            np.testing.assert_array_equal(bank.images[start : start + count, ..., 0], images[labels == label])


def test_by_class_pools_both_parts(tiny, tmp_path):
    prepare("fashion_mnist", tiny, tmp_path)
    loaded = load("fashion_mnist", data_dir=tmp_path)
    assert list(loaded.splits) == ["train", "test"]
    assert loaded.class_names == {"train": fashion_mnist.CLASSES[:5], "test": fashion_mnist.CLASSES[5:]}
    for first, split in ((0, "train"), (5, "test")):
        bank = loaded.splits[split]
        for label, (start, count) in enumerate(zip(bank.starts, bank.counts, strict=True), first):
            parts = [images[labels == label] for images, labels in map(contents, COUNTS)]
            np.testing.assert_array_equal(bank.images[start : start + count, ..., 0], np.concatenate(parts))
            assert count == 9


@pytest.mark.parametrize("rename", [True, False])
def test_unpacked_files(tiny, tmp_path, rename):
    """Unpacked under either name: some browsers unpack a download without renaming it."""
    for path in list(tiny.iterdir()):
        data = gzip.decompress(path.read_bytes())
        path.unlink()
        (path.with_suffix("") if rename else path).write_bytes(data)
    prepare("fashion_mnist", tiny, tmp_path)
    assert load_fashion_mnist(data_dir=tmp_path, size=14).splits["test"].images.shape == (45, 14, 14, 1)


@pytest.mark.parametrize("how", ["missing", "cut gzip", "cut idx", "wrong count", "bad label", "swapped"])
def test_damaged_source(tiny, tmp_path, how):
    name = "t10k-labels-idx1-ubyte" if how == "bad label" else "train-images-idx3-ubyte"
    path = tiny / f"{name}.gz"
    data = path.read_bytes()
    expected = str(path)
    if how == "missing":
        path.unlink()
        expected = f"{tiny}: holds neither {name}.gz nor {name}"
    elif how == "cut gzip":
        path.write_bytes(data[:-50])
        expected = f"{path}: not a complete gzip file"
    elif how == "cut idx":
        path.write_bytes(gzip.compress(gzip.decompress(data)[:-1]))
        expected = f"{path}: not an IDX file of 60 × 28 × 28 bytes: it has 47,055"
    elif how == "wrong count":
        path.write_bytes(gzip.compress(idx(contents("train")[0][:59])))
    elif how == "bad label":
        path.write_bytes(gzip.compress(idx(np.full(30, 11, np.uint8))))
        expected = f"{path}: has the label 11"
    else:
        path.write_bytes((tiny / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(UserError) as info:
        prepare("fashion_mnist", tiny, tmp_path)
    assert expected in str(info.value)
    assert "\n" not in str(info.value)
    assert not is_prepared("fashion_mnist", tmp_path)


def test_unprepared_and_unknown(tmp_path):
    with pytest.raises(UserError, match=f"run `metajax data prepare fashion_mnist --data-dir {tmp_path}`, with"):
        load_fashion_mnist(data_dir=tmp_path)
    with pytest.raises(UserError, match="choose one of by_class, by_example"):
        load_fashion_mnist("by_colour", data_dir=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        prepare("fashion_mnist", tmp_path / "nowhere", tmp_path)
    assert list(DATASETS["fashion_mnist"].splits) == ["by_class", "by_example"]


def test_download(tiny, tmp_path, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tiny)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        files = []
        for file in fashion_mnist.FILES:
            data = (tiny / file.filename).read_bytes()
            url = f"http://127.0.0.1:{server.server_port}/{file.filename}"
            files.append(file._replace(url=url, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
        monkeypatch.setattr(fashion_mnist, "FILES", files)
        prepare("fashion_mnist", data_dir=tmp_path)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert load_fashion_mnist(data_dir=tmp_path).splits["train"].counts.tolist() == [9] * 5


def test_registered_checksums_are_those_of_tfds():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    for file in fashion_mnist.FILES:
        assert (known[file.url].size, known[file.url].checksum) == (file.size, file.sha256)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the Debian package dataset-fashion-mnist is not at {REAL}")
def test_real_fashion_mnist(tmp_path):
    # Debian repacks the files without their names in the gzip header: same content, other checksums.
    prepare("fashion_mnist", REAL, tmp_path)
    loaded = load_fashion_mnist("by_example", data_dir=tmp_path)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        packed = (REAL / f"{prefix}-images-idx3-ubyte.gz").read_bytes()
        images = np.frombuffer(gzip.decompress(packed), np.uint8, offset=16).reshape(-1, 28, 28)
        packed = (REAL / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()
        labels = np.frombuffer(gzip.decompress(packed), np.uint8, offset=8)
        order = np.argsort(labels, kind="stable")
        np.testing.assert_array_equal(loaded.splits[part].images[..., 0], images[order])
        np.testing.assert_array_equal(loaded.splits[part].counts, np.bincount(labels))
    pooled = load_fashion_mnist("by_class", data_dir=tmp_path)
    assert [bank.counts.tolist() for bank in pooled.splits.values()] == [[7000] * 5, [7000] * 5]
