"""Some examples at a time: blocks whose values stay in a cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def largest_block(examples: int, bytes_each: int, bytes_in_all: int) -> int:
    """How many of so many examples go together if all blocks are alike and stay within a size, unless one is larger.

    >>> largest_block(75, 1_000, 30_000), largest_block(75, 40_000, 30_000)
    (25, 1)
    """
    most = max(bytes_in_all // bytes_each, 1)
    return max((n for n in range(1, examples + 1) if examples % n == 0 and n <= most), default=0)


def map_blocks(fn: Callable[..., Any], x: jax.Array, *, block: int) -> Any:
    """A function of examples on so many of them at a time, its results one behind the other.

    Args:
        fn: `(examples) -> tree of arrays`, whose first axis is that of the results.
        x: `[examples, ...]`.
        block: Examples of a block, a divisor of all.

    >>> import jax.numpy as jnp
    >>> map_blocks(lambda x: x - x.mean(), jnp.arange(4.0), block=2).tolist()
    [-0.5, 0.5, -0.5, 0.5]
    >>> map_blocks(lambda x: x - x.mean(), jnp.arange(4.0), block=1).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    if block == len(x):
        return fn(x)
    split, join = _splitter(block)
    out = lax.map(lambda some: fn(join(some)), split(x))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)


def sum_blocks(fn: Callable[..., jax.Array], *arrays: jax.Array, block: int) -> jax.Array:
    """The sum of a function of so many examples at a time.

    Args:
        fn: `(*arrays) -> array`.
        arrays: `[examples, ...]` each.
        block: Examples of a block, a divisor of all.

    >>> import jax.numpy as jnp
    >>> float(sum_blocks(lambda x, y: x @ y, jnp.arange(4.0), jnp.arange(4.0), block=2))
    14.0
    """
    if block == len(arrays[0]):
        return fn(*arrays)
    split, join = _splitter(block)

    def add(total: jax.Array, some: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + fn(*map(join, some)), None

    like = jax.eval_shape(fn, *(x[:block] for x in arrays))
    return lax.scan(add, jnp.zeros(like.shape, like.dtype), [split(x) for x in arrays])[0]


def _splitter(block: int) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """What makes an axis of blocks, and what makes examples of one of them."""
    if block == 1:  # compilers for a CPU would turn an axis of one to the front, and copy everything
        return lambda x: x, lambda some: some[None]
    return lambda x: x.reshape(-1, block, *x.shape[1:]), lambda some: some
