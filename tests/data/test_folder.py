"""A user's own images: layouts, formats, damage, caching, and a real archive."""

import errno
import fcntl
import io
import logging
import os
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import run, small
from PIL import Image

from metajax.cli import main
from metajax.data import disk, folder, load, load_folder, pixels, prepare
from metajax.data.disk import clear_leftovers, open_zip
from metajax.data.pixels import BadImageError, decode
from metajax.errors import UserError
from metajax.experiment import FolderConfig, Shots
from metajax.system.files import read_file

REAL = Path(__file__).parents[3] / "shared" / "data" / "tiny_imagenet" / "tiny_imagenet_60.zip"
RED = (255, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour(value, size=(12, 10)) -> bytes:
    return encode(Image.new("RGB", size, value))


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def by_split() -> dict[str, bytes]:
    names = [
        "train/cat/1.png",
        "train/cat/2.PNG",
        "train/dog/1.png",
        "val/emu/1.png",
        "test/fox/1.png",
        "test/fox/2.png",
    ]
    return {name: colour((10 * index, 0, 0)) for index, name in enumerate(names)}


def reds(bank) -> list[int]:
    return bank.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("top", ["", "top/", "a/b/"])
@pytest.mark.parametrize("packed", [False, True])
def test_layout_by_split(tmp_path, top, packed):
    files = {top + name: data for name, data in by_split().items()}
    files[top + "train/README.txt"] = b"not an image"
    files["__MACOSX/train/cat/._1.png"] = b"shadow"
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    loaded = load_folder(source, size=8, data_dir=tmp_path / "data")
    assert loaded.class_names == {"train": ["cat", "dog"], "validation": ["emu"], "test": ["fox"]}
    assert loaded.splits["train"].images.shape == (3, 8, 8, 3)
    assert loaded.splits["train"].counts.tolist() == [2, 1]
    assert loaded.splits["train"].starts.tolist() == [0, 2]
    assert {split: reds(bank) for split, bank in loaded.splits.items()} == {
        "train": [0, 10, 20],
        "validation": [30],
        "test": [40, 50],
    }
    assert loaded.skipped == ()


def test_split_folders_by_any_name(tmp_path):
    source = put(tmp_path / "x", {"Train/a/1.png": colour(RED), "VALIDATION/b/1.png": colour(RED)})
    assert list(load_folder(source, data_dir=tmp_path).splits) == ["train", "validation"]


def test_images_in_deeper_folders_belong_to_the_class(tmp_path):
    """The official Tiny ImageNet has train/n01443537/images/*.JPEG."""
    source = put(tmp_path / "x", {"train/a/images/1.jpeg": colour(RED), "test/b/images/1.jpeg": colour(RED)})
    assert load_folder(source, data_dir=tmp_path).class_names == {"train": ["a"], "test": ["b"]}


@pytest.mark.parametrize(("classes", "sizes"), [(3, [1, 1, 1]), (10, [6, 2, 2]), (25, [16, 4, 5]), (50, [32, 8, 10])])
def test_layout_by_class(tmp_path, classes, sizes):
    source = put(
        tmp_path / "x",
        {f"c{c:02d}/{i}.png": colour((c, 0, 0), (4, 4)) for c in range(classes) for i in (1, 2)},
    )
    loaded = load_folder(source, size=4, data_dir=tmp_path)
    assert [len(bank.counts) for bank in loaded.splits.values()] == sizes
    assert list(loaded.splits) == ["train", "validation", "test"]
    everything = [name for names in loaded.class_names.values() for name in names]
    assert sorted(everything) == [f"c{c:02d}" for c in range(classes)]
    for split, bank in loaded.splits.items():
        assert reds(bank) == [int(name[1:]) for name in loaded.class_names[split] for _ in (1, 2)]
    assert load_folder(source, size=4, data_dir=tmp_path).class_names == loaded.class_names
    seeds = [load_folder(source, size=4, data_dir=tmp_path, split_seed=seed).class_names["test"] for seed in range(8)]
    assert any(names != seeds[0] for names in seeds)


def test_a_class_may_be_called_train(tmp_path):
    source = put(tmp_path / "x", {f"{name}/1.png": colour(RED) for name in ("bus", "car", "train")})
    names = load_folder(source, data_dir=tmp_path).class_names
    assert sorted(name for split in names.values() for name in split) == ["bus", "car", "train"]


def test_mixed_layout(tmp_path):
    source = put(tmp_path / "x", {"train/a/1.png": colour(RED), "dog/1.png": colour(RED)})
    with pytest.raises(UserError, match="'train' and 'dog' lie side by side"):
        load_folder(source, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no images in class folders"),
        ({"cat/notes.txt": b""}, "no images in class folders"),
        ({"1.png": b""}, "no images in class folders"),
        (
            {"a/1.png": colour(RED), "b/1.png": colour(RED)},
            "holds 2 classes, a split by class needs at least 3",
        ),
        ({"a/1.png": b"", "b/1.png": b"x", "c/1.png": b""}, "none of the 3 images can be read, e.g. c/1.png"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_hopeless_sources(tmp_path, files, expected, packed):
    (tmp_path / "x").mkdir()
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    with pytest.raises(UserError) as info:
        load_folder(source, data_dir=tmp_path / "data")
    assert f"{source}: " in str(info.value)
    assert expected in str(info.value)
    assert "\n" not in str(info.value)


def test_wrong_source_and_options(tmp_path):
    with pytest.raises(UserError, match="no such folder or zip archive"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "x.tar").write_bytes(b"no zip")
    with pytest.raises(UserError, match="neither a folder nor a complete zip"):
        load_folder(tmp_path / "x.tar")
    with pytest.raises(UserError, match="2 channels"):
        load_folder(tmp_path, channels=2)
    with pytest.raises(UserError, match="--source DIR"):
        prepare("folder", data_dir=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_corrupt_images_are_named(tmp_path, caplog, packed):
    whole = encode(Image.effect_noise((64, 64), 99), "JPEG")
    files = {
        **by_split(),
        "train/cat/cut.jpg": whole[: len(whole) // 2],
        "train/gnu/x.png": b"x",
        "train/top.png": b"",
    }
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    for _ in ("decoded", "cached"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = load_folder(source, size=8, data_dir=tmp_path / "data")
        assert loaded.class_names["train"] == ["cat", "dog"], "a class without an image is dropped"
        assert reds(loaded.splits["train"]) == [0, 10, 20]
        assert [text.split(":")[0] for text in loaded.skipped] == [
            "train/top.png",
            "train/cat/cut.jpg",
            "train/gnu/x.png",
        ]
        assert len(caplog.records) == 2
        assert "unusable images left out (3): train/top.png" in caplog.text
        assert "class folders without a readable image: train/gnu (files end in .png)" in caplog.text
        with pytest.raises(UserError, match=r"train/top\.png"):
            load_folder(source, size=8, data_dir=tmp_path / "data", strict=True)


def test_strict_names_the_file(tmp_path):
    source = put(tmp_path / "x", {**by_split(), "val/emu/2.png": b"\x89PNG\r\n\x1a\n junk"})
    with pytest.raises(UserError) as info:
        load_folder(source, data_dir=tmp_path, strict=True)
    assert f"{source}: val/emu/2.png: " in str(info.value)
    assert "\n" not in str(info.value)


def test_empty_class_folder(tmp_path, caplog):
    source = put(tmp_path / "x", by_split())
    (source / "train" / "void").mkdir()
    assert load_folder(source, data_dir=tmp_path).class_names["train"] == ["cat", "dog"]
    assert "empty folders ignored: train/void" in caplog.text
    caplog.clear()
    path = pack(tmp_path / "x.zip", {**by_split(), "train/": b"", "train/void/": b"", "train/cat/": b""})
    load_folder(path, data_dir=tmp_path)
    assert "empty folders ignored: train/void" in caplog.text
    assert "train/cat" not in caplog.text


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    source = put(tmp_path / "x", by_split())
    shutil.move(source / "train" / "dog", tmp_path / "elsewhere")
    (source / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (source / "train" / "cat" / "loop").symlink_to(source / "train")
    (source / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    loaded = load_folder(source, data_dir=tmp_path)
    assert loaded.class_names["train"] == ["cat", "dog"]
    assert loaded.splits["train"].counts.tolist()[1] == 1
    assert [text.split(":")[0] for text in loaded.skipped] == ["train/dog/gone.png"]


def test_cache_follows_the_files(tmp_path, monkeypatch):
    source = put(tmp_path / "x", by_split())
    load_folder(source, size=8, data_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "decode", None)
        load_folder(source, size=8, data_dir=tmp_path, split_seed=5)
    load_folder(source, size=9, data_dir=tmp_path)
    load_folder(source, size=8, channels=1, data_dir=tmp_path)
    assert len(list((tmp_path / "folder").glob("*.npy"))) == 3
    changed = source / "train" / "cat" / "1.png"
    changed.write_bytes(colour((99, 0, 0)))
    os.utime(changed, ns=(1, 1))
    assert reds(load_folder(source, size=8, data_dir=tmp_path).splits["train"])[0] == 99
    put(source, {"train/cat/3.png": colour((77, 0, 0))})
    assert reds(load_folder(source, size=8, data_dir=tmp_path).splits["train"])[2] == 77


def test_damaged_cache_is_rebuilt(tmp_path, caplog):
    source = put(tmp_path / "x", by_split())
    load_folder(source, size=8, data_dir=tmp_path)
    (path,) = (tmp_path / "folder").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-9])
    assert reds(load_folder(source, size=8, data_dir=tmp_path).splits["train"]) == [0, 10, 20]
    assert "damaged cache" in caplog.text
    assert len(caplog.records) == 1


def test_prepare_and_load_by_name(tmp_path):
    source = put(tmp_path / "x", by_split())
    prepare("folder", source, tmp_path)
    assert load("folder", source=source, data_dir=tmp_path).splits["test"].images.shape == (2, 84, 84, 3)


KINDS = ["jpeg", "palette", "gif", "bmp", "webp", "cmyk", "rgba", "clear", "translucent", "clear grey"]
KINDS += ["clear palette", "grey", "one bit", "16-bit png", "16-bit tiff", "32-bit tiff"]


def transparent_palette() -> bytes:
    image = Image.new("RGB", (6, 6), RED).convert("P")
    return encode(image, transparency=image.getpixel((0, 0)))


def grey16() -> Image.Image:
    return Image.fromarray(np.full((6, 6), 0x80FF, np.uint16))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("RGB", (6, 6), RED), "JPEG", quality=95, subsampling=0), RED),
        (encode(Image.new("RGB", (6, 6), RED).convert("P")), RED),
        (encode(Image.new("RGB", (6, 6), RED), "GIF"), RED),
        (encode(Image.new("RGB", (6, 6), RED), "BMP"), RED),
        (encode(Image.new("RGB", (6, 6), RED), "WEBP", lossless=True), RED),
        (encode(Image.new("CMYK", (6, 6), (0, 255, 255, 0)), "TIFF"), RED),
        (encode(Image.new("RGBA", (6, 6), (255, 0, 0, 255))), RED),
        (encode(Image.new("RGBA", (6, 6), (255, 0, 0, 0))), (255, 255, 255)),
        (encode(Image.new("RGBA", (6, 6), (0, 0, 0, 127))), (128, 128, 128)),
        (encode(Image.new("LA", (6, 6), (0, 0))), (255, 255, 255)),
        (transparent_palette(), (255, 255, 255)),
        (encode(Image.new("L", (6, 6), 77)), (77, 77, 77)),
        (encode(Image.new("1", (6, 6), 1)), (255, 255, 255)),
        (encode(grey16()), (128, 128, 128)),
        (encode(grey16(), "TIFF"), (128, 128, 128)),
        (encode(Image.new("I", (6, 6), 0x80FF), "TIFF"), (128, 128, 128)),
    ],
    ids=KINDS,
)
@pytest.mark.parametrize("size", [3, 6, 9])
def test_every_kind_of_image(data, expected, size):
    pixels = decode(data, size, 3)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 2
    grey = int(Image.new("RGB", (1, 1), expected).convert("L").getpixel((0, 0)))
    assert np.abs(decode(data, size, 1).astype(int) - grey).max() <= 2


def test_centre_crop_keeps_the_aspect():
    strip = np.zeros((4, 12, 3), np.uint8)
    strip[:, 4:8] = 200
    for array in (strip, strip.transpose(1, 0, 2)):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(array)), 4, 3), np.full((4, 4, 3), 200))


def test_cameras_rotation_is_obeyed():
    array = np.zeros((8, 8), np.uint8)
    array[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = decode(encode(Image.fromarray(array), exif=exif), 8, 1)
    assert turned[-1].min() == 255
    assert turned[:-1].max() == 0


def test_floats_are_refused():
    with pytest.raises(BadImageError, match="floating-point"):
        decode(encode(Image.new("F", (4, 4), 0.5), "TIFF"), 4, 1)


@pytest.mark.skipif(not REAL.is_file(), reason=f"the archive of natural images is not at {REAL}")
def test_real_archive(tmp_path):
    loaded = load_folder(REAL, size=64, data_dir=tmp_path, strict=True)
    assert {k: (len(v.counts), len(v.images)) for k, v in loaded.splits.items()} == {
        "train": (128, 7680),
        "validation": (32, 1920),
        "test": (40, 2400),
    }
    names = [set(names) for names in loaded.class_names.values()]
    assert len(set.union(*names)) == 200
    with zipfile.ZipFile(REAL) as archive:
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            name = loaded.class_names[split][7]
            files = sorted(n for n in archive.namelist() if f"/{short}/{name}/" in n and n.endswith(".JPEG"))
            start = loaded.splits[split].starts[7]
            for offset, file in enumerate(files):
                expected = np.asarray(Image.open(archive.open(file)).convert("RGB"))
                np.testing.assert_array_equal(loaded.splits[split].images[start + offset], expected)


def test_a_run_can_tell_as_many_other_images(tmp_path):
    """Two classes that change places, one of which may have been trained on."""
    names = [f"{split}/{split}{c}" for split in ("train", "test") for c in range(2)]
    images = {f"{name}/{i}.png": colour((60 * at, 0, 9 * i)) for at, name in enumerate(names) for i in range(3)}
    source = put(tmp_path / "images", images)
    spec = FolderConfig(source=source, size=8, ways=2, train=Shots(queries=2), test=Shots(queries=2))
    before = spec.tasks(tmp_path / "data").fingerprints
    assert spec.tasks(tmp_path / "data").fingerprints == before
    one, other, aside = source / "train" / "train0", source / "test" / "test0", tmp_path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    after = spec.tasks(tmp_path / "data").fingerprints
    assert {split for split in before if after[split] != before[split]} == {"train", "test"}


def classes(root: Path, *names: str, count: int = 2) -> Path:
    """A folder with as many images of each class."""
    return put(root, {f"{name}/{i}.png": colour((10 * k, 0, 0)) for k, name in enumerate(names) for i in range(count)})


def all_names(loaded) -> list[str]:
    return sorted(name for names in loaded.class_names.values() for name in names)


@pytest.mark.parametrize("packed", [False, True])
def test_images_of_many_endings_and_of_none(tmp_path, packed):
    kinds = {"x.avif": "AVIF", "x.JP2": "JPEG2000", "x.tga": "TGA", "x.ico": "ICO", "x.pcx": "PCX", "x.sgi": "SGI"}
    kinds |= {"x": "PNG", "img.0001": "JPEG", "x.apng": "PNG", "x.pnm": "PPM"}
    files = {
        f"c{k}/{name}": encode(Image.new("RGB", (16, 16), RED), kind) for k, (name, kind) in enumerate(kinds.items())
    }
    files["c0/README"] = b"no image"
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    loaded = load_folder(source, size=8, data_dir=tmp_path / "data", strict=True)
    assert all_names(loaded) == [f"c{k}" for k in range(len(kinds))]
    for bank in loaded.splits.values():
        assert np.abs(bank.images.astype(int) - RED).max() <= 4


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_without_a_readable_image_are_named(tmp_path, caplog, packed):
    files = {f"{name}/1.png": colour(RED) for name in "abc"}
    files |= {"phone/1.HEIC": b"x", "plain/notes": b"x", "drawn/1.svg": b"x", "a/notes.txt": b"x"}
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    assert all_names(load_folder(source, data_dir=tmp_path / "data")) == ["a", "b", "c"]
    assert "class folders without a readable image: drawn, phone, plain (files end in .HEIC, .svg, none)" in caplog.text
    assert "unusable images left out (1): phone/1.HEIC: a HEIC image: `pip install pillow-heif`" in caplog.text
    files.pop("phone/1.HEIC")
    source = pack(tmp_path / "y.zip", files) if packed else put(tmp_path / "y", files)
    with pytest.raises(
        UserError, match=r"class folders without a readable image: drawn, plain \(files end in .svg, none\)"
    ):
        load_folder(source, data_dir=tmp_path / "data", strict=True)


def test_only_files_that_are_not_read(tmp_path):
    with pytest.raises(UserError, match=r"none of the 1 images can be read, e.g. a/1.heic: a HEIC .*pillow-heif"):
        load_folder(put(tmp_path / "x", {"a/1.heic": b"x"}), data_dir=tmp_path)
    with pytest.raises(UserError, match=r"no images in class folders; .* \(its files end in .svg, .txt\)"):
        load_folder(put(tmp_path / "y", {"a/1.svg": b"", "b/1.svg": b"", "b/1.txt": b""}), data_dir=tmp_path)


def test_heic_is_read_where_its_package_is_installed(tmp_path, monkeypatch):
    """Also if the images were cached before it was."""
    names = [f"{name}/1.heic" for name in "abc"]
    brand = b"\0\0\0\x18ftypheic"
    source = put(
        tmp_path / "x", {**dict.fromkeys(names, brand + bytes(8)), **{f"{n}/1.png": colour((9, 9, 9)) for n in "abc"}}
    )
    assert load_folder(source, size=4, data_dir=tmp_path).skipped
    with pytest.raises(BadImageError, match="pip install pillow-heif"):
        decode(brand + bytes(8), 4, 3)

    def opened(file, name):
        return Image.new("RGB", (4, 4), RED)

    def register() -> None:
        Image.register_open("HEIF", opened, lambda head: head[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    pixels.reads_heif.cache_clear()
    try:
        loaded = load_folder(source, size=4, data_dir=tmp_path)
    finally:
        pixels.reads_heif.cache_clear()
    assert loaded.skipped == ()
    assert sorted(reds(loaded.splits["test"])) == [9, 255]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Training", "Validating", "Testing"),
        ("meta_train", "meta_val", "meta_test"),
        ("metatrain", "meta-validation", "metatest"),
        ("train2017", "val2017", "test2017"),
        ("birds_train", "birds_dev", "birds_test"),
        ("train_images", "dev_images", "test"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_names_of_splits(tmp_path, names, packed):
    files = {
        f"{name}/{split}{c}/1.png": colour(RED) for name, split in zip(names, "tvs", strict=True) for c in range(2)
    }
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    expected = {"train": ["t0", "t1"], "validation": ["v0", "v1"], "test": ["s0", "s1"]}
    assert load_folder(source, data_dir=tmp_path / "data").class_names == expected


@pytest.mark.parametrize(
    "names",
    [
        ("train_station", "valley", "dog"),
        ("contest", "carnival", "strainer"),
        ("test_tube", "train_station", "cup", "car"),
        ("test_tube", "train_station", "val_thorens"),
        ("TestTube", "TrainStation", "DevBoard"),
        ("test_bench", "test_card", "test_tube"),
        ("dev_kit", "training_shoe", "testing_room", "data_centre"),
        ("test_tübe", "train_träck", "val_däl"),
    ],
)
def test_class_folders_that_sound_like_splits(tmp_path, names):
    source = put(tmp_path / "x", {f"{name}/images/1.png": colour(RED) for name in names})
    assert all_names(load_folder(source, data_dir=tmp_path)) == sorted(names)


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_that_sound_like_splits_with_images_of_their_own(tmp_path, packed):
    files = {f"{name}/images/1.png": colour(RED) for name in ("test_tube", "train_station")}
    files |= {"cup/1.png": colour(RED), "car/1.png": colour(RED)}
    source = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    assert all_names(load_folder(source, data_dir=tmp_path / "data")) == ["car", "cup", "test_tube", "train_station"]


def test_names_of_splits_that_are_not_plain_are_told(tmp_path, caplog):
    names = ("birds_train", "birds_dev", "birds_test")
    source = put(tmp_path / "x", {f"{name}/{name[-1]}/1.png": colour(RED) for name in names})
    load_folder(source, data_dir=tmp_path)
    assert "birds_dev as validation, birds_test as test, birds_train as train; if they are classes" in caplog.text
    caplog.clear()
    load_folder(put(tmp_path / "y", by_split()), data_dir=tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train", "holdout"), "the folders 'train' and 'holdout' lie side by side"),
        (("train", "test_tube"), "the folders 'train' and 'test_tube' lie side by side"),
        (("test_tube", "train_station"), "in test_tube and train_station, only folders do; .* rename them"),
        (("train2017", "val2017"), "in train2017 and val2017, only folders do; .* rename them to train, val and test"),
        (("my_train", "my_test", "my_other"), "lie side by side; .* rename or remove the others"),
        (("val", "validation", "train"), "'val' and 'validation' are both the validation split"),
        (
            ("images_background", "images_evaluation"),
            "in images_background and images_evaluation, only folders do; .* rename them",
        ),
    ],
)
def test_splits_that_are_not_all_recognised(tmp_path, names, said):
    source = put(tmp_path / "x", {f"{name}/{c}/1.png": colour(RED) for name in names for c in range(3)})
    with pytest.raises(UserError, match=said):
        load_folder(source, data_dir=tmp_path)


def test_class_folders_of_several_folders_are_named(tmp_path, caplog):
    source = put(tmp_path / "x", {f"{alphabet}/{c}/1.png": colour(RED) for alphabet in "abc" for c in ("x", "y")})
    assert all_names(load_folder(source, data_dir=tmp_path)) == ["a", "b", "c"]
    assert (
        "all images below a class folder are one class, also where it holds several folders: a with x, y" in caplog.text
    )


def test_classes_of_several_splits_are_named(tmp_path, caplog):
    layout = {"train": "abcd", "val": "dx", "test": "abxy"}
    source = put(tmp_path / "x", {f"{split}/{c}/1.png": colour(RED) for split, names in layout.items() for c in names})
    load_folder(source, data_dir=tmp_path)
    said = [record.getMessage() for record in caplog.records]
    end = ": scores are for known classes, not for new ones"
    assert said == [
        f"folder/x: 1 of the 2 validation classes is a training class too (d){end}",
        f"folder/x: 2 of the 4 test classes are training classes too (a, b){end}",
        f"folder/x: 1 of the 4 test classes is a validation class too (x){end}",
    ]


def test_classes_of_several_splits_on_the_command_line(tmp_path, capsys):
    both = put(tmp_path / "both", {f"{s}/{c}/1.png": colour(RED) for s in ("train", "test") for c in "abcdef"})
    for command in ("prepare", "inspect"):
        assert main(["data", command, "folder", "--source", str(both), "--data-dir", str(tmp_path / "data")]) == 0
        said = "6 of the 6 test classes are training classes too (a, b, c, …): scores are for known classes"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("how", ["fifo", "link to a device"])
def test_only_regular_files_are_read(tmp_path, how, caplog):
    source = classes(tmp_path / "x", "a", "b", "c")
    for name in ("a/x.png", "a/x"):
        if how == "fifo":
            os.mkfifo(source / name)
        else:
            (source / name).symlink_to("/dev/zero")
    loaded = load_folder(source, data_dir=tmp_path / "data")
    assert loaded.skipped == ("a/x.png: not a regular file",)
    lists = put(tmp_path / "lists", {"test.txt": b"a"})
    os.mkfifo(lists / "train.txt")
    with pytest.raises(UserError, match=r"train.txt: cannot read: not a regular file"):
        load_folder(source, data_dir=tmp_path / "data", split_lists=lists)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="neither a folder nor a complete zip archive"):
            load_folder(path, data_dir=tmp_path / "data")
    for name in ("pipe", "pipe/gone"):
        with pytest.raises(UserError):
            prepare("omniglot", tmp_path / name, tmp_path / "data")


def test_no_image_makes_pillow_start_another_program():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(BadImageError, match="of a kind that is not read"):
        decode(eps, 4, 3)
    assert not {"EPS", "WMF", "MPEG", "FITS"} & set(pixels.formats())


def test_nothing_is_written_through_links_in_the_cache(tmp_path, caplog):
    source, precious = classes(tmp_path / "x", "a", "b", "c"), tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "folder").symlink_to(precious)
    assert len(load_folder(source, size=4, data_dir=tmp_path / "data").splits) == 3
    assert "cannot cache the decoded images (it is a symbolic link" in caplog.text
    assert not list(precious.iterdir())
    (tmp_path / "data" / "folder").unlink()
    load_folder(source, size=4, data_dir=tmp_path / "data")
    for path in (tmp_path / "data" / "folder").iterdir():
        path.unlink()
        (precious / path.name).write_bytes(b"precious")
        path.symlink_to(precious / path.name)
    load_folder(source, size=4, data_dir=tmp_path / "data")
    assert {path.read_bytes() for path in precious.iterdir()} == {b"precious"}
    (tmp_path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    load_folder(source, size=5, data_dir=tmp_path / "link")
    assert list((tmp_path / "data" / "folder").glob("*-5px-3.npy")), "the data directory itself may be a link"


def test_a_cache_that_is_a_fifo(tmp_path, caplog):
    source = classes(tmp_path / "x", "a", "b", "c")
    load_folder(source, size=4, data_dir=tmp_path)
    for ending in ("json", "npy"):
        (path,) = (tmp_path / "folder").glob(f"*.{ending}")
        path.unlink()
        os.mkfifo(path)
        load_folder(source, size=4, data_dir=tmp_path)
        assert "damaged cache (not a regular file)" in caplog.text
        caplog.clear()


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    source = classes(tmp_path / "x", "a", "b", "c")
    put(tmp_path / "folder", {".metajax-0123456789abcdef.partial": b"half"})
    with clear_leftovers(tmp_path / "folder", "nothing"):  # another process at work
        load_folder(source, size=4, data_dir=tmp_path)
        assert list((tmp_path / "folder").glob("*.partial"))
    load_folder(source, size=5, data_dir=tmp_path)
    assert not list((tmp_path / "folder").glob("*.partial"))


def test_a_lock_that_another_process_never_releases(tmp_path):
    """It delays this process, and does not stop it; what it may be writing stays."""
    put(tmp_path, {"old.tmp": b"half"})
    os.utime(tmp_path / "old.tmp", (1, 1))
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with clear_leftovers(tmp_path, "*.tmp"):
            assert (tmp_path / "old.tmp").exists()
    finally:
        os.close(handle)
    with clear_leftovers(tmp_path, "*.tmp"):
        assert not (tmp_path / "old.tmp").exists()
        put(tmp_path, {"killed/half.tmp": b"", "killed.tmp": b""})
    assert not (tmp_path / "killed.tmp").exists(), "left behind meanwhile"


@pytest.mark.parametrize("how", ["windows", "cluster", "unreadable"])
def test_leftovers_where_there_are_no_locks(tmp_path, monkeypatch, how):
    put(tmp_path, {"old.tmp": b"half", "new.tmp": b"half"})
    os.utime(tmp_path / "old.tmp", (1, 1))
    if how == "windows":
        monkeypatch.setattr(disk, "fcntl", None)
    elif how == "cluster":

        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
    else:

        def refuse(*_):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
    with clear_leftovers(tmp_path, "*.tmp"):
        pass
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["new.tmp"]


def test_a_fifo_that_replaces_a_file_while_it_is_opened(tmp_path, monkeypatch):
    """No check before the file is opened may be trusted."""
    os.mkfifo(tmp_path / "pipe")
    real = os.stat(__file__)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: real)
    with pytest.raises(OSError, match="not a regular file"):
        read_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_zip(tmp_path / "pipe")


def test_the_directory_of_an_archive_is_limited(tmp_path, monkeypatch):
    """All of it is read into memory at once, before anything of it is checked."""
    path = pack(tmp_path / "x.zip", {f"c{c}/{i}.png": colour(RED) for c in range(3) for i in range(20)})
    assert len(load_folder(path, size=4, data_dir=tmp_path / "data").splits) == 3
    monkeypatch.setattr(disk, "MAX_BYTES", 2000)
    with pytest.raises(UserError, match=r"nor a complete zip archive \(has 3,\d+ bytes, more than the 2,000 that"):
        load_folder(path, size=4, data_dir=tmp_path / "data")
    open_zip(pack(tmp_path / "y.zip", {"a/1.png": b""})).close()


def test_names_that_no_terminal_shows(tmp_path, capsys):
    source = classes(tmp_path / "x", "a\nb", "c\x1b[31m", "é")
    os.makedirs(os.fsencode(source) + b"/\xff")
    Path(os.fsdecode(os.fsencode(source) + b"/\xff/1.png")).write_bytes(colour(RED))
    names = all_names(load_folder(source, data_dir=tmp_path))
    assert names == ["\\udcff", "a\\nb", "c\\x1b[31m", "é"]
    assert main(["data", "inspect", "folder", "--source", str(source), "--data-dir", str(tmp_path)]) == 0
    assert "a\\nb" in capsys.readouterr().out


def test_archives_of_windows(tmp_path):
    names = [f"{split}\\{split}{c}\\1.png" for split in ("train", "test") for c in range(2)]
    loaded = load_folder(pack(tmp_path / "x.zip", dict.fromkeys(names, colour(RED))), data_dir=tmp_path)
    assert loaded.class_names == {"train": ["train0", "train1"], "test": ["test0", "test1"]}


def test_sizes_that_no_image_has(tmp_path, capsys):
    source = classes(tmp_path / "x", "a", "b", "c")
    for size in ("4097", "1000000", "99999999999"):
        assert main(["data", "inspect", "folder", "--source", str(source), "--size", size]) == 2
        assert "must be from 1 to 4096" in capsys.readouterr().err
        with pytest.raises(UserError, match="must be a positive whole number of at most 4096"):
            load_folder(source, size=int(size), data_dir=tmp_path)
        with pytest.raises(UserError, match=r"task.size must be at most 4[,]?096"):
            FolderConfig(source=source, size=int(size))


def test_images_that_do_not_fit_in_memory(tmp_path, monkeypatch):
    """On Linux an allocation beyond the memory succeeds, and the process is killed later."""
    source = classes(tmp_path / "x", "a", "b", "c", count=4)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**13}[name])
    load_folder(source, size=8, data_dir=tmp_path / "data")
    said = (
        r"x: 12 images of 2000×2000×3 need 0.1 GiB, this machine has 0.0 GiB of memory: choose a smaller size \(--task"
    )
    with pytest.raises(UserError, match=said):
        load_folder(source, size=2000, data_dir=tmp_path / "data")


def test_a_path_in_place_of_a_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(classes(tmp_path / "x", "a", "b", "c").parent)
    for command, name in (("inspect", "x"), ("prepare", "x"), ("inspect", "./y"), ("inspect", str(tmp_path / "x"))):
        assert main(["data", command, name]) == 2
        assert f"for your own images use `folder --source {name}`" in capsys.readouterr().err
    assert main(["data", "inspect", "omniglott"]) == 2
    assert "did you mean 'omniglot'?" in capsys.readouterr().err


def test_too_few_classes_or_images_for_the_tasks(tmp_path):
    source = classes(tmp_path / "x", *(f"c{c:02d}" for c in range(10)), count=4)
    shots = Shots(shots=1, queries=2)
    made = FolderConfig(source=source, size=8, train=shots, test=shots).tasks(tmp_path / "data")
    assert list(made.splits) == ["train"]
    assert list(made.problems) == ["validation", "test"]
    said = made.problems["validation"]
    assert f"folder/x ({source}) has only 2 classes in its split 'validation', and a task has 5 ways" in said
    assert "add classes (a random split needs about 29 in all), or set --task.ways 2" in said
    spec = FolderConfig(source=source, size=8, ways=2, train=shots, test=Shots(shots=1, queries=9))
    said = spec.tasks(tmp_path / "data").problems["test"]
    assert "has only 4 examples: set fewer --task.test.queries or shots" in said
    assert list(FolderConfig(source=source, size=8, ways=2, train=shots, test=shots).tasks(tmp_path / "data").splits)


CONFIG = '''"""A folder of images."""

from metajax.experiment import *

config = Experiment(
    task=FolderConfig(ways=2, train=Shots(shots=1, queries=1), test=Shots(shots=1, queries=1), size=16),
    model=Conv4Config(channels=2),
    learner=PrototypicalNetworkConfig(),
    inner=Inner(learning_rate=0.1, steps=0),
    outer=Outer(learning_rate=1e-2),
    training=TrainingSettings(steps=1, tasks_per_step=1, steps_per_call=1, checkpoint_every=1),
    validation=Validation(num_tasks=0),
    evaluation=EvaluationSettings(steps=0, num_tasks=2),
)
'''


@pytest.mark.slow
def test_train_and_evaluate_warn_of_shared_classes_and_of_other_sizes(tmp_path):
    files = {f"{s}/{c}/{i}.png": colour((i, 0, 0)) for s in ("train", "test") for c in "abc" for i in range(2)}
    source, data = put(tmp_path / "both", files), ("--data-dir", tmp_path / "data")
    config = small(tmp_path, text=CONFIG)
    trained = run("train", config, "--task.source", source, "--workdir", tmp_path / "run", *data)
    assert trained.code == 0
    assert trained.err.count("3 of the 3 test classes are training classes too") == 1
    sized = CONFIG.replace("size=16", f"size=20, source={str(source)!r}")
    other = small(tmp_path, "other.py", sized)
    logging.getLogger("metajax").handlers.clear()  # it writes to what was standard error when it was made
    evaluated = run("evaluate", tmp_path / "run", "--on", other, *data)
    assert evaluated.code == 0
    assert "3 of the 3 test classes are training classes too" in evaluated.err
    assert f"{other} is not what {tmp_path / 'run'} was trained on: its tasks have inputs of 20×20" in evaluated.err
    assert "the run's have inputs of 16×16" in evaluated.err
    evaluated = run("evaluate", tmp_path / "run", *data)
    assert evaluated.code == 0
    assert "was trained on" not in evaluated.err
