"""Apply functions to blocks of examples that are small enough for the processor's cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def largest_block(examples: int, bytes_each: int, bytes_in_all: int) -> int:
    """Return the largest block size that divides `examples` and needs at most `bytes_in_all` bytes; at least 1.

    >>> largest_block(75, 1_000, 30_000), largest_block(75, 40_000, 30_000)
    (25, 1)
    """
    most = max(bytes_in_all // bytes_each, 1)
    return max((n for n in range(1, examples + 1) if examples % n == 0 and n <= most), default=0)


def map_blocks(fn: Callable[..., Any], x: jax.Array, *, block: int) -> Any:
    """Apply a function to blocks of examples, and concatenate the results.

    Args:
        fn: `(examples) -> pytree of arrays`, each with a leading axis of examples.
        x: `[examples, ...]`.
        block: Number of examples in a block, a divisor of the number of examples.

    >>> import jax.numpy as jnp
    >>> map_blocks(lambda x: x - x.mean(), jnp.arange(4.0), block=2).tolist()
    [-0.5, 0.5, -0.5, 0.5]
    >>> map_blocks(lambda x: x - x.mean(), jnp.arange(4.0), block=1).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    if block == len(x):
        return fn(x)
    split, join = _splitter(block)
    out = lax.map(lambda rows: fn(join(rows)), split(x))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)


def sum_blocks(fn: Callable[..., jax.Array], *arrays: jax.Array, block: int) -> jax.Array:
    """Apply a function to blocks of examples, and add the results.

    Args:
        fn: `(*arrays) -> array`.
        *arrays: Arrays `[examples, ...]`.
        block: Number of examples in a block, a divisor of the number of examples.

    >>> import jax.numpy as jnp
    >>> float(sum_blocks(lambda x, y: x @ y, jnp.arange(4.0), jnp.arange(4.0), block=2))
    14.0
    """
    if block == len(arrays[0]):
        return fn(*arrays)
    split, join = _splitter(block)

    def add(total: jax.Array, blocks: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + fn(*map(join, blocks)), None

    like = jax.eval_shape(fn, *(x[:block] for x in arrays))
    return lax.scan(add, jnp.zeros(like.shape, like.dtype), [split(x) for x in arrays])[0]


def _splitter(block: int) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Return a function that splits an array into blocks, and a function that returns the examples of one block."""
    if block == 1:  # XLA for CPUs would transpose an axis of size 1 to the front, and copy everything
        return lambda x: x, lambda example: example[None]
    return lambda x: x.reshape(-1, block, *x.shape[1:]), lambda rows: rows
