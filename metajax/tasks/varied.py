"""Sample episodes with random numbers of classes and examples, from one or more data sets, as in Meta-Dataset."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.core.checks import check_count
from metajax.core.types import Batch, ClassBank, Task, TaskSampler
from metajax.tasks.episodes import Transform, check_bank, draw_without_replacement, rotate, shuffle_first, to_float


class Domain(NamedTuple):
    """A data set to sample episodes from: its class bank, and the augmentation of its images.

    Attributes:
        bank: The images of each class, at least two per class; images are `uint8`, or floats in `[0, 1]`.
        rotations: Whether to add, for each class, three classes with its images rotated by 90°, 180° and 270°.
        transform: A function `(image, rng) -> image` for augmentation. Each image gets a separate random key.
    """

    bank: ClassBank
    rotations: bool = False
    transform: Transform | None = None


def varied_episodes(
    domains: Sequence[Domain],
    *,
    min_ways: int = 5,
    max_ways: int = 50,
    max_support: int = 500,
    max_support_per_class: int = 100,
    max_queries: int = 10,
) -> TaskSampler:
    r"""Return a sampler of episodes with a random number of classes and a random number of shots for each class.

    The arrays of all episodes have the same size.

    The sampler chooses a domain uniformly at random, and in it
    :math:`n \sim U[\text{min_ways}, \min(\text{max_ways}, \text{classes})]` classes :math:`c` of sizes :math:`N_c`.
    Each class has :math:`q = \min(\text{max_queries}, \min_c \lfloor N_c/2 \rfloor)` queries. The size of the support
    set is :math:`S = \min(\text{max_support}, \sum_c \lceil \beta \min(\text{max_support_per_class}, N_c - q) \rceil)`
    with :math:`\beta \sim U(0, 1]`. Class :math:`c` has :math:`\min(\lfloor R_c (S - n) \rfloor + 1, N_c - q)` of the
    support examples, where :math:`R_c \propto N_c e^{\alpha_c}` and :math:`\alpha_c \sim U[\log 0.5, \log 2)`.

    The arrays are padded with repeated examples of the episode. `mask` is `False` for these repetitions, so metajax's
    losses ignore them. The model must process each example independently of the others, or the padding would change its
    outputs: use `GroupNorm`, not `BatchNorm`. Inner-loop minibatches would include the padding, so use the whole
    support set in each step. An episode with `n` ways has the labels `[0, n)`. A loss made by
    `classification_loss(apply, varied_ways=True)` ignores the model's outputs from `n` on, so chance is `1/n`.

    Args:
        domains: The data sets. All images must have the same shape.
        min_ways: Smallest number of classes in an episode.
        max_ways: Largest number of classes in an episode.
        max_support: Largest number of support examples in an episode, over all classes.
        max_support_per_class: Largest contribution of one class to the size :math:`S` of the support set. :math:`S` is
            then divided among the classes at random, so a class may have more support examples than this number.
        max_queries: Largest number of query examples of each class.

    Returns:
        A sampler of tasks whose `support` has `max_support` examples and whose `query` has `max_ways * max_queries`
        examples, including the padding. `x` is `float32[examples, height, width, channels]` in `[0, 1]`, `y` is `int32`
        labels in `[0, n)`, and `mask` is `bool[examples]`. The padding comes last. `one_domain` restricts the sampler
        to one domain.

    Raises:
        ValueError: If `min_ways <= max_ways <= max_support` does not hold, if another size is below 1, if a domain has
            too few classes or examples, or if a class bank does not have the shapes and values that `ClassBank`
            describes.

    References:
        Triantafillou et al., `Meta-Dataset <https://arxiv.org/abs/1903.03096>`_, 2020, section 3.2. The paper's
        sampling of classes from hierarchies (ImageNet, Omniglot) is not implemented.

    >>> import jax, numpy as np, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((14, 8, 8, 1), np.uint8), np.array([0, 2, 6]), np.array([2, 4, 8]))
    >>> sampler = mj.varied_episodes([mj.tasks.Domain(bank)], min_ways=2, max_ways=3, max_support=9, max_queries=2)
    >>> task = sampler(jax.random.key(0))
    >>> task.support.x.shape, task.query.x.shape, task.query.mask.dtype
    ((9, 8, 8, 1), (6, 8, 8, 1), dtype('bool'))
    """
    _check(domains, min_ways, max_ways, max_support, max_support_per_class, max_queries)
    table = _table(domains)
    largest = min(int(table.counts.max()), max_support - min_ways + 1 + max_queries)
    sample = partial(
        _sample,
        min_ways=min_ways,
        max_ways=max_ways,
        max_support=max_support,
        max_support_per_class=max_support_per_class,
        max_queries=max_queries,
        largest=largest,
        turns=any(domain.rotations for domain in domains),
        transforms=tuple(domain.transform for domain in domains),
    )
    return jax.tree_util.Partial(sample, table)


def one_domain(sampler: TaskSampler, index: int) -> TaskSampler:
    """Return a sampler that samples episodes from one domain of a sampler made by `varied_episodes`.

    Both samplers share the images on the device.

    Args:
        sampler: A sampler made by `varied_episodes`.
        index: Index of the domain in `domains`.

    Returns:
        A sampler that differs from `sampler` only in the values of one array, so JAX does not compile a new program.

    Raises:
        TypeError: If the sampler was not made by `varied_episodes`.
        IndexError: If there is no domain with this index.
    """
    table = sampler.args[0] if isinstance(sampler, jax.tree_util.Partial) and sampler.args else None
    if not isinstance(table, _Table):
        raise TypeError("one_domain needs a sampler made by varied_episodes")
    if not 0 <= index < len(table.weights):
        raise IndexError(f"there are {len(table.weights)} domains, no domain {index}")
    weights = jnp.zeros_like(table.weights).at[index].set(1)
    return jax.tree_util.Partial(sampler.func, table._replace(weights=weights))


class _Table(NamedTuple):
    """The images and classes of all domains, concatenated. A rotated class counts as a class."""

    images: jax.Array
    starts: jax.Array  # [classes], index of the first image of each class
    counts: jax.Array  # [classes], number of images of each class
    turns: jax.Array  # [classes], rotation of each class in units of 90°
    first: jax.Array  # [domains], index of the first class of each domain
    classes: jax.Array  # [domains], number of classes of each domain
    weights: jax.Array  # [domains], unnormalised probability of each domain


def _table(domains: Sequence[Domain]) -> _Table:
    examples = np.array([len(domain.bank.images) for domain in domains])
    offsets = np.cumsum(examples) - examples
    sides = [4 if domain.rotations else 1 for domain in domains]
    classes = np.array([len(d.bank.counts) * n for d, n in zip(domains, sides, strict=True)])
    starts = [np.repeat(np.asarray(d.bank.starts) + at, n) for d, at, n in zip(domains, offsets, sides, strict=True)]
    counts = [np.repeat(np.asarray(d.bank.counts), n) for d, n in zip(domains, sides, strict=True)]
    turns = [np.tile(np.arange(n), len(d.bank.counts)) for d, n in zip(domains, sides, strict=True)]
    return _Table(
        images=_pooled([domain.bank.images for domain in domains]),
        starts=jnp.asarray(np.concatenate(starts), jnp.int32),
        counts=jnp.asarray(np.concatenate(counts), jnp.int32),
        turns=jnp.asarray(np.concatenate(turns), jnp.int32),
        first=jnp.asarray(np.cumsum(classes) - classes, jnp.int32),
        classes=jnp.asarray(classes, jnp.int32),
        weights=jnp.ones(len(domains)),
    )


def _pooled(images: Sequence[Any]) -> jax.Array:
    """Concatenate the images of all domains. If the dtypes differ, convert all images to floats in `[0, 1]` first."""
    if len({jnp.result_type(each) for each in images}) == 1:
        return jnp.asarray(np.concatenate(images))
    return jnp.concatenate([to_float(jnp.asarray(each)) for each in images])


def _sample(
    table: _Table,
    rng: jax.Array,
    *,
    min_ways: int,
    max_ways: int,
    max_support: int,
    max_support_per_class: int,
    max_queries: int,
    largest: int,
    turns: bool,
    transforms: tuple[Transform | None, ...],
) -> Task:
    domain_key, ways_key, class_key, shot_key, example_key, support_key, query_key = jax.random.split(rng, 7)
    domain = jax.random.categorical(domain_key, jnp.log(table.weights))
    classes = table.classes[domain]
    ways = jax.random.randint(ways_key, (), min_ways, jnp.minimum(max_ways, classes) + 1)
    chosen = table.first[domain] + draw_without_replacement(class_key, classes, ways, max_ways)
    counts = jnp.where(jnp.arange(max_ways) < ways, table.counts[chosen], 0)
    shots, queries = _sizes(shot_key, counts, max_support, max_support_per_class, max_queries)
    used = jnp.where(counts > 0, shots + queries, 0)
    examples = jax.vmap(draw_without_replacement, (0, 0, 0, None))(
        jax.random.split(example_key, max_ways), counts, used, largest
    )
    rows = table.starts[chosen][:, None] + examples

    def batch(key: jax.Array, size: int, sizes: jax.Array, skipped: jax.Array) -> Batch:
        order_key, transform_key = jax.random.split(key)
        ends = jnp.cumsum(sizes)
        total, places = ends[-1], jnp.arange(size)
        example = shuffle_first(order_key, total, size)[places % total]
        y = jnp.searchsorted(ends, example, side="right").astype(jnp.int32)
        x = table.images[rows[y, skipped[y] + example - (ends - sizes)[y]]]
        x = to_float(x)
        if turns:
            x = jax.vmap(rotate)(x, table.turns[chosen[y]])
        if any(transforms):
            keys = jax.random.split(transform_key, size)
            x = jax.lax.switch(domain, [_of_all(transform) for transform in transforms], x, keys)
        return Batch(x, y, places < total)

    return Task(
        batch(support_key, max_support, shots, jnp.zeros_like(shots)),
        batch(query_key, max_ways * max_queries, jnp.where(counts > 0, queries, 0), shots),
    )


def _sizes(
    rng: jax.Array, counts: jax.Array, max_support: int, max_support_per_class: int, max_queries: int
) -> tuple[jax.Array, jax.Array]:
    """Return the number of support examples of each class, `int32[max_ways]`, and the number of queries per class.

    `counts` has the number of images of each class. A count of 0 means that the entry is padding, not a class.
    """
    beta_key, alpha_key = jax.random.split(rng)
    real = counts > 0
    ways = real.sum()
    queries = jnp.minimum(max_queries, jnp.where(real, counts // 2, max_queries).min())
    left = jnp.where(real, counts - queries, 0)
    contributions = jnp.minimum(max_support_per_class, left)
    beta = 1 - jax.random.uniform(beta_key)
    support = jnp.minimum(max_support, jnp.ceil(beta * contributions).astype(jnp.int32).sum())
    alpha = jax.random.uniform(alpha_key, counts.shape, minval=math.log(0.5), maxval=math.log(2))
    weights = counts * jnp.exp(alpha)
    shots = jnp.floor(weights / weights.sum() * (support - ways)).astype(jnp.int32) + 1
    return jnp.where(real, jnp.minimum(shots, left), 0), queries


def _of_all(transform: Transform | None):
    return jax.vmap(transform) if transform else lambda x, keys: x


def _check(
    domains: Sequence[Domain],
    min_ways: int,
    max_ways: int,
    max_support: int,
    max_support_per_class: int,
    max_queries: int,
) -> None:
    positive = {"min_ways": min_ways, "max_support_per_class": max_support_per_class, "max_queries": max_queries}
    for name, value in positive.items():
        check_count(name, value)
    if not min_ways <= max_ways <= max_support:
        raise ValueError(
            "min_ways must be at most max_ways, and max_ways at most max_support, so that each class has an example; "
            f"got {min_ways}, {max_ways} and {max_support}"
        )
    if not domains:
        raise ValueError("varied episodes need at least one domain")
    for i, domain in enumerate(domains):
        check_bank(domain.bank, f"domain {i}")
    shapes = [np.shape(domain.bank.images)[1:] for domain in domains]
    for i, (domain, shape) in enumerate(zip(domains, shapes, strict=True)):
        counts = np.asarray(domain.bank.counts)
        classes = len(counts) * (4 if domain.rotations else 1)
        if shape != shapes[0]:
            raise ValueError(f"images of domain {i} have shape {shape}, but those of domain 0 {shapes[0]}")
        if classes < min_ways:
            raise ValueError(f"min_ways = {min_ways}, but domain {i} has only {classes} classes")
        if counts.min() < 2:
            raise ValueError(f"class {int(counts.argmin())} of domain {i} has fewer than 2 examples")
        if domain.rotations and shape[0] != shape[1]:
            raise ValueError(f"rotations need square images, got {shape[0]}×{shape[1]} in domain {i}")
