"""Masks that select leaves of a pytree of parameters by the names in their paths, and functions that use the masks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from metajax.core.types import Params, PyTree

Mask = Callable[[str, Any], bool] | PyTree
"""A mask of leaves: a predicate on the leaf's path (`"convs/0/kernel"`) and value, or a pytree of bools."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A mask of the leaves whose path contains one of `names`. `split` refuses a name that no path contains."""

    names: tuple[str, ...]
    """Parts of paths, such as `head` or `layers/0`."""
    others: bool = False
    """Whether the mask is inverted, so that it selects all other leaves."""

    def __call__(self, path: str, leaf: Any) -> bool:
        """Return whether the mask selects a leaf."""
        return self.others != any(_holds(path, name) for name in self.names)

    def check(self, paths: list[str], setting: str) -> None:
        """Raise a `ValueError` that names `setting`, unless each name is in at least one path."""
        for name in self.names:
            if not any(_holds(path, name) for path in paths):
                parts = sorted({part for path in paths for part in path.split("/") if part})
                held = ", ".join(parts) or "no names: there is one array"
                raise ValueError(f"{setting}: no parameter path has a part {name!r}; there are {held}")


def _holds(path: str, name: str) -> bool:
    return f"/{name}/" in f"/{path}/"


def _refuse_string(mask: Any) -> None:
    if isinstance(mask, str):
        raise ValueError(f"a mask of parameters is a function or a pytree of bools: use metajax.named({mask!r})")


def named(*names: str) -> Named:
    """Return a mask of the leaves whose path contains one of `names`: `"norms"`, `"layers/0"`, `"bias"`.

    A name matches whole parts of a path only: `"bias"` does not match `"biases"`.

    Raises:
        TypeError: If a name is not a string.

    >>> chosen = named("layers/0", "bias")
    >>> [chosen(path, None) for path in ("layers/0/kernel", "layers/01/kernel", "layers/1/bias")]
    [True, False, True]
    """
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"named takes strings as separate arguments, got {', '.join(map(repr, names))}")
    return Named(names)


def invert(mask: Mask) -> Mask:
    """Return the inverted mask.

    >>> invert(named("head"))("head/bias", None)
    False
    """
    _refuse_string(mask)
    if isinstance(mask, Named):
        return dataclasses.replace(mask, others=not mask.others)
    if callable(mask):
        return lambda path, leaf: not mask(path, leaf)
    return jax.tree.map(lambda chosen: not chosen, mask)


def map_with_names(fn: Callable[[str, Any], Any], params: Params) -> PyTree:
    """Apply `fn(path, leaf)` to every leaf of a pytree, with paths such as `head/bias`.

    >>> map_with_names(lambda path, leaf: path, {"head": {"bias": 0.0}})
    {'head': {'bias': 'head/bias'}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: fn(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), params
    )


def names(params: Params) -> list[str]:
    """Return the path of every leaf of a pytree.

    >>> names({"b": 0.0, "a": [1.0, 2.0]})
    ['a/0', 'a/1', 'b']
    """
    return jax.tree.leaves(map_with_names(lambda path, leaf: path, params))


def all_names(params: PyTree) -> list[str]:
    """Return the path of every leaf, including the leaves that `split` replaced by `None`.

    >>> all_names({"head": 0.0, "body": None})
    ['body', 'head']
    """
    return names(jax.tree.map(lambda leaf: 0, params, is_leaf=lambda leaf: leaf is None))


def split(params: Params, mask: Mask, setting: str = "the mask of parameters") -> tuple[PyTree, PyTree]:
    """Split parameters into the selected leaves and the other leaves.

    Both results are trees like `params`, with `None` in place of the leaves that are in the other tree.

    Args:
        params: Parameters. Leaves that an earlier `split` removed are `None`.
        mask: The mask.
        setting: Name of the mask in error messages.

    Raises:
        ValueError: If a name matches no path, if a pytree of bools has another structure than `params`, or if the mask
            is a string.

    >>> split({"head": 1, "body": 2}, named("head"))
    ({'body': None, 'head': 1}, {'body': 2, 'head': None})
    """
    _refuse_string(mask)
    if isinstance(mask, Named):
        mask.check(all_names(params), setting)
    selected = map_with_names(lambda path, leaf: bool(mask(path, leaf)), params) if callable(mask) else mask
    if not callable(mask) and (differing := set(all_names(params)) ^ set(all_names(selected))):
        raise ValueError(
            f"{setting}: a pytree of bools needs one bool for each parameter, but the two trees differ in "
            f"{', '.join(sorted(differing))}; or use metajax.named"
        )
    chosen = map_present(lambda leaf, yes: leaf if yes else None, params, selected)
    rest = map_present(lambda leaf, yes: None if yes else leaf, params, selected)
    return chosen, rest


def merge(chosen: PyTree, rest: PyTree) -> Params:
    """Merge the two trees that `split` returned.

    >>> merge({"head": 1, "body": None}, {"head": None, "body": 2})
    {'body': 2, 'head': 1}
    """
    return map_present(lambda a, b: b if a is None else a, chosen, rest)


def scaled(updates: PyTree, factors: PyTree) -> PyTree:
    """Multiply each update by the factor of the same leaf. An update that is `None` stays `None`.

    Raises:
        ValueError: If updates and factors differ in structure.

    >>> scaled({"head": 2.0, "body": None}, {"head": 3.0, "body": 5.0})
    {'body': None, 'head': 6.0}
    """
    structure = lambda tree: jax.tree.structure(tree, is_leaf=lambda leaf: leaf is None)  # noqa: E731
    if structure(updates) != structure(factors):
        raise ValueError(
            "learned rates belong to the model's parameters, but other arrays adapt: learned rates cannot be combined "
            "with a context or low-rank factors"
        )
    return map_present(lambda update, factor: None if update is None else update * factor, updates, factors)


def map_present(fn: Callable, *trees: PyTree) -> PyTree:
    """Apply `jax.tree.map` to trees with `None` in place of missing leaves. `fn` receives `None` for such a leaf."""
    return jax.tree.map(fn, *trees, is_leaf=lambda leaf: leaf is None)


def map_changed(fn: Callable, params: PyTree, changes: PyTree) -> PyTree:
    """Apply `fn(leaf, change)` to each leaf whose entry in `changes` is not `None`; return the other leaves unchanged.

    Raises:
        ValueError: If a leaf with a change was removed by `split`.

    >>> map_changed(lambda leaf, change: leaf + sum(change), {"head": 1, "body": 2}, {"head": (3, 4), "body": None})
    {'body': 2, 'head': 8}
    """

    def changed(leaf, change):
        if change is None:
            return leaf
        if leaf is None:
            raise ValueError(
                "a modifier changes parameters that an earlier modifier does not let adapt: select only adapting "
                "parameters"
            )
        return fn(leaf, change)

    return map_present(changed, params, changes)
