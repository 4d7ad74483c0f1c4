"""Turn a module of any kind into a pure function and its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from metajax.partition import map_with_names, names
from metajax.types import ApplyFn, Params


def functional(module: Any, *init_args: Any) -> tuple[ApplyFn, Params]:
    """Turn a model into a pure `apply(params, x, rng)` and its parameters, a nested dict of arrays.

    Args:
        module: One of
            an NNX module, called as `module(x)`;
            a Linen module, with `init_args = (rng, x)` for its `init`; a dict of keys names its random streams;
            a pair `(init, apply)` of functions, with `init_args` for `init`, and `apply(params, x, rng)`.
        *init_args: As above.

    Returns:
        `(apply, params)`. Anything in the module that is not a parameter, running statistics included, is held
        constant: what a forward pass writes there is dropped. `rng` feeds dropout and other noise; without it an
        NNX module uses the streams that it was made with, the same at every call. Dropout stays as the module has it:
        for evaluation make a second pair from `module.eval()`.

    Raises:
        TypeError: If `module` is none of these.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> apply, params = mj.functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> apply(params, jnp.ones((4, 3))).shape, sorted(params)
    ((4, 2), ['bias', 'kernel'])
    """
    if isinstance(module, nnx.Module):
        return _from_nnx(module)
    if isinstance(module, linen.Module):
        return _from_linen(module, *init_args)
    if isinstance(module, tuple) and len(module) == 2 and all(callable(f) for f in module):
        init, apply = module
        return apply, init(*init_args)
    raise TypeError(f"expected an NNX module, a Linen module or a pair (init, apply), got {type(module).__name__}")


def features(apply: ApplyFn, head: str = "head") -> ApplyFn:
    """What goes into a model's last layer, a linear one.

    Args:
        apply: A model `(params, x, rng) -> outputs`; an NNX module's, or your own pair's. (Linen checks shapes.)
        head: Path of the last layer among its parameters, with leaves `kernel [size, outputs]` and maybe `bias`.

    Returns:
        `(params, x, rng) -> features [examples, size]`: the model with the identity for its last layer. It raises a
        `ValueError` if there is no such layer.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> apply, params = mj.functional(mj.models.Conv4(5, rngs=nnx.Rngs(0)))
    >>> mj.models.features(apply)(params, jnp.ones((10, 28, 28, 1))).shape
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


def _from_nnx(module: nnx.Module) -> tuple[ApplyFn, Params]:
    graph, state, rest = nnx.split(module, nnx.Param, ...)

    def apply(params, x, rng=None, /):
        filled = jax.tree.map(lambda leaf: leaf, state)  # a copy: replacing works in place
        nnx.replace_by_pure_dict(filled, params)
        model = nnx.merge(graph, filled, rest, copy=True)
        if rng is not None:
            keys = {name: jax.random.fold_in(rng, i) for i, name in enumerate(sorted(_streams(rest)))}
            nnx.reseed(model, **keys)  # pyright: ignore[reportArgumentType]
        return model(x)

    return apply, nnx.to_pure_dict(state)


def _streams(rest: nnx.State) -> set[str]:
    """Names of the random streams in a module's state."""
    keys = nnx.filter_state(rest, nnx.RngKey)
    return {leaf.tag for leaf in jax.tree.leaves(keys, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))}


def _from_linen(module: linen.Module, init_rngs: Any, *example: Any) -> tuple[ApplyFn, Params]:
    variables = dict(module.init(init_rngs, *example))
    params = variables.pop("params")
    streams = sorted({"dropout", *(init_rngs if isinstance(init_rngs, dict) else ())} - {"params"})

    def apply(params, x, rng=None, /):
        rngs = None if rng is None else {name: jax.random.fold_in(rng, i) for i, name in enumerate(streams)}
        outputs, _ = module.apply({"params": params, **variables}, x, rngs=rngs, mutable=list(variables))
        return outputs

    return apply, params
