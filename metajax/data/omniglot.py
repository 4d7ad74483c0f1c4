"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction,
Science 350 (2015).
"""

import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metajax.data import dataset, records
from metajax.data.dataset import Dataset, DatasetInfo
from metajax.data.disk import one_line, open_zip, read_member
from metajax.data.download import RemoteFile, obtain
from metajax.data.pixels import BadImageError, decode
from metajax.errors import UserError
from metajax.system.files import read_file

CHARACTERS = {"background": 964, "evaluation": 659}
"""Number of characters in each official part, the background set and the evaluation set."""
DRAWINGS = 20
"""Number of drawings of each character, one per person."""
SIDE = 105
"""Height and width of a drawing in pixels."""
RANDOM_CHARACTER = {"train": 1100, "validation": 100, "test": 423}
"""Number of characters in each split of `random_character`."""
_MAX_BYTES = 2**20
"""Largest size of a drawing's file in bytes; the files have about 300 bytes."""
SPLIT_SEED = 0
"""Seed of the split `random_character`. NumPy's `RandomState` gives the same numbers in every version of NumPy."""

FILES = (
    RemoteFile(
        "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
        9_464_212,
        "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
        ("images_background", "python/images_background.zip", "python/images_background"),
    ),
    RemoteFile(
        "https://github.com/brendenlake/omniglot/raw/master/python/images_evaluation.zip",
        6_462_886,
        "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
        ("images_evaluation", "python/images_evaluation.zip", "python/images_evaluation"),
    ),
)

_STORE = records.Store(
    name="omniglot",
    version="1.0.0",
    description="Handwritten characters of 50 alphabets; label = character, index = drawer - 1.",
    homepage="https://github.com/brendenlake/omniglot",
)
_DRAWING = re.compile(r"[0-9]+_[0-9]+\.png", re.IGNORECASE)


class _Drawing(NamedTuple):
    """The file of a drawing: its character, its name in the folder or archive, and its full name for messages."""

    character: str
    name: str
    where: str


def load_omniglot(split: str = "random_character", size: int = 28, data_dir: Path | None = None) -> Dataset:
    """Load Omniglot, with dark ink (0) on a light background (255).

    Args:
        split: `random_character` splits the characters of all alphabets at random: 1,100 for training, 100 for
            validation, 423 for the test, the same in every call. `alphabet` has the official background set (964
            characters, 30 alphabets) for training, the official evaluation set (659 characters of 20 other alphabets)
            for the test, and no validation split.
        size: Side of an image in pixels. Images are resampled with a Lanczos filter unless the side is 105.
        data_dir: Folder of prepared data sets; see `metajax.data.prepare`.

    Returns:
        The data set; its images are `uint8[examples, size, size, 1]`, 20 per class. A class is named
        `part/Alphabet/characterNN`.

    Raises:
        UserError: If the data set is not prepared or is damaged, or if there is no split option `split`.
    """
    dataset.check_options("omniglot", INFO.splits, split, size)
    bank = records.load_bank(_STORE, data_dir, size)
    if split == "alphabet":
        background = sum(name.startswith("background/") for name in bank.names)
        classes = {"train": range(background), "test": range(background, len(bank.names))}
    else:
        classes = dataset.split_at_random(RANDOM_CHARACTER, SPLIT_SEED)
    if (needed := 1 + max(c for chosen in classes.values() for c in chosen)) > len(bank.names):
        folder = records.directory(_STORE, data_dir)
        raise UserError(f"{folder}: holds {len(bank.names)} characters, the split {split} of Omniglot needs {needed}")
    return dataset.split(f"omniglot/{split}", bank, classes, records.directory(_STORE, data_dir))


def prepare_omniglot(source: Path | None = None, data_dir: Path | None = None) -> Path:
    """Store Omniglot as records, from a download or from local files.

    Args:
        source: A directory with `images_background.zip` and `images_evaluation.zip`, packed or unpacked; `None`
            downloads the official archives.
        data_dir: Folder of prepared data sets, in which the records are stored.

    Returns:
        The folder of the records. If the data set is already prepared, it is not written again.

    Raises:
        UserError: If a file is missing, damaged or has the wrong content, or if the disk is full.
    """
    folder = records.directory(_STORE, data_dir)
    if records.is_prepared(_STORE, data_dir):
        records.remove_leftovers(_STORE, data_dir)
        return folder
    files = obtain(_STORE.name, FILES, source, data_dir)
    places = dict(zip(CHARACTERS, files.values(), strict=True))
    listings = {part: _list(place, part) for part, place in places.items()}
    names = [f"{part}/{name}" for part, listing in listings.items() for name in listing]
    splits, label = {}, 0
    for part, listing in listings.items():
        splits[part] = _examples(places[part], listing, label)
        label += len(listing)
    records.write(_STORE, data_dir, (SIDE, SIDE, 1), names, splits)
    return folder


def _list(place: Path, part: str) -> dict[str, list[_Drawing]]:
    """Return `{character: its drawings}` of an official part, both sorted by name. Check the number of drawings."""
    characters: dict[str, list[_Drawing]] = {}
    for name in sorted(_names(place)):
        path = PurePosixPath(name)
        if len(path.parts) < 3 or not _DRAWING.fullmatch(path.name):
            continue
        character = "/".join(path.parts[-3:-1])
        characters.setdefault(character, []).append(_Drawing(character, name, f"{place}: {name}"))
    if len(characters) != CHARACTERS[part]:
        raise UserError(f"{place}: holds {len(characters)} characters, Omniglot's {part} set has {CHARACTERS[part]}")
    for character, drawings in characters.items():
        if len(drawings) != DRAWINGS:
            raise UserError(f"{place}: {character} has {len(drawings)} drawings, it should have {DRAWINGS}")
    return characters


def _names(place: Path) -> list[str]:
    if place.is_dir():
        return [path.relative_to(place).as_posix() for path in place.rglob("*.png")]
    with _open_zip(place) as archive:
        return archive.namelist()


def _examples(place: Path, listing: dict[str, list[_Drawing]], first_label: int) -> Iterator[records.Example]:
    """Read, check and yield the drawings of an official part as examples. Labels begin at `first_label`."""
    drawings = [
        (label, index, drawing)
        for label, drawings in enumerate(listing.values(), first_label)
        for index, drawing in enumerate(drawings)
    ]
    for (label, index, drawing), data in zip(drawings, _read(place, [d for _, _, d in drawings]), strict=True):
        _check_png(drawing, data)
        yield f"{label:04d}-{index:02d}", {"image": data, "label": label, "index": index}


def _read(place: Path, drawings: Iterable[_Drawing]) -> Iterator[bytes]:
    if place.is_dir():
        for drawing in drawings:
            try:
                yield read_file(place / drawing.name, _MAX_BYTES)
            except OSError as error:
                raise UserError(f"{place / drawing.name}: cannot read: {one_line(error)}") from error
        return
    with _open_zip(place) as archive:
        for drawing in drawings:
            try:
                yield read_member(archive, drawing.name, _MAX_BYTES)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{drawing.where}: damaged in the archive ({one_line(error)})") from error


def _open_zip(place: Path) -> zipfile.ZipFile:
    try:
        return open_zip(place)
    except (zipfile.BadZipFile, OSError) as error:
        right = next((file for file in FILES if place.name.endswith(file.filename)), None)
        hint = f", the official file has {right.size:,}" if right else ""
        size = f"{place.stat().st_size:,} bytes" if place.is_file() else "no file"
        raise UserError(f"{place}: not a complete zip archive ({one_line(error)}; {size}{hint})") from error


def _check_png(drawing: _Drawing, data: bytes) -> None:
    """Check that a drawing can be decoded and has the official size."""
    # Every PNG file has its width in bytes 16 to 19 and its height in bytes 20 to 23.
    shape = (int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    try:
        decode(data, SIDE, 1)
    except BadImageError as error:
        raise UserError(f"{drawing.where}: not a readable PNG image ({error})") from error
    if shape != (SIDE, SIDE):
        raise UserError(f"{drawing.where}: {shape[0]}×{shape[1]} pixels, it should have {SIDE}×{SIDE}")


INFO = DatasetInfo(
    title="Omniglot",
    licence="MIT",
    description="1,623 handwritten characters of 50 alphabets, 20 drawings each, 105×105, black on white",
    splits={
        "random_character": "1,100 characters to train, 100 to validate, 423 to test, of all alphabets",
        "alphabet": "964 characters to train, 659 of other alphabets to test, none to validate (harder)",
    },
    size=28,
    load=load_omniglot,
    prepare=prepare_omniglot,
    is_prepared=lambda data_dir: records.is_prepared(_STORE, data_dir),
)
