"""Data sets of TFDS: published splits, original archives, records that TFDS prepared, and what can go wrong."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_fashion_mnist import idx as idx_file

from metajax import data
from metajax.cli import main
from metajax.data import IMAGE_SETS, archives, catalogue, cifar100, images, is_prepared, load, prepare, records
from metajax.data.disk import clear_leftovers
from metajax.data.download import obtain
from metajax.data.pixels import decode
from metajax.errors import UserError
from metajax.experiment import ImagesConfig, Shots

pytestmark = pytest.mark.usefixtures("compiled_fast")

# The official table of CIFAR-100.
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
NAMES = sorted(name for names in SUPERCLASSES.values() for name in names.split())
# The training classes of CIFAR-FS as torchmeta lists them.
CIFAR_FS_TRAIN = """
dolphin seal aquarium_fish ray trout orchid sunflower tulip bottle bowl can cup plate apple mushroom orange pear clock
keyboard chair couch bee caterpillar cockroach bear lion tiger wolf bridge castle house road skyscraper cloud forest
mountain elephant kangaroo porcupine possum raccoon skunk lobster spider boy girl dinosaur lizard snake turtle hamster
mouse rabbit shrew squirrel oak_tree palm_tree pine_tree willow_tree bus train lawn_mower streetcar tank
"""


def split_names(name: str, split: str, names: list[str]) -> dict[str, list[str]]:
    chosen = IMAGE_SETS[name].splits[split].choose(names)
    return {part: [names[c] for c in classes] for part, classes in chosen.items()}


def tfds_names(name: str) -> list[str]:
    """The names of the classes as TFDS writes them."""
    import tensorflow_datasets as tfds

    package = Path(tfds.__file__).parent
    files = {
        "quickdraw_bitmap": package / "datasets" / "quickdraw_bitmap" / "labels.txt",
        "dtd": package / "image_classification" / "dtd_key_attributes.txt",
    }
    if name in files:
        return files[name].read_text().splitlines()
    return NAMES if name == "cifar100" else [str(c) for c in range(COUNTS[name])]


COUNTS = {"emnist": 62, "kmnist": 10, "caltech_birds2011": 200, "oxford_flowers102": 102}


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in IMAGE_SETS for split in IMAGE_SETS[name].splits])
def test_splits_share_no_class_cover_all_and_are_as_described(name, split):
    names = tfds_names(name)
    parts = split_names(name, split, names)
    everything = [each for part in parts.values() for each in part]
    assert sorted(everything) == sorted(names)
    assert len(set(everything)) == len(names)
    said = [int(n) for n in re.findall(r"\b(\d+)\b", IMAGE_SETS[name].splits[split].description)]
    expected = [5, 5] if name == "kmnist" else said[: len(parts)]
    assert [len(part) for part in parts.values()] == expected
    assert data.DATASETS[name].splits[split] == IMAGE_SETS[name].splits[split].description


def test_cifar_fs_is_the_published_split():
    parts = split_names("cifar100", "cifar_fs", NAMES)
    assert sorted(parts["train"]) == sorted(CIFAR_FS_TRAIN.split())
    assert {part: len(names) for part, names in parts.items()} == {"train": 64, "validation": 16, "test": 20}


def test_the_splits_of_fc100_share_no_superclass():
    parts = split_names("cifar100", "fc100", NAMES)
    owner = {name: superclass for superclass, names in SUPERCLASSES.items() for name in names.split()}
    superclasses = {part: {owner[name] for name in names} for part, names in parts.items()}
    assert {part: len(found) for part, found in superclasses.items()} == {"train": 12, "validation": 4, "test": 4}
    assert len(set().union(*superclasses.values())) == 20
    assert superclasses["test"] == {"aquatic_mammals", "insects", "medium_mammals", "people"}


def test_registered_checksums_are_those_of_tfds():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    known = dict(checksums.get_all_url_infos())
    # Some data sets have a folder, and the file in it, of their own.
    known |= checksums.load_url_infos(Path(tfds.__file__).parent / "datasets" / "oxford_flowers102" / "checksums.tsv")
    for each in IMAGE_SETS.values():
        for file in each.originals.files if each.originals else ():
            assert (known[file.url].size, known[file.url].checksum) == (file.size, file.sha256)


IMAGES = {"train": 300, "test": 100}


def cifar_part(part: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(part))
    labels = rng.permutation(np.arange(IMAGES[part]) % 100)
    return rng.integers(0, 256, (IMAGES[part], 3, 32, 32), dtype=np.uint8), labels


def cifar_files(kind: str) -> dict[str, bytes]:
    """The official archive of either kind, with fewer pictures."""
    if kind == "binary":
        files = {"fine_label_names.txt": "\n".join(NAMES).encode() + b"\n\n"}
        for part in IMAGES:
            pixels, labels = cifar_part(part)
            columns = [np.zeros_like(labels), labels, pixels.reshape(len(labels), -1)]
            files[f"{part}.bin"] = np.column_stack(columns).astype(np.uint8).tobytes()
        return files
    files = {"meta": pickle.dumps({"fine_label_names": NAMES}, protocol=2)}
    for part in IMAGES:
        pixels, labels = cifar_part(part)
        content = {b"data": pixels.reshape(len(labels), -1), b"fine_labels": labels.tolist(), b"filenames": [b"x.png"]}
        # As the official files, which are of Python 2 and of numpy before it moved its core.
        files[part] = pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    return files


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cifar100, "IMAGES", IMAGES)


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("how", ["archive", "folder of the archive", "unpacked"])
def test_cifar100_from_its_official_archives(small, tmp_path, kind, how):
    source = pack(tmp_path / "source" / f"cifar-100-{kind}.tar.gz", cifar_files(kind))
    if how == "unpacked":
        with tarfile.open(source) as archive:
            archive.extractall(tmp_path / "source", filter="data")
        source.unlink()
    place = prepare("cifar100", source if how == "archive" else source.parent, tmp_path / "data")
    assert place == tmp_path / "data" / "cifar100" / "3.0.2"
    for split in ("cifar_fs", "fc100"):
        loaded = load("cifar100", split=split, data_dir=tmp_path / "data")
        assert loaded.class_names == split_names("cifar100", split, NAMES)
        for part, bank in loaded.splits.items():
            assert set(bank.counts.tolist()) == {4}
            for name, start in zip(loaded.class_names[part], bank.starts, strict=True):
                # Those of the official test part come first: parts are in alphabetical order.
                expected = [
                    pixels.transpose(0, 2, 3, 1)[labels == NAMES.index(name)]
                    for pixels, labels in map(cifar_part, ("test", "train"))
                ]
                np.testing.assert_array_equal(bank.images[start : start + 4], np.concatenate(expected))


class Evil:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def broken_cifar(how: str, tmp_path: Path) -> tuple[dict[str, bytes], str]:
    binary, python = cifar_files("binary"), cifar_files("python")
    if how == "short":
        return {**binary, "test.bin": binary["test.bin"][:-1]}, "test.bin has 307,399 bytes, it should have 307,400"
    if how == "label":
        return {
            **binary,
            "train.bin": b"\0\x64" + binary["train.bin"][2:],
        }, "has the label 100, but the classes are 0 to 99"
    if how == "names":
        return {**binary, "fine_label_names.txt": b"apple\npear\n"}, "names 2 classes, CIFAR-100 has 100"
    if how == "part missing":
        return {name: binary[name] for name in ("train.bin", "fine_label_names.txt")}, "holds neither train.bin"
    if how == "evil":
        return {**python, "test": pickle.dumps(Evil(f"touch {tmp_path}/pwned"))}, "it refers to posix.system"
    if how == "evil meta":
        return {
            **python,
            "meta": pickle.dumps(Evil(f"touch {tmp_path}/pwned"), protocol=2),
        }, "it refers to posix.system"
    if how == "no pickle":
        return {**python, "test": b"junk"}, "test is not a pickle of plain data"
    if how == "list":
        return {**python, "meta": pickle.dumps(NAMES)}, "meta should hold a dictionary, it holds list"
    if how == "objects":
        strange = {"data": np.array([None] * 100, object), "fine_labels": [0] * 100}
        return {**python, "test": pickle.dumps(strange, protocol=2)}, "test does not hold data, uint8 of 100 × 3072"
    strange = {"data": np.zeros((100, 3072), np.uint8), "fine_labels": ["x"] * 100}
    return {**python, "test": pickle.dumps(strange, protocol=2)}, "test does not hold data"


HOWS = ["short", "label", "names", "part missing", "evil", "evil meta", "no pickle", "list", "objects", "labels"]


@pytest.mark.parametrize("how", HOWS)
def test_broken_archives_tell_in_one_line_and_run_nothing(small, tmp_path, how):
    files, expected = broken_cifar(how, tmp_path)
    source = pack(tmp_path / "cifar-100.tar.gz", files)
    with pytest.raises(UserError) as info:
        prepare("cifar100", source, tmp_path / "data")
    assert expected in str(info.value)
    assert str(source) in str(info.value)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "pwned").exists()
    assert not is_prepared("cifar100", tmp_path / "data")


def test_sources_that_are_no_archives(small, tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"no tar")
    whole = pack(tmp_path / "whole.tar.gz", cifar_files("binary"))
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:-5000])
    for name in ("x.tar.gz", "cut.tar.gz"):
        with pytest.raises(UserError, match=f"{name}: not a complete tar archive"):
            prepare("cifar100", tmp_path / name, tmp_path / "data")
    with pytest.raises(UserError, match=r"no such folder; it should hold cifar-100-binary\.tar\.gz"):
        prepare("cifar100", tmp_path / "gone", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds neither cifar-100-binary\.tar\.gz nor cifar-100-python\.tar\.gz"):
        prepare("cifar100", tmp_path / "empty", tmp_path / "data")


def glyph(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)


def shrink(monkeypatch, name: str, **sizes) -> None:
    """The same reader, of smaller original files."""
    whole = IMAGE_SETS[name]
    originals = whole.originals._replace(read=partial(whole.originals.read, **sizes))
    monkeypatch.setitem(data.DATASETS, name, images.info(whole._replace(originals=originals)))


def test_kmnist_from_its_four_files(tmp_path, monkeypatch):
    shrink(monkeypatch, "kmnist", images={"train": 40, "test": 20})
    for prefix, count in (("train", 40), ("t10k", 20)):
        pixels = np.stack([glyph(count + i) for i in range(count)])
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx_file(pixels))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_file((np.arange(count) % 10).astype(np.uint8)))
    prepare("kmnist", tmp_path, tmp_path / "data")
    loaded = load("kmnist", data_dir=tmp_path / "data")
    assert loaded.class_names == {"train": ["o", "ki", "su", "tsu", "na"], "test": ["ha", "ma", "ya", "re", "wo"]}
    assert loaded.splits["test"].counts.tolist() == [6] * 5
    expected = [glyph(20 + 5), glyph(20 + 15), *(glyph(40 + i) for i in (5, 15, 25, 35))]
    np.testing.assert_array_equal(loaded.splits["test"].images[:6, ..., 0], expected)


def emnist_zip(path: Path, counts: dict[str, int]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for part, count in counts.items():
            pixels = np.stack([glyph(count + i) for i in range(count)])
            labels = (np.arange(count) % 62).astype(np.uint8)
            archive.writestr(f"gzip/emnist-byclass-{part}-images-idx3-ubyte.gz", idx_file(pixels))
            archive.writestr(f"gzip/emnist-byclass-{part}-labels-idx1-ubyte.gz", idx_file(labels))
    return path


def test_emnist_stands_upright_and_is_limited(tmp_path, monkeypatch):
    counts = {"train": 62 * 3, "test": 62}
    shrink(monkeypatch, "emnist", images=counts)
    prepare("emnist", emnist_zip(tmp_path / "gzip.zip", counts), tmp_path / "data")
    loaded = load("emnist", data_dir=tmp_path / "data")
    assert loaded.class_names == split_names("emnist", "random", list(catalogue.CHARACTERS))
    assert (tmp_path / "data" / "emnist" / "byclass" / "3.1.0").is_dir()
    label = catalogue.CHARACTERS.index(loaded.class_names["test"][3])
    bank = loaded.splits["test"]
    assert set(bank.counts.tolist()) == {4}
    expected = [glyph(62 + label).T, *(glyph(186 + label + 62 * i).T for i in range(3))]
    np.testing.assert_array_equal(bank.images[12:16, ..., 0], expected)
    few = images.load_images(catalogue.EMNIST._replace(limit=2), data_dir=tmp_path / "data")
    assert set(few.splits["test"].counts.tolist()) == {3}, "two of the training part and the one of the test part"
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("gzip/emnist-letters-train-images-idx3-ubyte.gz", b"")
    with pytest.raises(UserError, match="holds no gzip/emnist-byclass-train-images"):
        prepare("emnist", tmp_path / "other.zip", tmp_path / "elsewhere")


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def png_mask(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("L", size[::-1]).save(file, "PNG")
    return file.getvalue()


BIRDS = 200


def birds(folder: Path, version: str = "0.2.0", name: str = "caltech_birds2011") -> Path:
    """What TFDS prepares of CUB: numbered labels, images of all sizes, features that nobody asked for."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=BIRDS),
            "bbox": tfds.features.BBoxFeature(),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
        }
    )

    def examples(part: str):
        for label in range(BIRDS):
            for i in range(2 if part == "train" and label % 3 == 0 else 1):
                size = (10 + label % 7, 12)
                yield (
                    f"{part}{label}-{i}",
                    {
                        "image": jpeg(1000 * len(part) + 10 * label + i, size),
                        "image/filename": "x.jpg",
                        "label": label,
                        "bbox": tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=1.0, xmax=1.0),
                        "segmentation_mask": png_mask(size),
                    },
                )

    class Birds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features, description="x")

        def _split_generators(self, dl_manager):
            return {part: examples(part) for part in ("train", "test")}

        def _generate_examples(self):
            raise NotImplementedError

    Birds.name = name
    with records.quiet():
        Birds(data_dir=folder, file_format="array_record").download_and_prepare(download_dir=folder / "downloads")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return birds(tmp_path_factory.mktemp("tfds"))


@pytest.mark.parametrize("below", ["", "caltech_birds2011", "caltech_birds2011/0.2.0"])
def test_records_of_tfds_are_taken_over(prepared, tmp_path, below):
    assert not is_prepared("caltech_birds2011", tmp_path)
    folder = prepare("caltech_birds2011", prepared / below, tmp_path)
    assert is_prepared("caltech_birds2011", tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == ["0.2.0"]
    loaded = load("caltech_birds2011", size=8, data_dir=tmp_path)
    assert {part: len(bank.counts) for part, bank in loaded.splits.items()} == {
        "train": 100,
        "validation": 50,
        "test": 50,
    }
    assert loaded.class_names["validation"][:2] == ["1", "5"]
    for part, bank in loaded.splits.items():
        for name, start, count in zip(loaded.class_names[part], bank.starts, bank.counts, strict=True):
            label = int(name)
            size = (10 + label % 7, 12)
            assert count == (3 if label % 3 == 0 else 2), "ragged, and the official parts pooled"
            np.testing.assert_array_equal(bank.images[start], decode(jpeg(4000 + 10 * label, size), 8, 3))
            rest = {decode(jpeg(5000 + 10 * label + i, size), 8, 3).tobytes() for i in range(count - 1)}
            assert {image.tobytes() for image in bank.images[start + 1 : start + count]} == rest


def test_original_files_beside_other_data_sets_of_tfds(small, prepared, tmp_path):
    """As where the archive lies in the folder that data is prepared in."""
    (tmp_path / "all").symlink_to(prepared)
    pack(tmp_path / "cifar-100-binary.tar.gz", cifar_files("binary"))
    assert prepare("cifar100", tmp_path, tmp_path / "data").parent.name == "cifar100"


def test_a_prepared_folder_of_tfds_serves_as_data_directory(prepared):
    assert is_prepared("caltech_birds2011", prepared)
    assert load("caltech_birds2011", size=4, data_dir=prepared).splits["test"].images.shape[1:] == (4, 4, 3)


def test_records_that_do_not_fit_in_memory(prepared, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**13}[name])
    with pytest.raises(UserError, match=r"0.2.0: 467 images of 500×500×3 need .* choose a smaller size"):
        load("caltech_birds2011", size=500, data_dir=prepared)


def test_the_newest_version_is_taken(tmp_path):
    for version in ("0.10.0", "0.9.0"):
        birds(tmp_path / "tfds", version)
    prepare("caltech_birds2011", tmp_path / "tfds", tmp_path / "data")
    (found,) = (tmp_path / "data").glob("*/*/dataset_info.json")
    assert json.loads(found.read_text())["version"] == "0.10.0"
    assert load("caltech_birds2011", size=4, data_dir=tmp_path / "data").splits


def test_what_tfds_did_not_prepare_for_us(prepared, tmp_path):
    with pytest.raises(UserError) as info:
        prepare("quickdraw_bitmap", prepared, tmp_path)
    assert (
        f"{prepared}: holds caltech_birds2011; it should be the folder of quickdraw_bitmap that TFDS prepared"
        in str(info.value)
    )
    with pytest.raises(UserError, match="it should be the folder of emnist/byclass"):
        prepare("emnist", prepared, tmp_path)
    (tmp_path / "empty").mkdir()
    for source in ("empty", "gone"):
        with pytest.raises(UserError, match=r"holds no dataset_info\.json"):
            prepare("quickdraw_bitmap", tmp_path / source, tmp_path)
    path = tmp_path / "quickdraw_bitmap" / "3.0.0" / "dataset_info.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"name": "quickdraw_bitmap", "version": "3.0.0", "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"as tfrecord, .* `tfds build quickdraw_bitmap --file_format=array_record`"):
        prepare("quickdraw_bitmap", tmp_path / "quickdraw_bitmap", tmp_path / "data")
    path.write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json: cannot read"):
        prepare("quickdraw_bitmap", tmp_path / "quickdraw_bitmap", tmp_path / "data")
    with pytest.raises(UserError) as info:
        prepare("quickdraw_bitmap", None, tmp_path / "data")
    said = ["run `tfds build quickdraw_bitmap --file_format=array_record`", "prepare quickdraw_bitmap --source DIR`"]
    assert all(each in str(info.value) for each in said)
    assert "\n" not in str(info.value)
    assert not is_prepared("quickdraw_bitmap", tmp_path / "data")


def photographs(prefix: str) -> dict[str, bytes]:
    files = {
        f"{prefix}{c}/{c}_{i}.jpg": jpeg(10 * k + i, (6 + i, 8)) for k, c in enumerate("xyz") for i in range(k + 1)
    }
    return {**files, f"{prefix}x/.directory": b"", f"{prefix}x/._x_0.jpg": b"shadow", "labels/x.txt": b"x"}


TEXTURES = catalogue.DTD._replace(
    splits={"by_number": images.Split("", images.numbered(test=[0, 2]))},
    originals=catalogue.DTD.originals._replace(read=partial(archives.class_folders, classes=3, images=6)),
)


@pytest.mark.parametrize("how", ["archive", "archive with dtd above", "unpacked", "class folders"])
def test_photographs_in_class_folders(tmp_path, how):
    files = photographs("images/" if "dtd" not in how else "dtd/images/")
    source = pack(tmp_path / "source" / "dtd-r1.0.1.tar.gz", dict(reversed(files.items())))
    if how in ("unpacked", "class folders"):
        source.unlink()
        for name, content in files.items():
            path = source.parent / ("" if how == "class folders" else "dtd") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        source = source.parent
    images.prepare_images(TEXTURES, source, tmp_path / "data")
    loaded = images.load_images(TEXTURES, size=6, data_dir=tmp_path / "data")
    assert loaded.class_names == {"train": ["y"], "test": ["x", "z"]}
    assert loaded.splits["test"].counts.tolist() == [1, 3]
    expected = [decode(jpeg(seed, (6 + seed % 10, 8)), 6, 3) for seed in (0, 20, 21, 22)]
    np.testing.assert_array_equal(loaded.splits["test"].images, expected)


def test_photographs_missing_or_damaged(tmp_path):
    files = photographs("images/")
    fewer = {name: content for name, content in files.items() if not name.endswith("z_2.jpg")}
    with pytest.raises(UserError, match="holds 5 photographs of 3 classes, it should hold 6 of 3"):
        images.prepare_images(TEXTURES, pack(tmp_path / "x.tar.gz", fewer), tmp_path / "data")
    files["images/y/y_1.jpg"] = files["images/y/y_1.jpg"][:-40]
    with pytest.raises(UserError, match=r"images/y/y_1\.jpg: not a readable image"):
        images.prepare_images(TEXTURES, pack(tmp_path / "x.tar.gz", files), tmp_path / "data")
    assert not records.is_prepared(TEXTURES.store, tmp_path / "data")


def test_flowers_are_labelled_by_number(tmp_path):
    import scipy.io

    source, labels = tmp_path / "source", np.array([[3, 1, 2, 1, 3]])
    source.mkdir()
    scipy.io.savemat(source / "imagelabels.mat", {"labels": labels})
    pack(source / "102flowers.tgz", {f"image_{n:05d}.jpg": jpeg(n, (6, 6)) for n in range(1, 6)})
    flowers = catalogue.FLOWERS._replace(
        splits={"by_number": images.Split("", images.numbered(test=[0, 2]))},
        originals=catalogue.FLOWERS.originals._replace(read=partial(archives.flowers, classes=3, images=5)),
    )
    images.prepare_images(flowers, source, tmp_path / "data")
    loaded = images.load_images(flowers, size=6, data_dir=tmp_path / "data")
    assert loaded.class_names == {"train": ["1"], "test": ["0", "2"]}
    expected = [decode(jpeg(n, (6, 6)), 6, 3) for n in (2, 4, 1, 5)]
    np.testing.assert_array_equal(loaded.splits["test"].images, expected)
    for content, said in ((b"junk", "not a MATLAB file with labels"), (None, "should hold 5 labels from 1 to 3")):
        scipy.io.savemat(source / "imagelabels.mat", {"labels": labels[:, :4]})
        if content:
            (source / "imagelabels.mat").write_bytes(content)
        with pytest.raises(UserError, match=said):
            images.prepare_images(flowers, source, tmp_path / "elsewhere")


def test_other_classes_than_those_of_the_split(tmp_path):
    store = catalogue.DTD.store
    examples = [(name, {"image": jpeg(i, (4, 4)), "label": i, "index": 0}) for i, name in enumerate(("banded", "wavy"))]
    records.write(store, tmp_path, (None, None, 3), ["banded", "wavy"], {"train": examples})
    with pytest.raises(UserError, match=r"has no class 'bumpy' \(13 such classes in all\)"):
        load("dtd", data_dir=tmp_path)
    flowers = catalogue.FLOWERS.store
    records.write(flowers, tmp_path, (None, None, 3), ["a", "b"], {"train": examples})
    with pytest.raises(UserError) as info:
        load("oxford_flowers102", data_dir=tmp_path)
    said = "oxford_flowers102, split meta_dataset: the prepared data has 2 classes, its split by class needs 102 (in "
    assert f"{said}{tmp_path}" in str(info.value)


def test_damaged_descriptions_of_records(tmp_path):
    folder = prepare("caltech_birds2011", birds(tmp_path / "tfds"), tmp_path / "data")
    path = folder / "dataset_info.json"
    path.unlink()  # a link, it may be
    path.write_text("{")
    with pytest.raises(UserError, match=f"damaged records .*prepare caltech_birds2011 --data-dir {tmp_path}"):
        load("caltech_birds2011", data_dir=tmp_path / "data")


@pytest.mark.parametrize("how", ["fifo", "dangling"])
def test_records_that_are_no_files(tmp_path, how):
    """Of a data directory that others prepared: TFDS would wait for a FIFO."""
    folder = birds(tmp_path / "tfds") / "caltech_birds2011" / "0.2.0"
    path = folder / "label.labels.txt"
    path.unlink(missing_ok=True)
    if how == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/nowhere/at/all")
    with pytest.raises(
        UserError, match=r"0.2.0: damaged records \(.*; delete this folder and run `metajax data prepare"
    ):
        load("caltech_birds2011", data_dir=tmp_path / "tfds")


def test_damaged_records(tmp_path):
    folder = prepare("caltech_birds2011", birds(tmp_path / "tfds"), tmp_path / "data")
    for path in folder.glob("*.array_record*"):
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged records"):
        load("caltech_birds2011", data_dir=tmp_path / "data")


def test_tasks_of_a_data_set(prepared):
    settings = {"train": Shots(shots=1, queries=1), "test": Shots(shots=1, queries=1), "size": 8}
    made = ImagesConfig(dataset="caltech_birds2011", **settings).tasks(prepared)
    assert list(made.splits) == ["train", "validation", "test"]
    task = made.splits["test"].sampler(jax.random.key(0))
    assert task.support.x.shape == (5, 8, 8, 3)
    assert made.outputs == 5
    with pytest.raises(UserError, match="caltech_birds2011 has no split 'by_colour': choose one of closer_look"):
        ImagesConfig(dataset="caltech_birds2011", split="by_colour").tasks(prepared)
    made = ImagesConfig(dataset="caltech_birds2011").tasks(prepared)
    assert made.splits == {}
    assert all("has only 2 examples" in said for said in made.problems.values())
    assert list(made.problems) == ["train", "validation", "test"]
    with pytest.raises(UserError, match=f"run `metajax data prepare cifar100 --data-dir {prepared}`"):
        ImagesConfig().tasks(prepared)


@pytest.mark.parametrize(("flip", "mirrored"), [(None, True), (True, True), (False, False)])
def test_photographs_are_mirrored_in_training_unless_told(prepared, flip, mirrored):
    shots = Shots(shots=1, queries=1)
    spec = ImagesConfig(dataset="caltech_birds2011", size=8, shift=0, flip=flip, train=shots, test=shots)
    bank = load("caltech_birds2011", size=8, data_dir=prepared).splits["train"]
    known = {image.tobytes() for image in bank.images}
    drawn = [spec.tasks(prepared).splits["train"].sampler(jax.random.key(k)).support.x for k in range(3)]
    drawn = [np.asarray(np.round(image * 255), np.uint8) for image in np.concatenate(drawn)]
    assert all(image.tobytes() in known or image[:, ::-1].tobytes() in known for image in drawn)
    assert any(image.tobytes() not in known for image in drawn) == mirrored


def test_the_choice_of_data_sets_is_the_catalogue():
    (choices,) = [field.type for field in ImagesConfig.__dataclass_fields__.values() if field.name == "dataset"]
    assert set(choices.__args__) == set(IMAGE_SETS)
    assert not [name for name, each in IMAGE_SETS.items() if each.mirrors and name in ("emnist", "kmnist")]


def test_tensorflow_is_not_imported(prepared, tmp_path):
    code = f"""
import sys
from pathlib import Path
from metajax import data
assert "tensorflow_datasets" not in sys.modules, "slow to import, so only on demand"
data.prepare("caltech_birds2011", Path({str(prepared)!r}), Path({str(tmp_path)!r}))
data.load("caltech_birds2011", size=8, data_dir=Path({str(tmp_path)!r}))
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def describe(folder: Path, features: object) -> Path:
    """What TFDS would have prepared for Quick, Draw!, with these features."""
    place = folder / "quickdraw_bitmap" / "3.0.0"
    place.mkdir(parents=True)
    info = {"name": "quickdraw_bitmap", "version": "3.0.0", "fileFormat": "array_record"}
    (place / "dataset_info.json").write_text(json.dumps(info))
    (place / "features.json").write_text(features if isinstance(features, str) else json.dumps(features))
    return folder


FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": "evil_module.Features"},
        {"pythonClassName": FEATURES, "featuresDict": {"features": {"image": {"pythonClassName": "evil_module.X"}}}},
        {"type": FEATURES, "content": {"image": {"type": "evil_module.X", "content": "{}"}}},
        {"python_class_name": "tensorflow_datasets_evil.Features"},
        {"pythonClassName": FEATURES, "jsonFeature": {"json": '{"x": {"type": "evil_module.X", "content": {}}}'}},
    ],
)
def test_adopted_features_import_nothing_but_tfds(tmp_path, features):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    with pytest.raises(UserError, match=r"features.json: names the class .*evil.*, which is not one of tensorflow"):
        prepare("quickdraw_bitmap", describe(tmp_path, features), tmp_path / "data")
    assert not (tmp_path / "pwned").exists()
    assert not is_prepared("quickdraw_bitmap", tmp_path / "data")


def test_features_are_checked_before_each_use(prepared, tmp_path, monkeypatch):
    """The data directory may be another user's, and a source that was taken over may change afterwards."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(prepared, tmp_path / "theirs")
    prepare("caltech_birds2011", tmp_path / "theirs", tmp_path / "ours")
    (features,) = (tmp_path / "theirs").glob("*/*/features.json")
    text = features.read_text()
    nested = {"pythonClassName": FEATURES, "jsonFeature": {"json": '{"x": {"type": "evil_module.X", "content": {}}}'}}
    for evil in (text.replace("tensorflow_datasets.core.features.image_feature.", "evil_module."), json.dumps(nested)):
        features.write_text(evil)
        with pytest.raises(UserError, match=r"features.json: names the class 'evil_module.*it is not imported"):
            load("caltech_birds2011", size=4, data_dir=tmp_path / "theirs")
        with pytest.raises(UserError, match=r"features.json: names the class 'evil_module.*it is not imported"):
            next(records.read(IMAGE_SETS["caltech_birds2011"].store, tmp_path / "theirs", "train", 4))
    assert not (tmp_path / "pwned").exists()
    assert load("caltech_birds2011", size=4, data_dir=tmp_path / "ours").splits


def test_adopted_folders_with_odd_contents(tmp_path):
    for features in ("{", "[" * 100_000):
        with pytest.raises(UserError, match=r"features.json: cannot read"):
            prepare("quickdraw_bitmap", describe(tmp_path / str(len(features)), features), tmp_path / "data")
    place = describe(tmp_path / "x", {"pythonClassName": FEATURES}) / "quickdraw_bitmap" / "3.0.0"
    os.mkfifo(place / "pipe")
    (place / "device").symlink_to("/dev/zero")
    (place / "round").symlink_to(place)
    adopted = prepare("quickdraw_bitmap", tmp_path / "x", tmp_path / "data")
    assert sorted(path.name for path in adopted.iterdir()) == ["dataset_info.json", "features.json"]
    (place / "dataset_info.json").write_text("[1]")
    with pytest.raises(UserError, match=r"dataset_info.json: cannot read: it should hold an object, it holds list"):
        prepare("quickdraw_bitmap", tmp_path / "x", tmp_path / "elsewhere")


def test_leftovers_of_killed_preparations_are_removed(small, prepared, tmp_path):
    source = pack(tmp_path / "source" / "cifar-100-binary.tar.gz", cifar_files("binary"))
    for name, files in (("cifar100", source), ("caltech_birds2011", prepared)):
        leftover = tmp_path / name / "incomplete.0123_1.0.0"
        leftover.mkdir(parents=True)
        (leftover / "half").write_bytes(b"x")
        # As another process at work holds it.
        with clear_leftovers(leftover.parent, "nothing"), records.preparing(IMAGE_SETS[name].store, tmp_path):
            assert leftover.exists()
        prepare(name, files, tmp_path)
        assert is_prepared(name, tmp_path)
        assert not list(leftover.parent.glob("incomplete.*"))
        leftover.mkdir()  # of a process that worked at the same time
        prepare(name, files, tmp_path)
        assert not leftover.exists()


def test_nothing_is_prepared_through_links(small, prepared, tmp_path):
    source, precious = pack(tmp_path / "cifar-100-binary.tar.gz", cifar_files("binary")), tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "data").mkdir()
    for name, files in (("cifar100", source), ("caltech_birds2011", prepared)):
        (tmp_path / "data" / name).symlink_to(precious)
        with pytest.raises(UserError, match=f"{name}: cannot write: it is a symbolic link, through which nothing"):
            prepare(name, files, tmp_path / "data")
    (tmp_path / "data" / "downloads").symlink_to(precious)
    with pytest.raises(UserError, match="downloads: cannot write: it is a symbolic link"):
        prepare("kmnist", None, tmp_path / "data")
    assert not list(precious.iterdir())


def test_files_that_are_not_the_official_ones_are_named(small, tmp_path, caplog, monkeypatch):
    source = pack(tmp_path / "source" / "cifar-100-binary.tar.gz", cifar_files("binary"))
    prepare("cifar100", source, tmp_path / "a")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        f"{source}: has {source.stat().st_size:,} bytes, the official cifar-100-binary.tar.gz has 168,513,733: "
        "it may be damaged or another file"
    )
    caplog.clear()
    (file,) = IMAGE_SETS["cifar100"].originals.files
    content = source.read_bytes()
    for digest, warnings in ((hashlib.sha256(content).hexdigest(), 0), ("0" * 64, 1)):
        obtain("cifar100", [file._replace(size=len(content), sha256=digest)], source.parent, tmp_path)
        assert len(caplog.records) == warnings
    assert f"has sha256 {hashlib.sha256(content).hexdigest()}, the official" in caplog.text
    caplog.clear()
    source.rename(source.parent / "cifar-100-python.tar.gz")  # of which no checksum is known
    prepare("cifar100", source.parent, tmp_path / "b")
    assert not caplog.records


def test_a_source_that_is_no_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "cifar-100-binary.tar.gz")
    for name in ("pipe", "cifar-100-binary.tar.gz", "."):
        command = [
            "data",
            "prepare",
            "cifar100",
            "--source",
            str(tmp_path / name),
            "--data-dir",
            str(tmp_path / "data"),
        ]
        assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("neither a folder nor a regular file; it should hold cifar-100-binary.tar.gz") == 2
    assert said.count("holds neither cifar-100-binary.tar.gz nor") == 1
