"""The limits of settings, and checks of numbers in settings. Error messages name the field and the valid values."""

import numbers
from typing import Any

from metajax.errors import UserError

LARGEST = 2**31 - 1
"""The largest int32. Devices count steps and sizes in int32."""

MOST_TASKS = 1_000_000
"""Largest number of tasks in a meta-step or in an evaluation. Also the largest number of meta-steps in one call of the
training step."""

MOST_EXAMPLES = 100_000
"""Largest number of ways, of shots and of queries for each class."""

LARGEST_IMAGE = 4096
"""Largest accepted image side in pixels. The limit catches mistyped sizes, which would need terabytes of memory."""

MOST_FEATURES, MOST_CHANNELS = 16_384, 4_096
"""Largest number of features of a dense layer, and of channels of a convolution. At these limits the matrix between two
dense layers has 1 GB, and the kernel of a 3×3 convolution has 0.6 GB."""


def whole(owner: str, low: int, high: int, **fields: int | None) -> None:
    """Raise a `UserError` unless each field is `None` or a number from `low` to `high`.

    `metajax.experiment.checks.types_are_right` rejects numbers that are not whole.
    """
    for name, value in fields.items():
        _number(owner, name, value)
        if value is not None and not low <= value:
            raise UserError(f"{owner}.{name} must be at least {low}, got {shown(value)}")
        if value is not None and not value <= high:
            raise UserError(f"{owner}.{name} must be at most {high:,}, got {shown(value)}")


def positive(owner: str, **fields: float | None) -> None:
    """Raise a `UserError` unless each field is `None` or a positive number in the range of float32."""
    for name, value in fields.items():
        _number(owner, name, value)
        if value is None:
            continue
        if not 0 < value < float("inf"):
            raise UserError(f"{owner}.{name} must be a number above 0, got {shown(value)}")
        if not 1e-37 <= value <= 1e37:
            raise UserError(f"{owner}.{name} must be from 1e-37 to 1e+37 (float32), got {shown(value)}")


def in_range(owner: str, low: float, high: float, **fields: float) -> None:
    """Raise a `UserError` unless each field is at least `low` and at most `high`."""
    for name, value in fields.items():
        _number(owner, name, value)
        if value is None or not low <= value <= high:
            raise UserError(f"{owner}.{name} must be from {low:g} to {high:g}, got {shown(value)}")


def _number(owner: str, name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise UserError(f"{owner}.{name} must be a number, got {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as text for an error message. Text of more than 200 characters is truncated."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python does not print numbers with thousands of digits
        return "a number above 10^30" if value > 0 else "a number below -10^30"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
