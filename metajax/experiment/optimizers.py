"""Optimisers of optax by name."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from metajax.errors import UserError, suggestion


def make_optimizer(
    field: str, name: str, learning_rate: float | optax.Schedule, options: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Make an optimiser of optax. As the inner optimiser, `adam` has `eps_root=1e-16` by default, instead of 0.

    Args:
        field: Name of the settings, for error messages: `inner` or `outer`.
        name: Name of a function of optax whose first argument is the learning rate: `sgd`, `adam`, `rmsprop`, ...
        learning_rate: The learning rate, or a schedule.
        options: Other arguments of the function, by name.

    Raises:
        UserError: If optax has no such optimiser, or the optimiser does not take these options.

    >>> make_optimizer("inner", "rmsprop", 0.1, {"decay": 0.95}).init({"w": 1.0}) is not None
    True
    >>> make_optimizer("inner", "rmsprop", 0.1, {"decy": 0.95})
    Traceback (most recent call last):
    metajax.errors.UserError: inner.options: rmsprop has no argument 'decy': did you mean 'decay'?
    """
    if not isinstance(name, str) or name not in optimizers():
        raise UserError(f"{field}.optimizer: optax has no optimiser {name!r}{suggestion(str(name), optimizers())}")
    function = optimizers()[name]
    arguments = [each for each in inspect.signature(function).parameters if each != "learning_rate"]
    if not isinstance(options, Mapping):
        raise UserError(f"{field}.options must be a dict of numbers, got {options!r}")
    for option, value in options.items():
        if option not in arguments:
            advice = suggestion(str(option), arguments)
            raise UserError(f"{field}.options: {name} has no argument {option!r}{advice}")
        if not isinstance(value, bool | int | float) or not abs(value) < 2**31:
            raise UserError(f"{field}.options: {option} must be a finite number, True or False, got {value!r}")
    if name == "adam" and field == "inner":
        options = {"eps_root": 1e-16, **options}  # the derivative of Adam's square root stays finite at a gradient of 0
    try:
        return function(learning_rate, **options)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{field}.options: {name} does not take these values: {error}") from error


@functools.cache
def optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Return the optimisers of optax by name: the functions whose first argument is the learning rate.

    Optimisers with a line search are left out, because they evaluate the loss at other parameters, and optimisers with
    random numbers, whose keys are not saved.

    >>> {"sgd", "adam", "adamw", "rmsprop", "lion"} <= set(optimizers())
    True
    """
    functions = {name: value for name, value in vars(optax).items() if inspect.isfunction(value)}
    arguments = {name: list(inspect.signature(function).parameters) for name, function in functions.items()}
    return {
        name: functions[name]
        for name in sorted(functions)
        if arguments[name][:1] == ["learning_rate"]
        and not {"linesearch", "seed", "key"} & set(arguments[name])
        and not name.startswith(("_", "scale_by"))
    }
