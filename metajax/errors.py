"""Errors for mistakes that the user can correct, and parts of their messages."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake outside the library. The message says what is wrong, where, and what to do.

    The command line prints the message without a traceback, and exits with status 2.
    """


class MissingPackageError(UserError, ImportError):
    """A package of one of metajax's extras is not installed."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Name the command that installs a missing package, if an import in the block fails.

    Args:
        extra: The extra of metajax that contains the packages. If blocks are nested, the outer one counts.

    Raises:
        MissingPackageError: If a package is not installed.

    >>> with needs("data"):
    ...     import a_package_that_is_missing
    Traceback (most recent call last):
    metajax.errors.MissingPackageError: a_package_that_is_missing is not installed: pip install 'metajax[data]'
    """
    try:
        yield
    except (MissingPackageError, ModuleNotFoundError) as error:
        package = (error.name or "a package").partition(".")[0]
        if package == "metajax":
            raise
        raise MissingPackageError(
            f"{package} is not installed: pip install 'metajax[{extra}]'", name=package
        ) from error


def suggestion(word: str, choices: Iterable[str], advice: str = "") -> str:
    """Return the end of an error message about an unknown word.

    The result is `: did you mean …?` if a choice is similar to the word. If no choice is similar, the result is
    `advice`, or without `advice` all choices.
    """
    choices = list(choices)
    near = difflib.get_close_matches(word[:100], choices, n=1)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": {advice}" if advice else f": choose one of {', '.join(choices)}"
