"""Parameters of tests of which only some belong to the default tests."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest


def slow_except(values: Sequence[Any], default: Collection[int]) -> list[Any]:
    """Mark all parameters as slow except those at the positions `default`."""
    return [
        value
        if i in default
        else pytest.param(*value if isinstance(value, tuple) else (value,), marks=pytest.mark.slow)
        for i, value in enumerate(values)
    ]
