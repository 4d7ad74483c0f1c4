"""The common types of metajax: parameters, batches, tasks, losses, models, samplers and class banks."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any
Params = PyTree
"""The parameters of a model: any pytree of arrays."""
MetaParams = PyTree
"""The meta-parameters: the initialisation, and all other values that a learner meta-learns."""
Metrics = dict[str, jax.Array]
"""Metrics: scalars by the name of the metric."""


class Batch(NamedTuple):
    """Examples along a leading axis.

    Attributes:
        x: Inputs, `[examples, ...]`.
        y: Targets, `[examples, ...]`; integer labels `[examples]` in classification.
        mask: Weight of each example in the loss, `[examples]`; `None` means weight 1 for every example. Batch
            normalisation ignores the weights: an example of weight 0 still contributes to its statistics.
    """

    x: PyTree
    y: PyTree
    mask: jax.Array | None = None


class Task(NamedTuple):
    """One learning problem: a learner adapts to `support`, and its predictions are evaluated on `query`.

    The loss receives `support` or `query` as its argument `data`. Both may be a `Batch`.
    """

    support: PyTree
    query: PyTree


class ApplyFn(Protocol):
    """A model as a pure function of its parameters, inputs `[examples, ...]`, and a key for dropout and other noise."""

    def __call__(self, params: Params, x: PyTree, rng: jax.Array | None = None, /) -> PyTree:  # noqa: D102
        ...


LossFn = Callable[[Params, PyTree, jax.Array], tuple[jax.Array, Metrics]]
"""`(params, data, rng) -> (scalar loss, metrics)`."""

TaskSampler = Callable[[jax.Array], Task]
"""`rng -> task`: a pure, traceable function, so that sampling is compiled into the training step."""


class StreamedSampler(NamedTuple):
    """A task sampler for examples that stay on the host. It has a part for the host and a part for the device.

    Attributes:
        source: `[all examples, ...]`, an array or a memory map on the host.
        rows: `rng -> int32[examples]`, the indices into `source` of the examples of a task; a traceable function.
        sample: `(rng, examples) -> Task`, a traceable function. `examples` are `source[rows(rng)]`, `[examples, ...]`.
    """

    source: Any
    rows: Callable[[jax.Array], jax.Array]
    sample: Callable[[jax.Array, Any], Task]


class ClassBank(NamedTuple):
    """Images of many classes in one array. The examples of a class are consecutive.

    Class `c` has the images `images[starts[c] : starts[c] + counts[c]]`.

    Samplers convert images to `float32` in `[0, 1]`: they divide `uint8` images by 255 and do not scale floats. They
    raise a `ValueError` for images of another dtype, for floats outside `[0, 1]`, and for NaN or infinite values.

    Attributes:
        images: `uint8[examples, height, width, channels]` in `[0, 255]`, or floats in `[0, 1]`.
        starts: `int32[classes]`, the index of the first example of each class.
        counts: `int32[classes]`, the number of examples of each class.
    """

    images: Any
    starts: Any
    counts: Any
