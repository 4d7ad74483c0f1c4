"""Define standard workloads, on which metajax is compared with other implementations of meta-learning.

A workload is a model, tasks and an inner loop. The initial parameters and the tasks of a workload are made once. Each
implementation receives them as NumPy arrays.
"""

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """The settings of one meta-step, which adapts to each task by SGD and averages the gradients of the query losses.

    Attributes:
        model: `mlp` (two hidden layers of 40 units, ReLU, mean squared error), `conv4` (64 channels, stride 2),
            `conv4_pool` (32 channels, 2×2 max-pooling) or `resnet12`. All models except `mlp` use the cross-entropy
            loss and normalise by the statistics of the current batch.
        ways: Number of classes in a task; 1 for regression.
        shots: Number of support examples of each class.
        queries: Number of query examples of each class.
        tasks: Number of tasks in a meta-step.
        steps: Number of inner steps.
        learning_rate: Learning rate of the inner steps.
        side: Height and width of an image in pixels.
        channels: Number of channels of an image.
        learner: `maml`, `fomaml` (first order) or `reptile`.
        slow: Whether `choose` returns the workload only if the caller selects it by name.
    """

    model: Literal["mlp", "conv4", "conv4_pool", "resnet12"]
    ways: int
    shots: int
    queries: int
    tasks: int
    steps: int
    learning_rate: float
    side: int = 28
    channels: int = 1
    learner: Literal["maml", "fomaml", "reptile"] = "maml"
    slow: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape `(height, width, channels)` of an image."""
        return (self.side, self.side, self.channels)


# Workloads with several inner steps use a tenth of the published learning rates or less. With larger rates on images of
# noise, rounding errors grow with each step, and correct implementations give different results. The speed does not
# depend on the learning rate.
_SINUSOID = Workload("mlp", ways=1, shots=10, queries=10, tasks=25, steps=1, learning_rate=0.01)
_OMNIGLOT = Workload("conv4", ways=5, shots=1, queries=1, tasks=32, steps=1, learning_rate=0.4)
_MINI = Workload("conv4_pool", ways=5, shots=1, queries=15, tasks=4, steps=5, learning_rate=0.05, side=84, channels=3)


def _but(workload: Workload, **changes) -> Workload:
    return dataclasses.replace(workload, **changes)


WORKLOADS = {
    "sinusoid, 1 step": _SINUSOID,
    "sinusoid, 5 steps": _but(_SINUSOID, steps=5, learning_rate=0.001),
    "Omniglot 5w1s, 1 query, 1 step": _OMNIGLOT,
    "Omniglot 5w1s, 1 query, 5 steps": _but(_OMNIGLOT, steps=5, learning_rate=0.04),
    "Omniglot 5w1s, 15 queries, 1 step": _but(_OMNIGLOT, queries=15),
    "Omniglot 5w1s, 15 queries, 5 steps": _but(_OMNIGLOT, queries=15, steps=5, learning_rate=0.04),
    "Omniglot 20w1s, 1 query, 5 steps": _but(_OMNIGLOT, ways=20, tasks=16, steps=5, learning_rate=0.01),
    "Omniglot 5w1s, 15 queries, 5 steps, first order": _but(
        _OMNIGLOT, queries=15, steps=5, learning_rate=0.04, learner="fomaml"
    ),
    "Omniglot 5w1s, 15 queries, 5 steps, Reptile": _but(
        _OMNIGLOT, queries=15, steps=5, learning_rate=0.04, learner="reptile"
    ),
    "mini-ImageNet 5w1s": _MINI,
    "mini-ImageNet 5w5s": _but(_MINI, shots=5),
    "ResNet-12 84×84, 5w5s, 5 queries, 1 step": _but(
        _MINI, model="resnet12", shots=5, queries=5, tasks=1, steps=1, slow=True
    ),
}
"""The standard workloads by name. Images are random noise, of mini-ImageNet's size (84×84) or Omniglot's (28×28)."""


def choose(*texts: str) -> dict[str, Workload]:
    """Return the workloads whose names match one of `texts`. Default: all workloads that are not slow.

    A text that is the complete name of a workload matches only this workload. Any other text matches all names that
    contain it.

    >>> list(choose("sinusoid")), len(choose("Omniglot 5w1s, 15 queries, 5 steps"))
    (['sinusoid, 1 step', 'sinusoid, 5 steps'], 1)
    """

    def matches(name: str, workload: Workload) -> bool:
        if not texts:
            return not workload.slow
        # A complete name may be the beginning of another name, so compare complete names for equality.
        return any(name == text if text in WORKLOADS else text in name for text in texts)

    return {name: workload for name, workload in WORKLOADS.items() if matches(name, workload)}


def make_tasks(workload: Workload, seed: int = 0) -> dict[str, np.ndarray]:
    """Make the random tasks of one meta-step as NumPy arrays.

    Args:
        workload: The settings of the workload.
        seed: Seed of the random numbers.

    Returns:
        A dict with the keys `support_x`, `support_y`, `query_x` and `query_y`. Images are `float32[tasks, examples,
        height, width, channels]` in `[0, 1]`, labels `int64[tasks, examples]`. In regression `x` and `y` are
        `float32[tasks, examples, 1]`.
    """
    rng = np.random.default_rng(seed)
    tasks: dict[str, np.ndarray] = {}
    for part, each in (("support", workload.shots), ("query", workload.queries)):
        shape = (workload.tasks, workload.ways * each)
        if workload.model == "mlp":
            x = rng.uniform(-5, 5, (*shape, 1))
            tasks |= {f"{part}_x": x.astype(np.float32), f"{part}_y": np.sin(x).astype(np.float32)}
        else:
            x = rng.random((*shape, *workload.image_shape), np.float32)
            y = np.tile(np.arange(workload.ways), (workload.tasks, each)).astype(np.int64)
            tasks |= {f"{part}_x": x, f"{part}_y": y}
    return tasks
