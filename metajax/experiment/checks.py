"""Checks of settings that name the field and say what would be right."""

import dataclasses
import numbers
import typing
from typing import Any

import typeguard

from metajax.errors import UserError


def types_are_right(spec: Any, owner: str = "") -> None:
    """Raise unless each field of settings, and of settings in them, has the type that it is declared with."""
    field_types_are_right(spec, owner)
    for field in dataclasses.fields(spec):
        path, value = f"{owner}{field.name}", getattr(spec, field.name)
        parts = {f"{path}[{i}]": part for i, part in enumerate(value)} if isinstance(value, tuple) else {path: value}
        for name, part in parts.items():
            if dataclasses.is_dataclass(part):
                types_are_right(part, f"{name}.")


def field_types_are_right(spec: Any, owner: str = "") -> None:
    """Raise unless each field of settings has the type that it is declared with; nested settings are not checked."""
    hints = typing.get_type_hints(type(spec))
    for field in dataclasses.fields(spec):
        path, value, hint = f"{owner}{field.name}", getattr(spec, field.name), hints[field.name]
        if isinstance(value, type):  # which has all that a protocol asks for
            raise UserError(f"{path} must be settings, {value.__name__}(...), got the class {value.__name__}")
        try:
            typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
        except typeguard.TypeCheckError as error:
            raise UserError(f"{path} must be {_described(hint)}, got {value!r}") from error


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(each) for each in typing.get_args(hint))
    if getattr(hint, "_is_protocol", False):
        about, _, _ = hint.__doc__.partition(";")
        return about[0].lower() + about[1:]
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def at_least(owner: str, minimum: float, **fields: float | None) -> None:
    """Raise unless each field is at least `minimum`; `None` passes."""
    for name, value in fields.items():
        _number(owner, name, value)
        if value is not None and not value >= minimum:
            raise UserError(f"{owner}.{name} must be at least {minimum:g}, got {value:g}")


def positive(owner: str, **fields: float | None) -> None:
    """Raise unless each field is a finite number above 0; `None` passes."""
    for name, value in fields.items():
        _number(owner, name, value)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{owner}.{name} must be a number above 0, got {value:g}")


def in_range(owner: str, low: float, high: float, **fields: float) -> None:
    """Raise unless each field is at least `low` and at most `high`."""
    for name, value in fields.items():
        _number(owner, name, value)
        if value is None or not low <= value <= high:
            got = "None" if value is None else f"{value:g}"
            raise UserError(f"{owner}.{name} must be from {low:g} to {high:g}, got {got}")


def _number(owner: str, name: str, value: Any) -> None:
    if value is not None and not isinstance(value, numbers.Real):
        raise UserError(f"{owner}.{name} must be a number, got {value!r}")
