"""Random malformed input to the loaders: each case is read, or refused by a `UserError`, and nothing else happens.

Every family mixes whole input, whose content must come out unchanged, with damage of a random kind.
"""

import contextlib
import gzip
import io
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metajax.data import idx, load_folder
from metajax.data.archives import read_files
from metajax.errors import UserError

CASES = 20
"""Cases of one test."""
KINDS = ["PNG", "BMP", "TIFF", "PPM", "WEBP", "TGA", "GIF", "PCX", "SGI", "DIB", "ICO"]


@pytest.fixture(autouse=True)
def _no_hang():
    """No case may take 30 seconds; all of a test together may not either."""

    def late(*_):
        raise AssertionError("a case hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def picture(level: int, kind: str = "PNG") -> bytes:
    """Encode a grey square without loss."""
    file = io.BytesIO()
    grey = Image.new("L", (16, 16), level)
    if kind in ("WEBP", "TGA", "GIF", "DIB", "ICO"):
        grey = grey.convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {"sizes": [(16, 16)]} if kind == "ICO" else {}
    grey.save(file, kind, **options)
    return file.getvalue()


def damage(rng: random.Random, data: bytes) -> bytes:
    """Truncate, change, or replace the content of a file."""
    content = bytearray(data)
    how = rng.choice(
        ["cut", "flip", "flip head", "junk before", "junk after", "random", "empty", "text", "eps", "swap"]
    )
    if how == "cut":
        return data[: rng.randrange(len(data))]
    if how in ("flip", "flip head"):
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(min(len(content), 64) if how == "flip head" else len(content))] = rng.randrange(256)
        return bytes(content)
    if how == "swap":
        middle = rng.randrange(len(data))
        return data[middle:] + data[:middle]
    return {
        "junk before": rng.randbytes(rng.randint(1, 9)) + data,
        "junk after": data + rng.randbytes(50),
        "random": rng.randbytes(rng.randint(1, 300)),
        "empty": b"",
        "text": b"\x89PNG or so",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n",
    }[how]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Describe all below a folder but the cache."""
    paths = [path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts[:1]]
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in paths if not path.is_dir()}


def levels(tmp_path: Path, source: Path, **options) -> dict[str, set[int]] | None:
    """The grey levels of each class, rounded; `None` where the source is refused."""
    before = snapshot(tmp_path)
    try:
        loaded = load_folder(source, size=8, channels=1, data_dir=tmp_path / "cache", **options)
    except UserError:
        return None
    finally:
        assert snapshot(tmp_path) == before, "nothing is written but the cache"
    found = {}
    for split, bank in loaded.splits.items():
        for name, start, count in zip(loaded.class_names[split], bank.starts, bank.counts, strict=True):
            found[name] = {round(image.mean()) for image in bank.images[start : start + count]}
    return found


def whole(rng: random.Random) -> dict[str, bytes]:
    """Three classes with an image each, in a random format and arrangement."""
    kind = rng.choice(KINDS)
    top = rng.choice(["", "top/", "a/b/", "Ünïcode ☃/"])
    return {
        f"{top}{name}/{rng.choice(['1', 'a b', 'é'])}.{kind.lower()}": picture(level, kind)
        for name, level in (("one", 40), ("two", 80), ("three", 120))
    }


WHOLE = {"one": {40}, "two": {80}, "three": {120}}


def has_whole(found: dict[str, set[int]] | None) -> bool:
    return found is not None and all(expected <= found.get(name, set()) for name, expected in WHOLE.items())


def put(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def each(family: str, batch: int):
    """The cases of a batch, each with a generator of its own."""
    for case in range(batch * CASES, (batch + 1) * CASES):
        yield case, random.Random(f"{family} {case}")


@pytest.mark.parametrize("batch", range(6))
def test_images(tmp_path, batch):
    """Damaged images beside whole ones: these are always read, and the damaged ones are read or named."""
    for case, rng in each("image", batch):
        files = whole(rng)
        folder = next(iter(files)).rsplit("/", 1)[0]
        for i in range(3):
            kind = rng.choice(KINDS)
            name = rng.choice(
                [f"bad{i}.{kind.lower()}", f"bad{i}.jpg", f"bad{i}", f"bad{i}.{i}", f"bad{i}.avif", f"bad{i}.jp2"]
            )
            files[f"{folder}/{name}"] = damage(rng, picture(200, kind))
        found = levels(tmp_path, put(tmp_path / f"case{case}", files))
        assert has_whole(found), case


ODD_NAMES = [
    "../up/1.png",
    "../../up.png",
    "/abs/1.png",
    "C:\\up\\1.png",
    "two\\2.png",
    "./dot/1.png",
    "a//b//1.png",
    "\x01/1.png",
]
ODD_NAMES += [
    "~/1.png",
    "one/../../1.png",
    ".hidden/1.png",
    "con/\u202e1.png",
    "x" * 300 + "/1.png",
    "//1.png",
    "a/" * 200 + "1.png",
]


def archive(rng: random.Random, path: Path) -> str:
    """Write an archive with one kind of trouble, and name the kind."""
    how = rng.choice(
        ["whole", "odd names", "link", "method", "cut", "flip", "twice", "encrypted", "size", "other", "junk around"]
    )
    files = whole(rng)
    if how == "odd names":  # which would be other folders beside the top one
        files = {"/".join(name.split("/")[-2:]): data for name, data in files.items()}
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(path, "w", method) as target, contextlib.ExitStack() as stack:
        if how == "twice":
            import warnings

            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        for name, data in files.items():
            target.writestr(name, data)
            if how == "twice":
                target.writestr(name, data)
        folder = next(iter(files)).rsplit("/", 1)[0]
        if how == "odd names":
            for name in rng.sample(ODD_NAMES, 4):
                target.writestr(name, picture(200))
        if how == "link":
            link = zipfile.ZipInfo(f"{folder}/link.png")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            target.writestr(link, "/etc/passwd")
        if how == "other":
            target.writestr(f"{folder}/x.svg", "<svg/>")
            target.writestr("void/", "")
    data = path.read_bytes()
    if how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how == "flip":
        content = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        data = bytes(content)
    elif how == "junk around":
        data = rng.randbytes(30) + data + rng.randbytes(10)
    elif how in ("method", "encrypted", "size"):
        # In each entry of the directory at the end: how it is packed, its flags, or its size.
        content, at = bytearray(data), data.find(b"PK\x01\x02")
        if how == "method":
            content[at + 10 : at + 12] = rng.randrange(2, 99).to_bytes(2, "little")
        elif how == "encrypted":
            content[at + 8] |= 1
        else:
            content[at + 24 : at + 28] = rng.randrange(2**32 - 1).to_bytes(4, "little")
        data = bytes(content)
    path.write_bytes(data)
    return how


@pytest.mark.parametrize("batch", range(6))
def test_zip_archives(tmp_path, batch):
    read = 0
    for case, rng in each("zip", batch):
        path = tmp_path / f"case{case}.zip"
        how = archive(rng, path)
        found = levels(tmp_path, path)
        read += has_whole(found)
        if how in ("whole", "odd names", "link", "twice", "other"):
            assert has_whole(found), (case, how)
    assert read >= CASES // 3
    assert not (tmp_path.parent / "up").exists()


def listing(rng: random.Random, folder: Path) -> str:
    """Write lists of the six classes c0 to c5 in a random form, and name the kind of trouble."""
    how = rng.choice(["whole"] * 4 + ["flip", "cut", "random", "missing", "quote", "twice", "long", "unknown"])
    separator, ending = rng.choice([(",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv"), ("\t", "txt")])
    header = rng.choice(
        ["filename{}label", "image{}class", "File Name{}Class Name", "label{}path", "", "img{}category"]
    )
    change = rng.choice(
        [str, lambda n: f"pics\\{n}", lambda n: n.replace("/", "\\"), lambda n: f"./{n}", lambda n: f"/data/pics/{n}"]
    )
    quote = rng.choice(["", '"'])
    by_class = ending != "tsv" and rng.random() < 0.25
    rows = {
        split: [(change(f"c{c}/{i}.png"), f"c{c}") for c in classes for i in range(2)]
        for split, classes in (
            ("train", (0, 1, 2)),
            (rng.choice(["val", "valid", "dev", "meta_val"]), (3,)),
            ("test", (4, 5)),
        )
    }
    folder.mkdir()
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16"])
    for split, pairs in rows.items():
        if by_class:
            lines = sorted({label for _, label in pairs})
        else:
            swap = header.startswith("label")
            lines = [header.format(separator)] * bool(header)
            lines += [
                separator.join(f"{quote}{cell}{quote}" for cell in (pair[::-1] if swap else pair)) for pair in pairs
            ]
        if how == "missing" and split == "test":
            lines.append("nowhere.png" + separator + "c5")
        if how == "quote" and split == "train":
            lines.insert(1, '"' + lines[-1].replace('"', ""))
        if how == "twice" and split == "test":
            lines.append(lines[-1].replace("c5", "c0"))
        if how == "long" and split == "train":
            lines.append('"' + "x" * 140_000)
        data = rng.choice(["\n", "\r\n", "\r"]).join([*lines, ""]).encode(encoding)
        if split == "train" and how in ("flip", "cut", "random"):
            content = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            data = {"flip": bytes(content), "cut": data[: rng.randrange(len(data))], "random": rng.randbytes(200)}[how]
        (folder / f"{split}.{ending}").write_bytes(data)
    if how == "unknown":
        (folder / "novel.csv").write_bytes(rng.randbytes(50))
    return how


@pytest.mark.parametrize("batch", range(7))
def test_split_lists(tmp_path, batch):
    source = put(tmp_path / "pics", {f"c{c}/{i}.png": picture(40 * c) for c in range(6) for i in range(2)})
    expected = {f"c{c}": {40 * c} for c in range(6)}
    read = 0
    for case, rng in each("list", batch):
        how = listing(rng, tmp_path / f"case{case}")
        found = levels(tmp_path, source, split_lists=tmp_path / f"case{case}")
        if how in ("whole", "unknown"):
            assert found == expected, case
        elif how in ("quote", "long", "missing", "twice"):
            assert found is None, (case, how)
        read += found == expected
        for name, level in (found or {}).items():
            assert level <= expected.get(name, set()) or how in ("flip", "cut", "random"), (case, name)
    assert read >= CASES // 5


@pytest.mark.parametrize("batch", range(4))
def test_idx_files(tmp_path, batch):
    """Files in MNIST's form, packed or not, of a known size."""
    read = 0
    for case, rng in each("idx", batch):
        pixels = np.frombuffer(rng.randbytes(5 * idx.SIDE**2), np.uint8).reshape(5, idx.SIDE, idx.SIDE)
        labels = np.arange(5, dtype=np.uint8)
        files = {}
        how = rng.choice(["whole", "whole", "whole", "damage", "count", "type", "long", "labels", "folder", "fifo"])
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape)
            data = header + array.tobytes()
            if how == "labels" and array.ndim == 1:
                data = data[:-1] + b"\xff"
            elif how == "count":
                data = data[:4] + rng.randrange(2**32).to_bytes(4) + data[8:]
            elif how == "type":
                data = data[:2] + bytes([rng.choice([9, 13, 14, 255])]) + data[3:]
            elif how == "long":
                data += bytes(rng.randint(1, 1000))
            if rng.random() < 0.5:
                data = gzip.compress(data)
            path = tmp_path / f"{case}-train-{name}-ubyte.gz"
            if how == "folder":
                path.mkdir()
            elif how == "fifo":
                os.mkfifo(path)
            else:
                path.write_bytes(damage(rng, data) if how == "damage" else data)
            files[f"train-{name}-ubyte.gz"] = path
        try:
            examples = [example for _, example in idx.examples("train", files, 5, 5)]
        except UserError:
            assert how != "whole", case
            continue
        for example, image in zip(examples, pixels, strict=True):
            if how == "whole":
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(example["image"]))), image)
        read += how == "whole"
    assert read >= CASES // 8


def grow(rng: random.Random, root: Path) -> str:
    """Grow a folder tree with odd inhabitants, and name the kind of trouble."""
    put(root, {name.split("/", name.count("/") - 1)[-1]: data for name, data in whole(rng).items()})
    how = rng.choice(
        [
            "fifo",
            "socket",
            "links",
            "dangling",
            "device",
            "deep",
            "empty",
            "bytes",
            "unicode",
            "splits",
            "mutual",
            "other",
        ]
    )
    place = root / "one"
    if how == "fifo":
        os.mkfifo(place / rng.choice(["x.png", "x", "x.txt"]))
    elif how == "socket":
        here = os.getcwd()
        os.chdir(place)  # its path may not be long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.png")
        os.chdir(here)
    elif how == "links":
        (place / "round").symlink_to(root)
        (root / "four").symlink_to(place)
    elif how == "dangling":
        (place / "gone.png").symlink_to("/nowhere/at/all")
        (root / "gone").symlink_to(root / "gone")
    elif how == "device":
        (place / rng.choice(["zero.png", "zero"])).symlink_to("/dev/zero")
    elif how == "deep":
        put(place, {"d/" * 80 + "x.png": picture(40)})
    elif how == "empty":
        (root / "void" / "void").mkdir(parents=True)
    elif how == "bytes":
        os.makedirs(os.path.join(os.fsencode(root), b"\xff\xfe"))
        Path(os.fsdecode(os.path.join(os.fsencode(root), b"\xff\xfe", b"\xe9.png"))).write_bytes(picture(200))
    elif how == "unicode":
        put(
            root,
            {
                rng.choice(
                    ["é\n/1.png", "\u202e/1.png", "a\tb/1.png", "☃" * 80 + "/1.png", " /1.png", "-rf/1.png"]
                ): picture(200)
            },
        )
    elif how == "splits":
        put(root, {f"{rng.choice(['train', 'meta_val', 'testing', 'trainer'])}/class/1.png": picture(200)})
    elif how == "mutual":
        folders = [root / f"m{i}" for i in range(4)]
        for folder in folders:
            folder.mkdir()
            (folder / "1.png").write_bytes(picture(200))
        for folder in folders:
            for other in folders:
                (folder / other.name).symlink_to(other)
    else:
        put(
            root, {f"aside/{i}.{rng.choice(['svg', 'heic', 'xml', 'npy', 'mp4'])}": rng.randbytes(20) for i in range(3)}
        )
    return how


@pytest.mark.parametrize("batch", range(4))
def test_folder_trees(tmp_path, batch):
    read = 0
    for case, rng in each("tree", batch):
        root = tmp_path / f"case{case}"
        how = grow(rng, root)
        found = levels(tmp_path, root)
        if how != "splits":
            assert has_whole(found), (case, how)
            read += 1
        for name in found or {}:
            name.encode()  # neither surrogates nor control characters are left
            assert "\n" not in name
        levels(tmp_path, root, strict=True)
        shutil.rmtree(root)  # pytest is slow to remove deep trees
    assert read >= CASES // 2


@pytest.mark.parametrize("batch", range(2))
def test_tar_archives(tmp_path, batch):
    read = 0
    for case, rng in each("tar", batch):
        path, packing = tmp_path / f"case{case}.tar", rng.choice(["", "gz", "bz2", "xz"])
        with tarfile.open(path, f"w:{packing}") as target:
            for i in range(3):
                member = tarfile.TarInfo(f"{'x' * rng.choice([1, 200])}/{i}.bin")
                member.size = 100
                target.addfile(member, io.BytesIO(bytes([i]) * 100))
            link = tarfile.TarInfo("link.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            target.addfile(link)
        how = rng.choice(["whole", "damage"])
        if how == "damage":
            path.write_bytes(damage(rng, path.read_bytes()))
        try:
            found = [data for _, data in read_files(path, lambda name: name.endswith(".bin"))]
        except UserError:
            assert how == "damage", case
            continue
        if how == "whole":
            assert found == [bytes([i]) * 100 for i in range(3)]
            read += 1
    assert read >= CASES // 4


BOMBS = '''
import bz2, io, re, struct, sys, tarfile, time, zipfile, zlib
from pathlib import Path
import numpy as np
from metajax.data import idx, load_folder
from metajax.data.archives import read_files
from metajax.data.pixels import encode_png
from metajax.errors import UserError

root = Path(sys.argv[1])
giga = 2**30

def zeros(count, wrap=-15):
    """A deflate stream that unpacks to so many gigabytes, made of repeated blocks."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (64 * count) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()

def packed(name, raw, size, method):
    """A zip archive of three images and a member whose directory entry may lie."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(3):
            archive.writestr(f"c{i}/1.png", encode_png(np.full((4, 4), 9, np.uint8)))
        archive.writestr(name, b"")
    data = bytearray(file.getvalue())
    begin = archive.getinfo(name).header_offset + 30 + len(name)
    at = data.rfind(b"PK\\x01\\x02")
    entry = bytearray(data[at:])
    struct.pack_into("<H", data, archive.getinfo(name).header_offset + 8, method)
    struct.pack_into("<H", entry, 10, method)
    struct.pack_into("<II", entry, 20, len(raw), size)
    end = entry.rfind(b"PK\\x05\\x06")
    directory = data.find(b"PK\\x01\\x02")
    struct.pack_into("<I", entry, end + 16, directory + len(raw))
    return bytes(data[:begin]) + raw + bytes(data[begin:at]) + bytes(entry)

def gz(raw):
    return b"\\x1f\\x8b\\x08" + bytes(7) + raw + bytes(8)

def tar(size, kind):
    member = tarfile.TarInfo("x/1.jpg")
    member.size, member.type = size, kind
    header = member.tobuf(tarfile.GNU_FORMAT)
    return gz(zlib.compressobj(9, zlib.DEFLATED, -15).compress(b"") + plain(header) + zeros(3))

def plain(data):
    """A stored deflate block that is not the last one."""
    return b"\\x00" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data

def png(width, height, mode=6, depth=8):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[mode]
    row = 1 + (width * channels * depth + 7) // 8
    packer = zlib.compressobj(1)
    if width * height < 2**27:
        packed = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    else:
        packed = zlib.compress(bytes(1000))
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")

def folder(name, data):
    place = root / name
    for i in range(3):
        (place / f"c{i}").mkdir(parents=True)
        (place / f"c{i}" / "1.png").write_bytes(encode_png(np.full((4, 4), 9, np.uint8)))
    if isinstance(data, bytes):
        (place / "c0" / "2.png").write_bytes(data)
    else:
        data(place / "c0" / "2.png")
    return place

def sparse(path):
    with path.open("wb") as file:
        file.truncate(5 * giga)

def archive(name, data):
    (root / name).write_bytes(data)
    return root / name

def four(data):
    (root / "four").mkdir(exist_ok=True)
    place = root / "four" / str(len(list((root / "four").iterdir())))
    if isinstance(data, bytes):
        place.write_bytes(data)
    else:
        data(place)
    list(idx.examples("train", {f"train-{kind}-ubyte.gz": place for kind in ("images-idx3", "labels-idx1")}, 5, 5))

def tarred(kind):
    return lambda: list(read_files(archive(f"{kind!r}.tgz", tar(3 * giga, kind)), lambda name: True))

bomb, packed_zeros = zeros(3), bz2.compress(bytes(2**28))
loads = lambda place: load_folder(place, size=8, channels=1, data_dir=root / "cache")
large = "bytes, more than the"
cases = {  # how many images are read, if any, and what is said of the others
    "zip, honest": (3, large, lambda: loads(archive("a.zip", packed("c0/2.png", bomb, 3 * giga, 8)))),
    "zip, lies": (3, "Bad CRC", lambda: loads(archive("b.zip", packed("c0/2.png", bomb, 1000, 8)))),
    "zip, bzip2": (3, "Bad CRC", lambda: loads(archive("c.zip", packed("c0/2.png", packed_zeros, 9, 12)))),
    "zip, no ending": (3, "", lambda: loads(archive("d.zip", packed("c0/2", bomb, 3 * giga, 8)))),
    "huge png": (3, "decompression bomb", lambda: loads(folder("e", png(60_000, 60_000)))),
    "largest png": (3, "decompression bomb", lambda: loads(folder("f", png(2**31 - 1, 2**31 - 1)))),
    "too large png": (3, "pixels are more than", lambda: loads(folder("k", png(13_000, 13_000)))),
    "large transparent png": (4, "", lambda: loads(folder("g", png(11_000, 11_000, 4)))),
    "large 16-bit png": (4, "", lambda: loads(folder("h", png(11_000, 9_000, 0, 16)))),
    "sparse file": (3, large, lambda: loads(folder("i", sparse))),
    "device": (3, "not a regular file", lambda: loads(folder("j", lambda path: path.symlink_to("/dev/zero")))),
    "idx, gzip": (None, "more than 3,936 bytes", lambda: four(gz(zeros(1)))),
    "idx, sparse": (None, large, lambda: four(sparse)),
    "idx, device": (None, "not a regular file", lambda: four(lambda path: path.symlink_to("/dev/zero"))),
    "tar, member": (None, large, tarred(tarfile.REGTYPE)),
    "tar, header": (None, large, tarred(tarfile.XHDTYPE)),
    "tar, name": (None, large, tarred(tarfile.GNUTYPE_LONGNAME)),
    "source is a device": (None, "not a regular file", lambda: load_folder(Path("/dev/zero"), data_dir=root / "cache")),
}
for name, (images, said, case) in cases.items():
    begin = time.monotonic()
    try:
        loaded = case()
    except UserError as error:
        assert images is None and said in str(error), (name, error)
    else:
        assert images == sum(len(bank.images) for bank in loaded.splits.values()), name
        assert said in " ".join(loaded.skipped), (name, loaded.skipped)
    assert time.monotonic() - begin < 30, name
# ru_maxrss would count the memory of the process that started this one, too
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
assert peak < 2, peak
print(len(cases), "cases")
'''


def test_what_unpacks_to_gigabytes_takes_little_memory(tmp_path):
    """In a process of its own, whose largest memory is known."""
    signal.alarm(0)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "18 cases\n"), done.stderr[-2000:]
