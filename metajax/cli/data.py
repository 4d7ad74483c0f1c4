"""`metajax data`: list, prepare or inspect data sets."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from metajax import data
from metajax.cli import report
from metajax.cli.parse import DescribedDefault, parse
from metajax.errors import UserError, suggestion
from metajax.limits import LARGEST_IMAGE, shown
from metajax.system.files import expand_home

_USAGE = """usage: metajax data list
       metajax data prepare NAME [--source PATH] [--data-dir DIR]
       metajax data inspect NAME [--split SPLIT] [--source PATH] [--split-lists DIR]
                            [--size PIXELS] [--strict] [--data-dir DIR]

List the data sets, prepare one (by download, or from local files with --source), or describe a prepared one."""


@dataclasses.dataclass
class List:
    """List the data sets and whether they are prepared."""

    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


@dataclasses.dataclass
class Prepare:
    """Prepare a data set, by download or from local files."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of a data set from `metajax data list`."""
    source: Path | None = None
    """Path of local files to use instead of a download."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


@dataclasses.dataclass
class Inspect:
    """Print the number of classes and examples in each split of a data set."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of a data set from `metajax data list`."""
    split: DescribedDefault[str | None] = None
    """Name of a partition into training, validation and test, such as cifar_fs (default: the data set's first
    partition)."""
    source: Path | None = None
    """The folder or zip of images (for `folder` only)."""
    split_lists: Path | None = None
    """A folder with published list files, such as train.csv, that define the splits (for `folder` only)."""
    size: int | None = None
    """Side in pixels to which the images are resized."""
    strict: bool = False
    """Stop with an error at a corrupt image, instead of skipping the image (for `folder` only)."""
    data_dir: DescribedDefault[Path | None] = None
    """Folder of prepared data sets (default: $METAJAX_DATA_DIR, else ~/.cache/metajax)."""


def run(args: Sequence[str]) -> None:
    """Run `metajax data` with the arguments `args`."""
    commands = {"list": (List, _list), "prepare": (Prepare, _prepare), "inspect": (Inspect, _inspect)}
    if not args or args[0] in ("-h", "--help"):
        print(_USAGE)
        if args:
            return
        raise UserError(f"data needs one of {', '.join(commands)}")
    if args[0] not in commands:
        raise UserError(f"data has no command {args[0]!r}{suggestion(args[0], commands)}")
    kind, command = commands[args[0]]
    command(parse(kind, args[1:], prog=f"metajax data {args[0]}"))


def _list(options: List) -> None:
    for name, info in data.DATASETS.items():
        if name == "folder":
            state = "your own, by --source"
        else:
            state = "prepared" if data.is_prepared(name, options.data_dir) else "not prepared"
        report.say(f"{name:<17} {state:<22} {info.title}: {info.description}; licence: {info.licence}")
    report.say(f"prepared data sets are in {data.resolve_data_dir(options.data_dir)}")


def _prepare(options: Prepare) -> None:
    _check_name(options.name)
    if options.source is not None and not expand_home(options.source).exists():
        raise UserError(f"--source: there is no file or folder {options.source}")
    place = data.prepare(options.name, options.source, options.data_dir)
    if options.name == "folder":
        report.say(f"the images are read and cached in {place}: train with --task.source {options.source}")
    else:
        report.say(f"{options.name} is prepared in {place}")


def _check_name(name: str) -> None:
    """Raise a `UserError` if the user gave a path instead of the name of a data set."""
    path = expand_home(name)
    if name not in data.DATASETS and (path.exists() or path.name != name):
        raise UserError(
            f"{name} is a path, not a data set of `metajax data list`: for your own images use `folder --source {name}`"
        )


def _inspect(options: Inspect) -> None:
    _check_name(options.name)
    if options.size is not None and not 1 <= options.size <= LARGEST_IMAGE:
        raise UserError(f"--size must be from 1 to {LARGEST_IMAGE}, got {shown(options.size)}")
    arguments = {"split": options.split, "source": options.source, "size": options.size}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if options.name == "folder":
        if "source" not in arguments:
            raise UserError("data inspect folder needs --source FOLDER")
        if "split" in arguments:
            raise UserError("a folder has no named splits: remove --split")
        arguments |= {"strict": options.strict, "split_lists": options.split_lists}
    elif "source" in arguments or options.split_lists is not None:
        raise UserError(f"--source and --split-lists are for folders: {options.name} is inspected as it was prepared")
    dataset = data.load(options.name, data_dir=options.data_dir, **arguments)
    report.say(dataset.name)
    for split, bank in dataset.splits.items():
        classes, images = len(bank.counts), bank.images.shape
        per_class = (
            f"{bank.counts.min()}-{bank.counts.max()}" if bank.counts.min() < bank.counts.max() else bank.counts[0]
        )
        report.say(
            f"  {split:<11} {classes:>5} classes × {per_class} = {images[0]:,} images of "
            f"{images[1]}×{images[2]}×{images[3]}: {', '.join(dataset.class_names[split][:4])}, …"
        )
