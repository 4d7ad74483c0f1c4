"""Copy a data set that TensorFlow Datasets (TFDS) prepared in another folder. TensorFlow is not needed."""

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from metajax.data import records
from metajax.data.disk import one_line, writing_to
from metajax.errors import UserError
from metajax.system.files import read_file

_INFO = "dataset_info.json"


def is_tfds(source: Path) -> bool:
    """Return whether TFDS has prepared a data set in a folder or in one of its subfolders.

    Args:
        source: The folder.

    Returns:
        Whether the folder or a subfolder contains a data set prepared by TFDS.
    """
    return bool(_prepared_below(source))


def adopt(store: records.Store, data_dir: Path | None, source: Path) -> Path:
    """Copy the files that `tfds build --file_format=array_record` wrote into metajax's data directory.

    Hard links replace copies where the file system allows them. The description of a data set names Python modules,
    which TFDS imports. For safety, a data set that names a module outside TFDS is refused.

    Args:
        store: Name, config and version of the data set.
        data_dir: Folder of prepared data sets; see `resolve_data_dir`.
        source: TFDS' data directory, or one of its subfolders `NAME`, `NAME/CONFIG` or `NAME/CONFIG/VERSION`.

    Returns:
        The folder of the copied records.

    Raises:
        UserError: If the folder contains no data set, another data set or another file format, if it names modules
            outside TFDS, or if the disk is full.
    """
    folder = _find(store, source)
    try:
        records.check_features(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / records.FEATURES}: cannot read: {one_line(error)}") from error
    target = records.directory(store, data_dir)
    temporary = target.with_name(f"incomplete.{uuid.uuid4().hex}")
    with writing_to(target.parent), records.preparing(store, data_dir):
        try:
            temporary.mkdir()
            # A data set prepared by TFDS is one folder of regular files, so subfolders need no copy.
            for path in folder.iterdir():
                if path.is_file():
                    _link_or_copy(path.resolve(), temporary / path.name)
            temporary.rename(target)
        except OSError:
            # If two processes copy at the same time, the slower one cannot rename its copy, because the final name is
            # already in use. This error is harmless.
            if not records.is_prepared(store, data_dir):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _find(store: records.Store, source: Path) -> Path:
    """Return the folder with the newest version of the data set `store` below the folder `source`."""
    wanted = "/".join(filter(None, (store.name, store.config)))
    infos = {folder: _read(folder) for folder in _prepared_below(source)}
    names = {
        folder: "/".join(str(part) for part in (info.get("name"), info.get("configName")) if part)
        for folder, info in infos.items()
    }
    right = [folder for folder in infos if names[folder] == wanted]
    if not right:
        contents = f"holds {', '.join(sorted(set(names.values())))}" if names else f"holds no {_INFO}"
        raise UserError(f"{source}: {contents}; it should be the folder of {wanted} that TFDS prepared")
    newest = max(right, key=lambda folder: _version(infos[folder].get("version", "0")))
    if (found := infos[newest].get("fileFormat", "tfrecord")) != "array_record":
        raise UserError(
            f"{newest}: is stored as {found}, which cannot be read without TensorFlow: "
            f"prepare it with `tfds build {wanted} --file_format=array_record`"
        )
    return newest


def _prepared_below(source: Path) -> list[Path]:
    """Return all folders at or below `source` with a data set that TFDS has completely prepared.

    `source` may be TFDS' data directory or a subfolder `NAME`, `NAME/CONFIG` or `NAME/CONFIG/VERSION`.
    """
    found = [source / _INFO, *(path for depth in ("*", "*/*", "*/*/*") for path in source.glob(f"{depth}/{_INFO}"))]
    return [path.parent for path in found if path.is_file() and not path.parent.name.startswith("incomplete")]


def _read(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads(read_file(folder / _INFO))
        if not isinstance(info, dict):
            raise ValueError(f"it should hold an object, it holds {type(info).__name__}")
        return info
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / _INFO}: cannot read: {one_line(error)}") from error


def _link_or_copy(source: Path, target: Path) -> None:
    """Create `target` as a hard link to `source` if possible, which needs no disk space, else as a copy.

    JSON files are always copied. They have been checked, and with a link a later change of the source would also change
    the checked file.
    """
    if source.suffix != ".json":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _version(text: object) -> list[int]:
    """Return the numeric parts of a version string, for comparing versions: `[1, 10]` for `1.10.beta`."""
    return [int(part) for part in str(text).split(".") if part.isdecimal()]
