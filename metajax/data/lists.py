"""Published lists of the classes or images of each split, as those of mini-ImageNet and tiered-ImageNet."""

import csv
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metajax.data.disk import one_line
from metajax.data.listing import SPLIT_FOLDERS, Entry, Layout
from metajax.errors import UserError


class Line(NamedTuple):
    """What a list says in one line.

    Attributes:
        label: Name of the class.
        file: One of its images; "" stands for all that lie in a folder of the class' name.
    """

    label: str
    file: str


def arrange_by_lists(source: Path, entries: list[Entry], lists: Path) -> Layout:
    """Assigns images to splits and classes as published lists say, wherever they lie below the source.

    Args:
        source: The folder or archive, for messages.
        entries: Its images.
        lists: A folder with a list for each split: `train`, `val` or `validation`, `test`, ending in `.csv` or
            `.txt`. A CSV file with the columns `filename` and `label` (or `class`) lists images (Ravi and
            Larochelle's mini-ImageNet); any other lists classes, the first of its columns (Ren et al.'s
            tiered-ImageNet), a text file one in a line.

    Returns:
        The arrangement; what is not listed is left out.

    Raises:
        UserError: A list is missing or cannot be read, lists a class that another one lists too, or something
            that is not there.
    """
    places = _Places(entries)
    groups: dict[tuple[str, str], list[str]] = {}
    owners: dict[str, Path] = {}
    for split, path in _find(lists).items():
        lines = _read(path)
        found = [places.find(line) for line in lines]
        if lost := [line for line, images in zip(lines, found, strict=True) if not images]:
            kind, example = ("images", lost[0].file) if lost[0].file else ("classes", lost[0].label)
            raise UserError(f"{path}: {len(lost)} of {len(lines)} {kind} listed are not in {source}, e.g. {example}")
        for line, images in zip(lines, found, strict=True):
            if line.file and len(images) > 1:
                raise UserError(f"{path}: {line.file} may be {images[0]} or {images[1]} of {source}")
            if (owner := owners.setdefault(line.label, path)) != path:
                raise UserError(f"{path}: lists the class {line.label}, which {owner.name} lists too")
            groups.setdefault((split, line.label), []).extend(images)
    ordered = sorted(groups, key=lambda group: (list(SPLIT_FOLDERS.values()).index(group[0]), group[1]))
    return Layout({group: sorted(set(groups[group])) for group in ordered}, [])


class _Places:
    """Where images lie, by their names and by the folders above them."""

    def __init__(self, entries: list[Entry]):
        self.by_name: dict[str, list[str]] = {}
        self.by_folder: dict[str, list[str]] = {}
        for entry in entries:
            *folders, name = PurePosixPath(entry.path).parts
            self.by_name.setdefault(name, []).append(entry.path)
            for folder in set(folders):
                self.by_folder.setdefault(folder, []).append(entry.path)

    def find(self, line: Line) -> list[str]:
        """All images that a line may mean."""
        if not line.file:
            return self.by_folder.get(line.label, [])
        wanted = PurePosixPath(line.file).parts
        images = self.by_name.get(wanted[-1], [])
        images = [path for path in images if PurePosixPath(path).parts[-len(wanted) :] == wanted]
        # Names may repeat from class to class.
        inside = [path for path in images if line.label in PurePosixPath(path).parts]
        return images if len(images) == 1 else inside or images


def _find(lists: Path) -> dict[str, Path]:
    """Finds the list of each split."""
    if not lists.is_dir():
        raise UserError(f"{lists}: no such folder; it should hold train.csv, val.csv and test.csv, or the same as .txt")
    found: dict[str, Path] = {}
    for stem, split in SPLIT_FOLDERS.items():
        for path in (lists / f"{stem}.csv", lists / f"{stem}.txt"):
            if path.is_file() and found.setdefault(split, path) != path:
                raise UserError(f"{lists}: holds two lists of one split, {found[split].name} and {path.name}")
    for split in ("train", "test"):
        if split not in found:
            raise UserError(f"{lists}: holds neither {split}.csv nor {split}.txt")
    return found


def _read(path: Path) -> list[Line]:
    """Reads a list of images or classes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read: {one_line(error)}") from error
    cut = (
        csv.reader(text.splitlines(), skipinitialspace=True)
        if path.suffix == ".csv"
        else ([t] for t in text.split("\n"))
    )
    rows = [row for row in ([cell.strip() for cell in row] for row in cut) if any(row)]
    header = [cell.lower() for cell in rows[0]] if rows else [""]
    if "filename" not in header:
        lines = [Line(row[0], "") for row in rows[1 if header[0] in ("label", "class") else 0 :]]
    else:
        label = next((header.index(name) for name in ("label", "class") if name in header), None)
        if label is None:
            raise UserError(f"{path}: has the columns {', '.join(header)}, it should have filename and label")
        file = header.index("filename")
        for number, row in enumerate(rows[1:], 2):
            if len(row) <= max(file, label) or not row[file] or not row[label]:
                raise UserError(f"{path}: row {number} is {','.join(row)!r}, it should hold {','.join(header)}")
        lines = [Line(row[label], row[file]) for row in rows[1:]]
    if not lines:
        raise UserError(f"{path}: is empty")
    return lines
