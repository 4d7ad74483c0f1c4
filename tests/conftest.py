"""Eight host devices in one process, and where the shared data lies."""

from pathlib import Path

import jax
import pytest

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
