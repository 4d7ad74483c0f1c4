"""Sample N-way K-shot classification episodes from a class bank whose images are on the device."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from metajax.core.checks import check_count
from metajax.core.types import Batch, ClassBank, Task, TaskSampler

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""A function `(image, rng) -> image`. The input image is `float32[height, width, channels]` in `[0, 1]`."""


def episodes(
    bank: ClassBank,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: bool = False,
    transform: Transform | None = None,
) -> TaskSampler:
    """Return a sampler of few-shot classification episodes: random classes, and random examples of each class.

    Classes and examples are sampled without replacement, so an example occurs at most once in an episode.

    Args:
        bank: The images of each class, `uint8` or floats in `[0, 1]`. Classes may have different numbers of images.
        ways: Classes in an episode.
        shots: Support examples of each class.
        queries: Query examples of each class.
        rotations: Whether to add, for each class, three classes with its images rotated by 90°, 180° and 270°.
        transform: A function `(image, rng) -> image` for augmentation. Each image gets a separate random key.

    Returns:
        A sampler of tasks whose `x` is `float32[ways * shots or queries, height, width, channels]` in `[0, 1]`, and
        whose `y` is `int32` labels in `[0, ways)`. The assignment of labels to classes and the order of the examples
        are random in each task, so neither reveals the class.

    Raises:
        ValueError: If the bank has too few classes, if a class has too few examples, or if the bank's arrays do not
            have the shapes and values that `ClassBank` describes.

    References:
        Vinyals et al., `Matching Networks <https://arxiv.org/abs/1606.04080>`_, 2016. Rotated classes: Santoro et
        al., `Memory-Augmented Neural Networks <https://arxiv.org/abs/1605.06065>`_, 2016.

    >>> import jax, numpy as np, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((12, 8, 8, 1), np.uint8), np.array([0, 3, 7]), np.array([3, 4, 5]))
    >>> task = mj.episodes(bank, ways=3, shots=1, queries=2)(jax.random.key(0))
    >>> task.support.x.shape, sorted(task.query.y.tolist())
    ((3, 8, 8, 1), [0, 0, 1, 1, 2, 2])
    """
    check(bank, ways, shots, queries, rotations)
    on_device = ClassBank(*(jnp.asarray(leaf) for leaf in bank))
    return jax.tree_util.Partial(
        partial(_sample, ways=ways, shots=shots, queries=queries, rotations=rotations, transform=transform),
        on_device,
    )


def _sample(bank: ClassBank, rng: jax.Array, **options: Any) -> Task:
    episode = draw_episode(bank.starts, bank.counts, rng, **options)
    return episode.of(bank.images[episode.rows])


class Episode(NamedTuple):
    """A sampled episode before its images are read.

    Attributes:
        rows: Indices into the images of the bank, `int32[examples]`, support examples before query examples.
        of: `bank.images[rows] -> Task`, a function that makes the task from the images of the episode.
    """

    rows: jax.Array
    of: Callable[[jax.Array], Task]


def draw_episode(
    starts: jax.Array,
    counts: jax.Array,
    rng: jax.Array,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: bool,
    transform: Transform | None,
) -> Episode:
    """Sample an episode from a class bank with the fields `starts` and `counts`. For the options see `episodes`."""
    chex.assert_rank([starts, counts], 1, custom_message="starts and counts must be [classes]")
    chex.assert_equal_shape([starts, counts], custom_message="starts and counts must be [classes]")
    class_key, example_key, order_key, transform_key = jax.random.split(rng, 4)
    num_classes = counts.shape[0]
    chosen = draw_without_replacement(class_key, num_classes * (4 if rotations else 1), ways)
    classes, turns = (chosen // 4, chosen % 4) if rotations else (chosen, jnp.zeros_like(chosen))
    examples = jax.vmap(draw_without_replacement, (0, 0, None))(
        jax.random.split(example_key, ways), counts[classes], shots + queries
    )
    class_rows = starts[classes][:, None] + examples

    def part(columns: slice, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = class_rows[:, columns]
        order = jax.random.permutation(key, rows.size)
        return rows.reshape(-1)[order], jnp.repeat(jnp.arange(ways), rows.shape[1])[order]

    def batch(x: jax.Array, y: jax.Array, key: jax.Array) -> Batch:
        x = to_float(jnp.asarray(x))
        if rotations:
            x = jax.vmap(rotate)(x, turns[y])
        if transform is not None:
            x = jax.vmap(transform)(x, jax.random.split(key, x.shape[0]))
        return Batch(x, y)

    order_keys, transform_keys = jax.random.split(order_key), jax.random.split(transform_key)
    support, query = part(slice(None, shots), order_keys[0]), part(slice(shots, None), order_keys[1])
    rows, labels = (jnp.concatenate(both) for both in zip(support, query, strict=True))
    first = ways * shots

    def of(images: jax.Array) -> Task:
        chex.assert_shape(
            images, (rows.size, None, None, None), custom_message="images must be [rows, height, width, channels]"
        )
        return Task(
            batch(images[:first], labels[:first], transform_keys[0]),
            batch(images[first:], labels[first:], transform_keys[1]),
        )

    return Episode(rows, of)


def draw_without_replacement(
    rng: jax.Array, population: int | jax.Array, draws: int | jax.Array, most: int | None = None
) -> jax.Array:
    """Sample distinct integers from `[0, population)` in random order.

    `population` may be a traced value. Floyd's algorithm takes one step for each sample, so a large population costs no
    time. The samples are then shuffled.

    Args:
        rng: A random key.
        population: Number of integers to sample from; at least `draws`.
        draws: Number of samples. It may be a traced value if `most` is set.
        most: Length of the result, a Python integer. Only the first `draws` entries are samples. Default: `draws`.

    Returns:
        `int32[draws]`, or `int32[most]`.

    References:
        Bentley and Floyd, A Sample of Brilliance, Communications of the ACM 30 (9), 1987.

    >>> import jax
    >>> sorted(draw_without_replacement(jax.random.key(0), 4, 4).tolist())
    [0, 1, 2, 3]
    >>> sorted(draw_without_replacement(jax.random.key(0), 4, 4, most=9)[:4].tolist())
    [0, 1, 2, 3]
    """
    draw_key, order_key = jax.random.split(rng)
    size = int(draws) if most is None else most
    tops = jnp.asarray(population, jnp.int32) - draws + jnp.arange(size, dtype=jnp.int32)
    candidates = jax.random.randint(draw_key, (size,), 0, tops + 1)

    def pick(i, picked):
        taken = jnp.any((picked == candidates[i]) & (jnp.arange(size) < i))
        return picked.at[i].set(jnp.where(taken, tops[i], candidates[i]))

    picked = jax.lax.fori_loop(0, size, pick, jnp.zeros(size, jnp.int32))
    if most is None:
        return jax.random.permutation(order_key, picked)
    return picked[shuffle_first(order_key, draws, most)]


def shuffle_first(rng: jax.Array, count: int | jax.Array, size: int) -> jax.Array:
    """Return a random permutation of `[0, size)` in which the integers below `count` come first, `int32[size]`.

    `count` may be a traced value.
    """
    order = jax.random.permutation(rng, size)
    return order[jnp.argsort(order >= count, stable=True)]


def rotate(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotate a square image anticlockwise by `turns` times 90°, like `jnp.rot90`. `turns` may be a traced value."""
    chex.assert_rank(image, 3, custom_message="image must be [height, width, channels]")
    chex.assert_axis_dimension(image, 1, image.shape[0], custom_message="image must be square")
    transposed = image.transpose(1, 0, 2)
    return jnp.select(
        [turns == 0, turns == 1, turns == 2],
        [image, transposed[::-1], image[::-1, ::-1]],
        transposed[:, ::-1],
    )


def to_float(images: jax.Array) -> jax.Array:
    """Convert images, `uint8` or floats in `[0, 1]`, to `float32` in `[0, 1]`."""
    floats = images.astype(jnp.float32)
    return floats / 255 if images.dtype == jnp.uint8 else floats


def check_bank(bank: ClassBank, name: str = "the bank") -> None:
    """Raise a `ValueError` unless a bank's arrays have the shapes and values that `ClassBank` describes.

    Args:
        bank: The class bank. Images of a float type are read once, in blocks, to check their values.
        name: Name of the bank in error messages.
    """
    shape = np.shape(bank.images)
    dtype = bank.images.dtype if hasattr(bank.images, "dtype") else np.asarray(bank.images).dtype
    if len(shape) != 4:
        raise ValueError(f"images of {name} must be [examples, height, width, channels], got the shape {shape}")
    if dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images of {name} must be uint8 in [0, 255] or floats in [0, 1], got {dtype}")
    starts, counts = np.asarray(bank.starts), np.asarray(bank.counts)
    if not counts.size:
        raise ValueError(f"{name} has no classes")
    for field, array in (("starts", starts), ("counts", counts)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{field} of {name} must be integers [classes], got {array.dtype} of the shape {array.shape}"
            )
    if starts.shape != counts.shape or starts.min() < 0 or counts.min() < 0 or (starts + counts).max() > shape[0]:
        raise ValueError(
            f"{name} has {shape[0]} images, but its classes do not lie within them: starts has the first image of "
            "each class, counts has its number of images"
        )
    if dtype != np.uint8 and not isinstance(bank.images, Tracer):
        _check_values(bank.images, name)


def _check_values(images: Any, name: str) -> None:
    """Raise a `ValueError` unless all values of float images are finite and, up to rounding errors, in `[0, 1]`."""
    block = max(1, 2**22 // max(1, math.prod(images.shape[1:])))
    for begin in range(0, len(images) if math.prod(images.shape) else 0, block):
        part = images[begin : begin + block]
        with np.errstate(invalid="ignore"):  # NaN would cause a NumPy warning
            low, high = float(part.min()), float(part.max())
        if math.isfinite(low) and math.isfinite(high) and low >= -1e-6 and high <= 1 + 1e-6:
            continue
        finite = np.isfinite(np.asarray(part, np.float32)).all(axis=(1, 2, 3))
        if not finite.all():
            raise ValueError(f"image {begin + int(finite.argmin())} of {name} has NaN or infinite values")
        advice = "divide them by 255" if low >= 0 and high <= 255 else "scale them, and normalise in `transform`"
        raise ValueError(
            f"images of {name} are floats from {low:.4g} to {high:.4g}, and floats must be in [0, 1]: {advice}"
        )


def check(bank: ClassBank, ways: int, shots: int, queries: int, rotations: bool) -> None:
    """Raise a `ValueError` unless the class bank has enough classes and examples for `ways`, `shots` and `queries`."""
    for name, value in [("ways", ways), ("shots", shots), ("queries", queries)]:
        check_count(name, value)
    check_bank(bank)
    images, counts = np.shape(bank.images), np.asarray(bank.counts)
    classes = len(counts) * (4 if rotations else 1)
    if ways > classes:
        raise ValueError(f"ways = {ways}, but the bank has only {classes} class{'es' if classes != 1 else ''}")
    if shots + queries > counts.min():
        raise ValueError(
            f"shots + queries = {shots} + {queries} = {shots + queries}, "
            f"but class {int(counts.argmin())} of the bank has only {int(counts.min())} examples"
        )
    if rotations and images[1] != images[2]:
        raise ValueError(f"rotations need square images, got {images[1]}×{images[2]}")
