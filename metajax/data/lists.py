"""Read list files, which name the images or classes of each split, as published for mini- and tiered-ImageNet."""

import codecs
import csv
import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metajax.data.disk import one_line, printable
from metajax.data.listing import SPLITS, Entry, Layout, split_of
from metajax.data.pixels import SUFFIXES
from metajax.errors import UserError
from metajax.system.files import read_file

_LOG = logging.getLogger("metajax.data")
_ENDINGS = (".csv", ".txt", ".tsv")
_SEPARATORS = ",;\t"
_FILE_COLUMNS = (
    *("filename", "file_name", "file", "filepath", "file_path", "path", "image", "image_name", "image_path"),
    *("imagename", "imagepath", "img", "img_name", "img_path", "image_id", "img_id"),
)
_LABEL_COLUMNS = (
    *("label", "class", "class_name", "classname", "label_name", "labels", "classes", "category", "category_name"),
    *("categories", "target", "wnid", "wnids", "class_id", "label_id"),
)
_FORM = "a list has a header and columns, filename,label, or the name of one class in a line"


class Line(NamedTuple):
    """One line of a list file.

    Attributes:
        label: Name of a class.
        file: Name or path of an image of this class; "" for all images in the folder with the name of the class.
    """

    label: str
    file: str


def arrange_by_lists(source: Path, entries: list[Entry], lists: Path) -> Layout:
    """Assign images to splits and classes by list files. The images may be in any folders of the source.

    There are two kinds of list files. A list of images is a table with the columns `filename` and `label`, or with
    similar names such as `image`, `path`, `class` (Ravi and Larochelle's mini-ImageNet). A list of classes has the name
    of one class in each line, in its first column (Ren et al.'s tiered-ImageNet). Columns are separated by commas,
    semicolons or tabs. The first line of a list of classes is a header if it contains a usual column name, such as
    `label`, and no name of a folder with images.

    Args:
        source: Path of the folder or archive with the images, for messages.
        entries: The image files in `source`.
        lists: A folder with one list file for each split, called `train`, `val` or `validation`, and `test`, with the
            suffix `.csv`, `.tsv` or `.txt`.

    Returns:
        The listed images by split and class. Images that no list file names are ignored.

    Raises:
        UserError: If a list file is missing or cannot be read, if two list files name the same class or image, or if an
            image or class that a list file names is missing.
    """
    places = _Places(source, entries)
    groups: dict[tuple[str, str], list[str]] = {}
    owners: dict[str, Path] = {}
    holders: dict[str, Path] = {}
    for split, path in _find(lists).items():
        lines = _read(path, frozenset(places.by_folder))
        found = [places.find(line) for line in lines]
        if lost := [line for line, images in zip(lines, found, strict=True) if not images]:
            kind, example = ("images", lost[0].file) if lost[0].file else ("classes", lost[0].label)
            advice = f"; {_FORM}" if len(lost) == len(lines) else ""
            raise UserError(
                f"{path}: {len(lost)} of {len(lines)} {kind} listed are not in {source}, e.g. {_short(example)}{advice}"
            )
        for line, images in zip(lines, found, strict=True):
            if line.file and len(images) > 1:
                raise UserError(f"{path}: {line.file} may be {images[0]} or {images[1]} of {source}")
            if (owner := owners.setdefault(line.label, path)) != path:
                raise UserError(f"{path}: lists the class {line.label}, which {owner.name} lists too")
            for image in images:
                if (holder := holders.setdefault(image, path)) != path:
                    raise UserError(
                        f"{path}: lists {image} as {line.label}, which {holder.name} lists too, as another class"
                    )
            groups.setdefault((split, line.label), []).extend(images)
    ordered = sorted(groups, key=lambda group: (SPLITS.index(group[0]), group[1]))
    return Layout({group: sorted(set(groups[group])) for group in ordered}, [], {}, {})


class _Places:
    """An index of image paths by file name, by file name without suffix, and by the names of the parent folders."""

    def __init__(self, source: Path, entries: list[Entry]):
        place = Path(os.path.abspath(source))
        self.top = place.stem if place.suffix.lower() == ".zip" else place.name
        self.by_name: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        self.by_folder: dict[str, list[str]] = {}
        for entry in entries:
            *folders, name = PurePosixPath(entry.path).parts
            self.by_name.setdefault(name, []).append(entry.path)
            self.by_stem.setdefault(PurePosixPath(name).stem, []).append(entry.path)
            for folder in set(folders):
                self.by_folder.setdefault(folder, []).append(entry.path)

    def find(self, line: Line) -> list[str]:
        """Return the paths of all images that a line of a list file may refer to."""
        if not line.file:
            return self.by_folder.get(line.label, [])
        wanted = PurePosixPath(line.file.replace("\\", "/")).parts
        if not wanted:
            return []
        # Some list files omit the suffixes of image files.
        images = self.by_name.get(wanted[-1]) or self.by_stem.get(wanted[-1], [])
        images = [path for path in images if self._is(path, wanted[:-1])]
        # Images of different classes may have the same file name. Prefer those in a folder with the name of the class.
        inside = [path for path in images if line.label in PurePosixPath(path).parts]
        return images if len(images) == 1 else inside or images

    def _is(self, path: str, folders: tuple[str, ...]) -> bool:
        """Return whether the parent folders of an image end in `folders`.

        A list file may give a path that begins above the source or inside it, so only the common length is compared.
        """
        above = (self.top, *PurePosixPath(path).parts[:-1])
        shorter = min(len(above), len(folders))
        return not shorter or above[-shorter:] == folders[-shorter:]


def _find(lists: Path) -> dict[str, Path]:
    """Return `{split: path of its list file}`, and log a warning about files that are not used."""
    if not lists.is_dir():
        raise UserError(f"{lists}: no such folder; it should hold train.csv, val.csv and test.csv, or the same as .txt")
    try:
        paths = sorted(p for p in lists.iterdir() if p.suffix.lower() in _ENDINGS and not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{lists}: cannot list: {one_line(error)}") from error
    found: dict[str, Path] = {}
    for anywhere in (False, True):
        known = set(found)
        for path in paths:
            split = split_of(path.stem, anywhere=anywhere)
            if split is not None and split not in known and found.setdefault(split, path) != path:
                raise UserError(f"{lists}: holds two lists of one split, {found[split].name} and {path.name}")
    for split in ("train", "test"):
        if split not in found:
            raise UserError(
                f"{lists}: holds neither {split}.csv nor {split}.txt"
                + (f", only {', '.join(path.name for path in paths[:3])}" if paths else "")
            )
    if unused := [path.name for path in paths if path not in found.values()]:
        _LOG.warning("%s: not used: %s; the lists are called train, val and test", lists, ", ".join(unused))
    return {split: found[split] for split in SPLITS if split in found}


def _read(path: Path, folders: frozenset[str]) -> list[Line]:
    """Return the lines of a list file, without its header.

    The first line is not a header if it contains the name of one of `folders`, because it then names a class.
    """
    texts = [line.strip(" ") for line in re.split(r"\r\n|\r|\n", _text(path))]
    numbers = [number for number, text in enumerate(texts, 1) if text.strip(_SEPARATORS + " ")]
    if not numbers:
        raise UserError(f"{path}: is empty")
    separator = ""
    if declared := re.fullmatch(
        r"sep=([,;\t])", texts[numbers[0] - 1], re.IGNORECASE
    ):  # Excel writes the separator into the first line
        separator = declared[1]
        numbers = numbers[1:]
    rows = _rows(path, texts, numbers, separator, folders)
    header = _header(rows[0]) if rows else []
    file, label = _column(header, _FILE_COLUMNS), _column(header, _LABEL_COLUMNS)
    if (file is None or label is None) and rows and not folders.isdisjoint(rows[0]):
        header, file, label = [], None, None
    if file is not None:
        if label is None:
            raise UserError(f"{path}: has the columns {_short(', '.join(header))}, it should have filename and label")
        rows, numbers = rows[1:], numbers[1:]
    elif (file := _file_column(path, rows)) is not None:
        label = 1 - file
    if file is not None and label is not None:
        for number, row in zip(numbers, rows, strict=True):
            if len(row) <= max(file, label) or not row[file] or not row[label]:
                columns = ",".join(header) if numbers[0] > 1 else "filename,label"
                raise UserError(f"{path}: row {number} is {_short(','.join(row))!r}, it should hold {columns}")
        lines = [Line(row[label], row[file]) for row in rows]
    else:
        column = label or 0
        if label is not None and len(header) == 1:
            _LOG.warning("%s: the first line, %s, is taken for a header, not for a class", path, _short(rows[0][0]))
        names = [row[column] for row in rows[0 if label is None else 1 :] if len(row) > column]
        lines = [Line(name, "") for name in names if name]
    if not lines:
        raise UserError(f"{path}: is empty")
    return lines


def _text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16, the encoding that spreadsheets write."""
    try:
        data = read_file(path)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds null characters")
    except (OSError, ValueError) as error:
        advice = "" if isinstance(error, OSError) else '; save it as text in UTF-8 ("CSV UTF-8" in a spreadsheet)'
        raise UserError(f"{path}: cannot read: {one_line(error, 120)}{advice}") from error
    return text


def _rows(path: Path, texts: list[str], numbers: list[int], separator: str, folders: frozenset[str]) -> list[list[str]]:
    """Split the lines of a list file into cells. `numbers` are the numbers of its lines that are not empty."""
    if not numbers:
        return []
    first = texts[numbers[0] - 1]
    if not separator:
        known = (*_FILE_COLUMNS, *_LABEL_COLUMNS)
        by_header = [s for s in _SEPARATORS if s in first and _column(_header(first.split(s)), known) is not None]
        # Class names in a text file may contain any character except a tab.
        usual = "\t" if path.suffix.lower() == ".txt" else _SEPARATORS
        separator = by_header[0] if by_header and first not in folders else max(usual, key=first.count)
        if separator not in first and path.suffix.lower() == ".txt":
            return [[texts[number - 1].strip()] for number in numbers]
    rows = []
    for number in numbers:
        try:
            # Parse each line separately. Else an unmatched quotation mark would join all lines up to the next mark.
            (row,) = csv.reader([texts[number - 1]], delimiter=separator, skipinitialspace=True, strict=True)
        except csv.Error as error:
            open_cell = "unexpected end of data" in str(error)
            reason = "a quotation mark is not closed before the end of the line" if open_cell else one_line(error)
            raise UserError(
                f"{path}: line {number} is no row of a table ({reason}): {_short(texts[number - 1])}"
            ) from error
        rows.append([cell.strip() for cell in row])
    return rows


def _header(cells: list[str]) -> list[str]:
    return [re.sub(r"[\s-]+", "_", cell.strip(' "').lower()) for cell in cells]


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    """Return the index of the column whose name comes first in `names`; `None` if no column has such a name."""
    return next((header.index(name) for name in names if name in header), None)


def _file_column(path: Path, rows: list[list[str]]) -> int | None:
    """Return the index of the column with image file names, in a table without a header; `None` if there is none."""

    def columns(row: list[str]) -> set[int]:
        return {at for at, cell in enumerate(row) if PurePosixPath(cell).suffix.lower() in SUFFIXES}

    first, second = (columns(row) for row in [*rows[:2], [], []][:2])
    if not first and second and len(rows[1]) > 1:
        raise UserError(f"{path}: has the columns {_short(', '.join(rows[0]))}, it should have filename and label")
    if not first:
        return None
    if len(first) > 1 or len(rows[0]) != 2:
        raise UserError(f"{path}: begins with {_short(','.join(rows[0]))!r}, but {_FORM}")
    return first.pop()


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 80 else text[:79] + "…"
