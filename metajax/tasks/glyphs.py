"""Glyphs: images of random characters, generated on the device, for image classification without a download.

A class is a character with one to four random strokes. An example imitates how one person draws the character: the
strokes are noisy, slanted, stretched and shifted, and the pen has a random width.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from metajax.core.checks import check_count
from metajax.core.losses import classification_loss
from metajax.core.types import Batch, Task, TaskSampler
from metajax.limits import LARGEST_IMAGE, MOST_EXAMPLES, in_range, whole
from metajax.tasks.config import Shots, Split, Tasks, with_ways

MAX_STROKES = 4
_POINTS_PER_STROKE = 12


def glyphs(*, ways: int, shots: int, queries: int, size: int = 28, drawer: float = 1.0) -> TaskSampler:
    """Return a sampler of few-shot classification tasks with new random characters in every task.

    Args:
        ways: Number of characters, the classes of a task.
        shots: Number of support images of each character.
        queries: Number of query images of each character.
        size: Side of an image, in pixels.
        drawer: Strength of the differences between the images of a character. 0 means identical images; 1 is about the
            variation of Omniglot.

    Returns:
        A sampler of tasks whose `x` is `float32[ways * shots or queries, size, size, 1]`, 1 for ink and 0 for
        background, and whose `y` is `int32` labels in `[0, ways)`. The order of the examples is random.

    Raises:
        ValueError: If `ways`, `shots`, `queries` or `size` is below 1.

    >>> import jax, metajax as mj
    >>> shapes = jax.eval_shape(mj.glyphs(ways=5, shots=1, queries=2), jax.random.key(0))
    >>> shapes.support.x.shape, shapes.query.y.shape
    ((5, 28, 28, 1), (10,))
    """
    for name, value in [("ways", ways), ("shots", shots), ("queries", queries), ("size", size)]:
        check_count(name, value)

    def sample(rng: jax.Array) -> Task:
        class_key, support_key, query_key = jax.random.split(rng, 3)
        characters = jax.vmap(draw_character)(jax.random.split(class_key, ways))

        def batch(key: jax.Array, examples: int) -> Batch:
            order_key, drawer_key = jax.random.split(key)
            labels = jax.random.permutation(order_key, jnp.repeat(jnp.arange(ways), examples))
            characters_of_examples = jax.tree.map(lambda leaf: leaf[labels], characters)
            keys = jax.random.split(drawer_key, labels.size)
            x = jax.vmap(lambda c, k: render(c, k, size=size, drawer=drawer))(characters_of_examples, keys)
            return Batch(x[..., None], labels)

        return Task(batch(support_key, shots), batch(query_key, queries))

    return sample


def draw_character(rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sample a random character.

    Args:
        rng: A random key.

    Returns:
        `(control, present)`. Each stroke is a cubic Bézier curve with four control points `(x, y)`, so `control` is
        `float32[MAX_STROKES, 4, 2]`. `present`, `bool[MAX_STROKES]`, is the mask of the strokes that the character has.
        The larger side of the character spans `[-0.9, 0.9]`.
    """
    count_key, start_key, step_key, bend_key, join_key, where_key = jax.random.split(rng, 6)
    count = jax.random.choice(count_key, jnp.arange(1, MAX_STROKES + 1), p=jnp.array([0.15, 0.35, 0.3, 0.2]))
    start = jax.random.uniform(start_key, (MAX_STROKES, 2), minval=-0.8, maxval=0.8)
    end = jax.random.uniform(step_key, (MAX_STROKES, 2), minval=-0.9, maxval=0.9)
    # Some strokes begin on the previous stroke, as in letters.
    joins = jax.random.bernoulli(join_key, 0.5, (MAX_STROKES, 1))
    along = jax.random.uniform(where_key, (MAX_STROKES, 1))
    before = jnp.roll(start + along * (end - start), 1, axis=0)
    start = jnp.where(joins & (jnp.arange(MAX_STROKES) > 0)[:, None], before, start)
    # Two of the four strokes are nearly straight, and two bend strongly.
    bend = jax.random.normal(bend_key, (MAX_STROKES, 2, 2)) * jnp.array([0.1, 0.7, 0.15, 0.6])[:, None, None]
    thirds = jnp.array([1 / 3, 2 / 3])[None, :, None]
    middle = start[:, None] + thirds * (end - start)[:, None] + bend
    control = jnp.concatenate([start[:, None], middle, end[:, None]], axis=1)
    present = jnp.arange(MAX_STROKES) < count
    # Scale every character to fill the image, because people draw characters large enough to fill the page.
    curve = _curve(control).reshape(-1, 2)
    visible = jnp.repeat(present, _POINTS_PER_STROKE)[:, None]
    low, high = (reduce(curve, 0, where=visible, initial=far) for reduce, far in ((jnp.min, 9.0), (jnp.max, -9.0)))
    control = (control - (low + high) / 2) * (1.8 / jnp.maximum(high - low, 0.3).max())
    return control, present


def render(character: tuple[jax.Array, jax.Array], rng: jax.Array, *, size: int = 28, drawer: float = 1.0) -> jax.Array:
    """Render a character as one person might draw it.

    Args:
        character: The strokes, from `draw_character`.
        rng: A random key for the noise, slant, stretch, shift and pen width.
        size: Side of the image, in pixels.
        drawer: Strength of the differences between the images of a character; see `glyphs`.

    Returns:
        `float32[size, size]`, 1 for ink and 0 for background.
    """
    control, present = character
    hand_key, linear_key, shift_key, pen_key = jax.random.split(rng, 4)
    control = control + drawer * 0.08 * jax.random.normal(hand_key, control.shape)
    linear = jnp.eye(2) + drawer * 0.13 * jax.random.normal(linear_key, (2, 2))
    shift = drawer * 0.1 * jax.random.normal(shift_key, (2,))

    points = _curve(control) @ linear.T + shift

    # Coordinates in [-1, 1] cover the central four fifths of the image; the rest is margin.
    centre = (size - 1) / 2
    points = centre + points * (0.4 * size)
    a, b = points[:, :-1].reshape(-1, 2), points[:, 1:].reshape(-1, 2)
    visible = jnp.repeat(present, _POINTS_PER_STROKE - 1)
    a = jnp.where(visible[:, None], a, -1e3)  # place absent strokes far outside the image
    b = jnp.where(visible[:, None], b, -1e3)
    radius = size / 28 * (0.7 + drawer * 0.15 * jax.random.uniform(pen_key, minval=-1.0, maxval=1.0))
    return jnp.clip(radius + 0.5 - jnp.sqrt(_squared_distance(a, b, size)), 0, 1)


def _curve(control: jax.Array) -> jax.Array:
    """Map control points `[strokes, 4, 2]` to points along the cubic Bézier curves, `[strokes, points, 2]`."""
    t = jnp.linspace(0, 1, _POINTS_PER_STROKE)[:, None]
    bernstein = jnp.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return bernstein @ control


def _squared_distance(a: jax.Array, b: jax.Array, size: int) -> jax.Array:
    """Return the squared distance from each pixel to the nearest line segment, `[size, size]`.

    Segment `i` goes from `a[i]` to `b[i]`. Both arrays are `[segments, 2]`, points `(x, y)` in pixels.
    """
    ys, xs = jnp.meshgrid(jnp.arange(size, dtype=a.dtype), jnp.arange(size, dtype=a.dtype), indexing="ij")
    dx, dy = (b - a)[:, 0], (b - a)[:, 1]
    px, py = xs[..., None] - a[:, 0], ys[..., None] - a[:, 1]
    along = jnp.clip((px * dx + py * dy) / jnp.maximum(dx * dx + dy * dy, 1e-6), 0, 1)
    return ((px - along * dx) ** 2 + (py - along * dy) ** 2).min(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlyphsConfig:
    """Randomly generated characters. There is no limit to the number of classes."""

    ways: int = 5
    """Number of classes (characters) in a task."""
    train: Shots = Shots(shots=1, queries=1)
    test: Shots = Shots()
    size: int = 28
    """Height and width of the images, in pixels."""
    drawer: float = 1.0
    """Strength of the differences between drawers: 0 for none, 1 for about those of Omniglot."""

    def __post_init__(self):
        whole("task", 2, MOST_EXAMPLES, ways=self.ways)
        whole("task", 1, LARGEST_IMAGE, size=self.size)
        in_range("task", 0, 100, drawer=self.drawer)

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; see `TaskConfig.tasks`."""

        def split(sizes: Shots) -> Split:
            sampler = glyphs(
                ways=sizes.ways or self.ways,
                shots=sizes.shots,
                queries=sizes.queries,
                size=self.size,
                drawer=self.drawer,
            )
            return Split(sampler)

        test = split(self.test)
        splits = {"train": split(self.train), "validation": test, "test": test}
        return with_ways(Tasks(splits, self.ways, classification_loss), self.train, self.test)
