"""Write and read data sets of TensorFlow Datasets (TFDS) in ArrayRecord files, without TensorFlow.

A record is one example: an image, its label and its index. TFDS needs TensorFlow to encode arrays and to unpack
archives, but not to store bytes. So this module stores each image as the bytes of a PNG file, and other modules unpack
the archives.
"""

import contextlib
import io
import json
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.data.cache import cached
from metajax.data.dataset import Bank, check_memory, pool
from metajax.data.disk import clear_leftovers, one_line, refuse_links, resolve_data_dir, writing_to
from metajax.data.pixels import decode
from metajax.errors import UserError, needs
from metajax.system.files import read_file

Example = tuple[str | int, dict[str, Any]]
"""A unique key, and a dict with the features of the example: `image`, `label` and `index`."""
FEATURES = "features.json"
"""Name of the file in which TFDS describes the features of the examples."""


class Record(NamedTuple):
    """A stored example with its decoded image.

    Attributes:
        label: Index of the class.
        index: The stored index of the image, or the position of the record if no index is stored.
        pixels: `uint8[size, size, channels]`.
    """

    label: int
    index: int
    pixels: np.ndarray


class Store(NamedTuple):
    """The name, config and version of a stored data set, which determine the folder of its records.

    Attributes:
        name: Name of the data set in TFDS, and of its folder.
        version: Version of the stored examples. It changes when the examples change.
        description: A sentence about the data set, which TFDS stores with the records.
        homepage: Web address of the data set.
        config: Name of the variant of the data set in TFDS; "" if TFDS has only one variant.
    """

    name: str
    version: str
    description: str
    homepage: str
    config: str = ""


def directory(store: Store, data_dir: Path | None) -> Path:
    """Return the folder of a data set's records.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.

    Returns:
        `DATA_DIR/NAME/VERSION`, or `DATA_DIR/NAME/CONFIG/VERSION`, as in TFDS.
    """
    return resolve_data_dir(data_dir) / store.name / store.config / store.version


def is_prepared(store: Store, data_dir: Path | None) -> bool:
    """Return whether a data set's records exist.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.

    Returns:
        Whether the folder of the records exists. TFDS writes to a temporary folder and renames it when all files are
        complete, so an existing folder is complete.
    """
    return (directory(store, data_dir) / "dataset_info.json").is_file()


def write(
    store: Store,
    data_dir: Path | None,
    image_shape: tuple[int | None, int | None, int],
    class_names: list[str],
    splits: Mapping[str, Iterable[Example]],
) -> None:
    """Write a data set's records.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.
        image_shape: `(height, width, channels)`. Height and width are `None` if they differ between images.
        class_names: The name of each class, in the order of the labels.
        splits: `{split: examples}`. The features of an example are `image` (the content of a PNG file), `label`, and
            `index` (the position among the images of the class or of the split).

    Raises:
        UserError: If the disk is full or not writable, or if an iterable of `splits` raises a `UserError`.
    """
    with needs("data"):
        import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=image_shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=class_names),
            "index": tfds.features.Scalar(dtype=np.int64),
        }
    )

    # `AdhocBuilder` of TFDS is not used: it needs TensorFlow to check whether the examples are a TensorFlow data set.
    class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = store.name
        VERSION = tfds.core.Version(store.version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=store.config)] if store.config else []

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=features, description=store.description, homepage=store.homepage
            )

        def _split_generators(self, dl_manager):
            return {key: iter(examples) for key, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    root = resolve_data_dir(data_dir)
    with writing_to(root), preparing(store, data_dir), quiet():
        try:
            builder = RecordBuilder(data_dir=root, file_format="array_record")
            # TFDS always creates a folder for downloads. By default this folder is outside the data directory.
            builder.download_and_prepare(download_dir=root / "downloads")
        except OSError:
            # If two processes prepare the data set at the same time, the slower one cannot rename its folder: the
            # final name is already in use. This error is harmless.
            if not is_prepared(store, data_dir):
                raise


@contextlib.contextmanager
def preparing(store: Store, data_dir: Path | None) -> Iterator[None]:
    """Create the parent folder of a data set's records, and remove temporary files of killed processes from it.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.

    Yields:
        Nothing.

    Raises:
        OSError: If the folder cannot be created, or if a symbolic link is in its path.
    """
    above, root = directory(store, data_dir).parent, resolve_data_dir(data_dir)
    for folder in (above, root / "downloads"):
        refuse_links(root, folder)
    above.mkdir(parents=True, exist_ok=True)
    with clear_leftovers(above, "incomplete.*"):
        yield


def remove_leftovers(store: Store, data_dir: Path | None) -> None:
    """Remove temporary files that interrupted preparations left beside prepared records, if permissions allow it.

    Args:
        store: The data set, which is prepared.
        data_dir: As in `resolve_data_dir`.
    """
    with contextlib.suppress(OSError), preparing(store, data_dir):
        pass


def fingerprint(store: Store, data_dir: Path | None) -> list[str]:
    """Return a fingerprint of the prepared records without reading them.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.

    Returns:
        Name, size and modification time of every file.

    Raises:
        UserError: If the data set is not prepared, or if a path in its folder is not a regular file or a folder.
    """
    if not is_prepared(store, data_dir):
        command = f"metajax data prepare {store.name}{_option(data_dir)}"
        raise UserError(
            f"{store.name} is not prepared in {resolve_data_dir(data_dir)}: run `{command}`, "
            "with --source DIR to use local files"
        )
    with _undamaged(store, data_dir):
        files = [(path.name, path.stat()) for path in sorted(directory(store, data_dir).iterdir())]
        for name, status in files:
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise OSError(f"{name} is not a regular file")  # reading a FIFO would block without end
    return [f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in files]


def read(
    store: Store, data_dir: Path | None, split: str, size: int, channels: int = 1, limit: int | None = None
) -> Iterator[Record]:
    """Read the records of a split and decode their images.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.
        split: Name of the split in the records.
        size: Side of a decoded image in pixels.
        channels: 1 for greyscale, 3 for colour.
        limit: Largest number of images of a class. Default: all images.

    Yields:
        The records in the order of the file. TFDS has shuffled them.

    Raises:
        UserError: If the files are damaged or missing, or if they name Python modules outside TFDS.
    """
    with needs("data"):
        import tensorflow_datasets as tfds

    with _undamaged(store, data_dir):
        builder = _builder(store, data_dir)
        features = builder.info.features
        # Decode the images here, not in TFDS. TFDS uses OpenCV or Pillow, depending on which is installed, and the two
        # packages differ for one-bit images: the values are 0 and 255, or 0 and 1.
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        source = builder.as_data_source(split, decoders={name: tfds.decode.SkipDecoding() for name in images})
        enough = Counter(dict.fromkeys(range(features["label"].num_classes), limit)) if limit else None
        for begin in range(0, len(source), 4096):
            batch = source.__getitems__(range(begin, min(begin + 4096, len(source))))
            for place, record in enumerate(batch, begin):
                label = int(record["label"])
                if enough is not None:
                    if not enough[label]:
                        continue
                    enough[label] -= 1
                # The reader of TFDS does not detect a truncated file. It yields empty records; `decode` rejects them.
                yield Record(label, int(record.get("index", place)), decode(record["image"], size, channels))
            if enough is not None and not enough.total():
                return


@contextlib.contextmanager
def _undamaged(store: Store, data_dir: Path | None) -> Iterator[None]:
    """Convert any exception while reading prepared records into a `UserError` with advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{directory(store, data_dir)}: damaged records ({one_line(error)}); delete this folder and run "
            f"`metajax data prepare {store.name}{_option(data_dir)}` again"
        ) from error


def _option(data_dir: Path | None) -> str:
    return "" if data_dir is None else f" --data-dir {data_dir}"


def load_bank(
    store: Store,
    data_dir: Path | None,
    size: int,
    channels: int = 1,
    *,
    parts: Iterable[str] = (),
    limit: int | None = None,
    transpose: bool = False,
) -> Bank:
    """Load all images of a prepared data set. The decoded images are cached on disk.

    Args:
        store: The data set.
        data_dir: As in `resolve_data_dir`.
        size: Side of a decoded image in pixels.
        channels: 1 for greyscale, 3 for colour.
        parts: Official parts (such as `train` and `test`) to keep separate. Each class then has one entry in the result
            for each part, one after the other. Default: one entry per class with the images of all parts.
        limit: Largest number of images of a class from each part. Default: all images.
        transpose: Whether to exchange rows and columns of the images.

    Returns:
        The images, sorted by class, then by part, then by index.

    Raises:
        UserError: If the data set is not prepared or is damaged, or if its images do not fit in memory.
    """
    key = {"records": fingerprint(store, data_dir), "size": size, **({"limit": limit} if limit else {})}
    root = resolve_data_dir(data_dir)

    def decode_all() -> Bank:
        labels, splits = _contents(store, data_dir)
        chosen = list(parts) or list(splits)
        images = sum(min(splits[part], (limit or splits[part]) * len(labels)) for part in chosen if part in splits)
        check_memory(directory(store, data_dir), images, size, channels)
        decoded = [
            (record.label, place, record.index, record.pixels)
            for place, part in enumerate(chosen)
            for record in read(store, data_dir, part, size, channels, limit)
        ]
        decoded.sort(key=lambda item: item[:3])
        if not decoded:
            raise UserError(f"{directory(store, data_dir)}: holds no images")
        images = np.stack([pixels for *_, pixels in decoded])
        owners = [label * len(chosen) + place for label, place, *_ in decoded]
        counts = np.bincount(owners, minlength=len(labels) * len(chosen)).astype(np.int32)
        names = [name for name in labels for _ in chosen]
        bank = Bank(images.swapaxes(1, 2) if transpose else images, counts, names, [])
        return bank if parts else pool(bank, len(chosen))

    return cached(root, root / store.name / "decoded" / f"{size}px", key, decode_all)


def _contents(store: Store, data_dir: Path | None) -> tuple[list[str], dict[str, int]]:
    """Return the class names of a prepared data set, and `{part: number of images}`."""
    with _undamaged(store, data_dir):
        builder = _builder(store, data_dir)
        splits = sorted(builder.info.splits.items())
        return list(builder.info.features["label"].names), {part: info.num_examples for part, info in splits}


def _builder(store: Store, data_dir: Path | None) -> Any:
    """Open prepared records with TFDS.

    `check_features` runs first, because TFDS imports the Python modules that the folder names, and another user may
    have changed the folder.
    """
    with needs("data"):
        import tensorflow_datasets as tfds

    folder = directory(store, data_dir)
    check_features(folder)
    return tfds.builder_from_directory(folder)


def check_features(folder: Path) -> None:
    """Check that `features.json` names only classes of TFDS.

    TFDS imports the module of each class in this file, so a changed file could run arbitrary code.

    Args:
        folder: The folder of the records.

    Raises:
        UserError: If the file names a class outside TFDS.
        OSError: If the file cannot be read.
        ValueError: If the file is not JSON.
        RecursionError: If the JSON is nested too deeply.
    """
    path = folder / FEATURES
    waiting: list[Any] = [json.loads(read_file(path))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            # TFDS also accepts a string that contains JSON.
            with contextlib.suppress(ValueError):
                waiting.append(json.loads(value))
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            # TFDS, its protocol buffers, and its first versions use different keys for the name of a class.
            for key in ("pythonClassName", "python_class_name", "type"):
                name = value.get(key)
                if isinstance(name, str) and "." in name and not name.startswith("tensorflow_datasets."):
                    raise UserError(
                        f"{path}: names the class {name[:100]!r}, which is not one of tensorflow_datasets: it is "
                        "not imported; prepare the data set from a source that you trust"
                    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Prevent TFDS from printing messages and progress bars.

    Yields:
        Nothing.
    """
    with needs("data"):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.utils import tqdm_utils

    # The user may have disabled progress bars. Read the setting, to restore it later. TFDS has no public function for
    # reading it.
    shown = getattr(tqdm_utils, "_active", True)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(shown)
