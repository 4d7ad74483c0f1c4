"""Eight host devices in one process, and where the shared data lies."""

import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from fast_compilation import fast_compilation

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout, on machines that have it."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is not there")
    return path


@pytest.fixture(autouse=True, scope="module")
def _own_programs():
    """Drop the compiled programs of a module's tests: those of all modules would need gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _own_precision():
    """The command line sets the precision of products for its process; each test starts without."""
    yield
    jax.config.update("jax_default_matmul_precision", None)


@pytest.fixture(autouse=True)
def _own_logging():
    """The command line sends the library's warnings to a handler of its own; each test starts without it."""
    yield
    logger = logging.getLogger("metajax")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory):
    """Keep the records of begun runs apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def compiled_fast():
    """Compile with few optimisations, and each program only once. Results are equal up to rounding."""
    with fast_compilation():
        yield


@pytest.fixture
def random_images(monkeypatch):
    """Replace every data set by random images of the right size."""
    import metajax as mj
    from metajax import data
    from metajax.data.dataset import Dataset

    drawings = {"fashion_mnist", "omniglot", "emnist", "kmnist", "quickdraw_bitmap"}

    def dataset(name: str, size: int, depth: int) -> Dataset:
        rng = np.random.default_rng(0)
        classes, examples = 25, 40
        starts, counts = np.arange(classes) * examples, np.full(classes, examples)
        images = rng.integers(0, 256, (classes * examples, size, size, depth), np.uint8)
        splits = {split: mj.ClassBank(images, starts, counts) for split in ("train", "validation", "test")}
        return Dataset(name, splits, {split: [f"class {i}" for i in range(classes)] for split in splits})

    def load(name="folder", *args, size=None, **options):
        usual = 28 if name in drawings else 32 if name == "cifar100" else 84
        return dataset(str(name), size or usual, 1 if name in drawings else 3)

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(data, "load_omniglot", lambda **options: load("omniglot", **options))
    monkeypatch.setattr(data, "load_fashion_mnist", lambda **options: load("fashion_mnist"))
    monkeypatch.setattr(data, "load_folder", lambda *args, **options: load(size=options.get("size")))
