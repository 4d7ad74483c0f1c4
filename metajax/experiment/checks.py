"""Checks of settings that name the field and say what would be right."""

from metajax.errors import UserError


def at_least(owner: str, minimum: float, **fields: float | None) -> None:
    """Raise unless each field is at least `minimum`; `None` passes."""
    for name, value in fields.items():
        if value is not None and not value >= minimum:
            raise UserError(f"{owner}.{name} must be at least {minimum:g}, got {value:g}")


def positive(owner: str, **fields: float | None) -> None:
    """Raise unless each field is a finite number above 0; `None` passes."""
    for name, value in fields.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{owner}.{name} must be a number above 0, got {value:g}")


def in_range(owner: str, low: float, high: float, **fields: float) -> None:
    """Raise unless each field is at least `low` and at most `high`."""
    for name, value in fields.items():
        if not low <= value <= high:
            raise UserError(f"{owner}.{name} must be from {low:g} to {high:g}, got {value:g}")
