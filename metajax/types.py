"""The nouns that everything else is written in: batches, tasks, losses, meta-learners."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any
Params = PyTree
"""What a model computes with: any pytree of arrays."""
MetaParams = PyTree
"""What is meta-learned: the initialisation, and whatever else a learner learns across tasks."""
Metrics = dict[str, jax.Array]
"""Scalars by name."""


class Batch(NamedTuple):
    """Examples along a leading axis.

    Attributes:
        x: Inputs, `[examples, ...]`.
        y: Targets, `[examples, ...]`; integer labels `[examples]` in classification.
        mask: Weight of each example in the loss, `[examples]`; `None` counts every example once. An
            example of weight 0 is still seen by normalisation over the batch.
    """

    x: PyTree
    y: PyTree
    mask: jax.Array | None = None


class Task(NamedTuple):
    """One learning problem: adapt on `support`, be judged on `query`. Each is whatever the loss takes."""

    support: PyTree
    query: PyTree


class ApplyFn(Protocol):
    """A model as a pure function: parameters, inputs `[examples, ...]`, a key for its noise."""

    def __call__(self, params: Params, x: PyTree, rng: jax.Array | None = None, /) -> PyTree:  # noqa: D102
        ...


LossFn = Callable[[Params, PyTree, jax.Array], tuple[jax.Array, Metrics]]
"""`(params, data, rng) -> (scalar loss, metrics)`."""

TaskSampler = Callable[[jax.Array], Task]
"""`rng -> task`: pure and traceable, so that sampling is compiled into the training step."""


class ClassBank(NamedTuple):
    """Images of many classes in one array, the examples of a class side by side.

    Class `c` owns `images[starts[c] : starts[c] + counts[c]]`.

    Samplers give a model images as `float32` in `[0, 1]`: they divide `uint8` images by 255 and take floats as they
    are. They raise a `ValueError` for images of another type, and for floats outside `[0, 1]`, NaN or infinite.

    Attributes:
        images: `uint8[examples, height, width, channels]` in `[0, 255]`, or floats in `[0, 1]`.
        starts: `int32[classes]`, the first example of each class.
        counts: `int32[classes]`, how many examples each class has.
    """

    images: Any
    starts: Any
    counts: Any
