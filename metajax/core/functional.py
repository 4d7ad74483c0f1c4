"""Convert an NNX module, a Linen module or a pair `(init, apply)` into a pure function and its parameters."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import core
from jax.interpreters import partial_eval

from metajax.core.checks import as_key, check_no_state, describe
from metajax.core.trees import map_with_names, names
from metajax.core.types import ApplyFn, Params, PyTree


def functional(module: Any, *init_args: Any, **options: Any) -> tuple[ApplyFn, Params]:
    """Convert a model into a pure function `apply(params, x, rng)` and its parameters, a pytree of arrays.

    Args:
        module: One of
            an NNX module, called as `module(x, **options)`;
            a Linen module, with `init_args = (key, x, ...)` and `options` for its `init`. `key` may be a dict of keys
            by the names of the random streams. The arguments after `x`, for example a flag `train`, and `options` are
            passed at every call;
            a pair `(init, apply)` of functions, with `init_args` and `options` for `init`. `apply` is called as
            `apply(params, x, rng)`. The `apply` of Haiku takes `rng` second: use `(init, lambda params, x, rng:
            apply(params, rng, x))`. The `init` of `jax.example_libraries.stax` returns a shape first: use `(lambda *a:
            init(*a)[1], lambda params, x, rng: apply(params, x, rng=rng))`.
        *init_args: See `module`.
        **options: See `module`.

    Returns:
        `(apply, params)`. All state of the module except the parameters is constant, including running statistics:
        `apply` drops the changes that a forward pass makes to the state. `rng` is the key for dropout and other noise.
        Without `rng` an NNX module uses its own random streams, with the same values at every call.

        `functional` does not change the module's dropout. To switch off only dropout, for evaluation, make a second
        pair: for an NNX module after `module.set_attributes(nnx.Dropout, deterministic=True)`, for a Linen module with
        the module's flag for dropout. Do not use `module.eval()`: it makes batch normalisation use running statistics,
        which metajax never updates.

    Raises:
        TypeError: If `module` is none of these, or if the arguments do not fit the kind of `module`.
        ValueError: If there are no parameters, if a parameter is not a floating-point array, or if batch normalisation
            would use running statistics that were never updated. For running statistics that were updated before,
            there is only a `UserWarning`. `apply` checks the statistics at its first call with inputs of a new shape.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> apply, params = mj.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> apply(params, jnp.ones((4, 3))).shape, sorted(params)
    ((4, 2), ['bias', 'kernel'])
    """
    kind = "the pair" if isinstance(module, tuple) else type(module).__name__
    if isinstance(module, nnx.Module):
        if init_args:
            raise TypeError(
                f"{kind} is an NNX module, which has its parameters already: call functional(module). Pass the other "
                "arguments of the module's call by keyword"
            )
        apply, params = _from_nnx(module, options)
    elif isinstance(module, linen.Module):
        if len(init_args) < 2:
            raise TypeError(
                f"{kind} is a Linen module, which needs a key and an example input: functional(module, "
                f"jax.random.key(0), x); got {len(init_args)} argument{'s' if len(init_args) != 1 else ''} after the "
                "module"
            )
        apply, params = _from_linen(module, init_args, options)
    elif isinstance(module, tuple) and len(module) == 2 and all(callable(f) for f in module):
        init, apply = module
        apply, params = _from_pair(apply), init(*init_args, **options)
    else:
        got = f"the class {module.__name__}: make an instance of it" if isinstance(module, type) else kind
        raise TypeError(f"expected an NNX module, a Linen module or a pair (init, apply), got {got}")
    _check_params(kind, params)
    return apply, params


def _check_params(kind: str, params: Params) -> None:
    """Raise a `ValueError` unless there are parameters, and all of them are floating-point arrays."""
    if not jax.tree.leaves(params):
        raise ValueError(f"{kind} has no parameters, so there is nothing to meta-learn")
    for path, leaf in zip(names(params), jax.tree.leaves(params), strict=True):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic | float)
        if is_array and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        remedy = ""
        if kind == "the pair":
            remedy = "\nIf `init` returns more than the parameters, select them: (lambda *a: init(*a)[1], apply)"
        raise ValueError(
            f"parameters must be floating-point arrays, but parameter {path!r} of {kind} is {describe(leaf)}{remedy}"
        )


def features(apply: ApplyFn, head: str = "head") -> ApplyFn:
    """Return a function that computes the inputs of a model's last layer, which must be linear.

    Args:
        apply: A model `(params, x, rng) -> outputs`, from an NNX module or a pair. A Linen module does not work,
            because Linen checks the shapes of parameters.
        head: Path of the last layer among the parameters, with leaves `kernel [size, outputs]` and optionally `bias`.

    Returns:
        `(params, x, rng) -> features [examples, size]`: the model with its last layer replaced by the identity. The
        function raises a `ValueError` if the parameters have no such layer.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> apply, params = mj.functional(mj.models.Conv4(5, rngs=nnx.Rngs(0)))
    >>> mj.features(apply)(params, jnp.ones((10, 28, 28, 1))).shape
    (10, 64)
    """

    def replaced(path: str, leaf: jax.Array) -> jax.Array:
        if path == f"{head}/kernel":
            return jnp.eye(leaf.shape[0], dtype=leaf.dtype)
        return jnp.zeros((), leaf.dtype) if path == f"{head}/bias" else leaf

    def embed(params, x, rng=None, /):
        if f"{head}/kernel" not in names(params):
            raise ValueError(f"there is no linear layer {head!r} with a kernel among the parameters")
        return apply(map_with_names(replaced, params), x, rng)

    return embed


def _from_nnx(module: nnx.Module, options: dict[str, Any]) -> tuple[ApplyFn, Params]:
    graph, state, statistics, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    keys = nnx.filter_state(rest, nnx.RngKey)
    streams = sorted({leaf.tag for leaf in jax.tree.leaves(keys, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))})

    def run(values, params, x, rng):
        model = nnx.merge(graph, _replaced(state, params), _replaced(statistics, values), rest, copy=True)
        if rng is not None:
            keys = {name: jax.random.fold_in(rng, i) for i, name in enumerate(streams)}
            nnx.reseed(model, policy="match_shape", **keys)  # pyright: ignore[reportArgumentType]
        return model(x, **options)

    return _checked(run, nnx.to_pure_dict(statistics)), nnx.to_pure_dict(state)


def _replaced(state: nnx.State, values: PyTree) -> nnx.State:
    """Return a copy of an NNX state with its values replaced."""
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def _from_linen(module: linen.Module, init_args: tuple, options: dict[str, Any]) -> tuple[ApplyFn, Params]:
    init_rngs, example, *others = init_args
    init_rngs = jax.tree.map(as_key, init_rngs)  # `init_rngs` is one key, or a dict of keys
    variables = dict(module.init(init_rngs, example, *others, **options))
    params, statistics = variables.pop("params", {}), variables.get("batch_stats", {})
    streams = sorted({"dropout", *(init_rngs if isinstance(init_rngs, dict) else ())} - {"params"})

    def run(values, params, x, rng):
        rngs = None if rng is None else {name: jax.random.fold_in(rng, i) for i, name in enumerate(streams)}
        state = {**variables, "batch_stats": values} if statistics else variables
        outputs, _ = module.apply(
            {"params": params, **state}, x, *others, rngs=rngs, mutable=list(variables), **options
        )
        return outputs

    return _checked(run, statistics), params


def _checked(run: Callable[..., Any], statistics: PyTree) -> ApplyFn:
    """Wrap `run` as an `ApplyFn` that checks how batch normalisation uses running statistics.

    The check runs once for each shape of inputs.
    """

    @functools.cache
    def check(structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> None:
        _check_statistics(run, statistics, structure.unflatten(shapes))

    def apply(params, x, rng=None, /):
        check_no_state(params)
        if statistics:
            shapes, structure = jax.tree.flatten(jax.tree.map(_shape, (params, x, rng)))
            check(structure, tuple(shapes))
        return run(statistics, params, x, rng)

    return apply


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), getattr(leaf, "dtype", jnp.result_type(leaf)))


def _check_statistics(run: Callable[..., Any], statistics: PyTree, arguments: tuple) -> None:
    """Raise a `ValueError`, or warn, if batch normalisation uses running statistics instead of the current batch.

    The check inspects the traced program, so it does not depend on the flags and arguments of a module.
    """
    program = jax.make_jaxpr(run)(statistics, *arguments).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    moments = [
        (
            path.rpartition("/")[0] or "the module itself",
            isinstance(leaf, core.Tracer) or bool((np.asarray(leaf) != path.endswith("var")).any()),
        )
        for path, leaf, yes in zip(names(statistics), jax.tree.leaves(statistics), used, strict=False)
        if yes and path.rpartition("/")[2] in ("mean", "var")
    ]
    if not moments:
        return
    layers = ", ".join(dict.fromkeys(layer for layer, _ in moments))
    if not any(updated for _, updated in moments):
        raise ValueError(
            f"batch normalisation ({layers}) would use running statistics, which still have their initial values, and "
            "which metajax does not update.\nSet use_running_average=False to use the current batch. (module.eval() "
            "sets it to True. The docstring of `metajax.functional` explains how to switch off only dropout.)"
        )
    warnings.warn(
        f"batch normalisation ({layers}) uses running statistics, which metajax holds constant: with "
        "use_running_average=False it uses the current batch, in training and in evaluation",
        stacklevel=5,
    )


def _from_pair(apply: Callable[..., Any]) -> ApplyFn:
    """Wrap the `apply` of a pair, so that its errors list the shapes of the arguments."""
    try:
        signature = inspect.signature(apply)
    except ValueError:  # some compiled functions have no signature
        signature = None
    if signature is not None:
        try:
            signature.bind(None, None, None)
        except TypeError:
            raise TypeError(
                f"metajax calls the pair's apply(params, x, rng), but it takes {signature}: wrap it, for example as "
                "(init, lambda params, x, rng: apply(params, x))"
            ) from None
        if list(signature.parameters)[1:2] in (["rng"], ["rngs"]):
            raise TypeError(
                f"metajax calls the pair's apply(params, x, rng), but it takes {signature}: change the order, (init, "
                "lambda params, x, rng: apply(params, rng, x))"
            )

    def call(params, x, rng=None, /):
        check_no_state(params)
        try:
            return apply(params, x, rng)
        except Exception as error:
            arguments = ", ".join(
                f"{name} = {_described(value)}"
                for name, value in zip(["params", "x", "rng"], (params, x, rng), strict=True)
            )
            error.add_note(f"metajax called the pair's apply(params, x, rng) with {arguments}")
            raise

    return call


def _described(tree: PyTree) -> str:
    """Describe a pytree and its leaves in at most 200 characters."""
    text = str(jax.tree.map(describe, tree)).replace("'", "")
    return text if len(text) <= 200 else f"{text[:197]}..."
