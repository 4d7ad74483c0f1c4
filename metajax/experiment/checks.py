"""Check the types of settings. Each error message names the field and the valid values."""

import dataclasses
import math
import typing
from typing import Any

from metajax.errors import UserError, needs
from metajax.limits import LARGEST, shown

with needs("cli"):
    import typeguard


def types_are_right(settings: Any, owner: str = "") -> None:
    """Raise a `UserError` unless each field of settings, including nested settings, has its declared type."""
    field_types_are_right(settings, owner)
    for field in dataclasses.fields(settings):
        path, value = f"{owner}{field.name}", getattr(settings, field.name)
        parts = {f"{path}[{i}]": part for i, part in enumerate(value)} if isinstance(value, tuple) else {path: value}
        for name, part in parts.items():
            if dataclasses.is_dataclass(part):
                types_are_right(part, f"{name}.")


def field_types_are_right(settings: Any, owner: str = "") -> None:
    """Raise a `UserError` unless each field of settings has its declared type; nested settings are not checked."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        path, value, hint = f"{owner}{field.name}", getattr(settings, field.name), hints[field.name]
        if isinstance(value, type):  # a class would pass the check below, because it has the protocol's methods
            raise UserError(f"{path} must be settings, {value.__name__}(...), got the class {value.__name__}")
        try:
            typeguard.check_type(value, hint, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
        except typeguard.TypeCheckError as error:
            raise UserError(f"{path} must be {_described(hint)}, got {shown(value)}") from error
        if not type(settings).__module__.startswith("metajax."):  # settings of a user's own type have no limits
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
