"""Check settings. Each error message names the field and the valid values."""

import dataclasses
import math
import numbers
import typing
from typing import Any

from metajax.data.dataset import LARGEST_IMAGE as LARGEST_IMAGE  # imported from here with the limits below
from metajax.errors import UserError, needs

with needs("cli"):
    import typeguard


def types_are_right(spec: Any, owner: str = "") -> None:
    """Raise a `UserError` unless each field of settings, including nested settings, has its declared type."""
    field_types_are_right(spec, owner)
    for field in dataclasses.fields(spec):
        path, value = f"{owner}{field.name}", getattr(spec, field.name)
        parts = {f"{path}[{i}]": part for i, part in enumerate(value)} if isinstance(value, tuple) else {path: value}
        for name, part in parts.items():
            if dataclasses.is_dataclass(part):
                types_are_right(part, f"{name}.")


def field_types_are_right(spec: Any, owner: str = "") -> None:
    """Raise a `UserError` unless each field of settings has its declared type; nested settings are not checked."""
    hints = typing.get_type_hints(type(spec))
    for field in dataclasses.fields(spec):
        path, value, hint = f"{owner}{field.name}", getattr(spec, field.name), hints[field.name]
        if isinstance(value, type):  # a class would pass the check below, because it has the protocol's methods
            raise UserError(f"{path} must be settings, {value.__name__}(...), got the class {value.__name__}")
        try:
            typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
        except typeguard.TypeCheckError as error:
            raise UserError(f"{path} must be {_described(hint)}, got {shown(value)}") from error
        if not type(spec).__module__.startswith("metajax."):  # settings of a user's own type have no limits
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path} must be a finite number, got {shown(value)}")
        if isinstance(value, int) and abs(value) >= 2**32:
            raise UserError(f"{path} must be at most {LARGEST:,}, got {shown(value)}")


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(each) for each in typing.get_args(hint))
    if getattr(hint, "_is_protocol", False):
        about, _, _ = hint.__doc__.partition(";")
        return about[0].lower() + about[1:]
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


LARGEST = 2**31 - 1
"""The largest int32. Devices count steps and sizes in int32."""

MOST_TASKS = 1_000_000
"""Largest number of tasks in a meta-step or in an evaluation. Also the largest number of meta-steps in one call of the
training step."""

MOST_EXAMPLES = 100_000
"""Largest number of ways, of shots and of queries for each class."""

MOST_FEATURES, MOST_CHANNELS = 16_384, 4_096
"""Largest number of features of a dense layer, and of channels of a convolution. At these limits the matrix between two
dense layers has 1 GB, and the kernel of a 3×3 convolution has 0.6 GB."""


def whole(owner: str, low: int, high: int, **fields: int | None) -> None:
    """Raise a `UserError` unless each field is `None` or a number from `low` to `high`.

    `types_are_right` rejects numbers that are not whole.
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
