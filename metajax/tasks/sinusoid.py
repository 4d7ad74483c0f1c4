"""Sample sinusoid regression tasks, the smallest benchmark of meta-learning."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp

from metajax.core.checks import check_count
from metajax.core.losses import regression_loss
from metajax.core.types import Batch, Task, TaskSampler
from metajax.errors import UserError
from metajax.tasks.config import Shots, Split, Tasks


def sinusoid(
    shots: int = 10,
    queries: int = 10,
    *,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, math.pi),
    x_range: tuple[float, float] = (-5.0, 5.0),
    oracle: bool = False,
) -> TaskSampler:
    """Return a sampler of tasks `y = amplitude · sin(x − phase)`, with uniform random `amplitude`, `phase` and `x`.

    Args:
        shots: Number of support points.
        queries: Number of query points.
        amplitude: Lowest and highest amplitude.
        phase: Lowest and highest phase, in radians.
        x_range: Lowest and highest input, in radians.
        oracle: Whether to append amplitude and phase to the inputs. All tasks are then the same regression problem. The
            error of a model trained on it is a lower bound for learners that infer amplitude and phase from the
            support set.

    Returns:
        A sampler of tasks whose `x` and `y` are `float32[points, 1]`; `x` is `float32[points, 3]` if `oracle` is set.

    Raises:
        ValueError: If `shots` or `queries` is below 1.

    References:
        Finn et al., `Model-Agnostic Meta-Learning <https://arxiv.org/abs/1703.03400>`_, 2017, section 5.1.

    >>> import jax, metajax as mj
    >>> task = mj.sinusoid(shots=5, queries=7)(jax.random.key(0))
    >>> task.support.x.shape, task.query.y.shape
    ((5, 1), (7, 1))
    """
    for name, value in [("shots", shots), ("queries", queries)]:
        check_count(name, value)

    def sample(rng: jax.Array) -> Task:
        amplitude_key, phase_key, x_key = jax.random.split(rng, 3)
        a = jax.random.uniform(amplitude_key, minval=amplitude[0], maxval=amplitude[1])
        b = jax.random.uniform(phase_key, minval=phase[0], maxval=phase[1])
        x = jax.random.uniform(x_key, (shots + queries, 1), minval=x_range[0], maxval=x_range[1])
        y = a * jnp.sin(x - b)
        if oracle:
            x = jnp.concatenate([x, jnp.broadcast_to(jnp.stack([a, b]), (shots + queries, 2))], axis=1)
        return Task(Batch(x[:shots], y[:shots]), Batch(x[shots:], y[shots:]))

    return sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidConfig:
    """Regression tasks: sinusoids with random amplitude and phase."""

    train: Shots = Shots(shots=10, queries=10)
    test: Shots = Shots(shots=5, queries=100)
    oracle: bool = False
    """Give the model the amplitude and phase of the task as inputs. Its error is then a lower bound for adaptation."""

    def __post_init__(self):
        if self.train.ways or self.test.ways:
            raise UserError("task: sinusoids have no classes, so train and test can have no ways")

    def tasks(self, data_dir: Path | None) -> Tasks:
        """Make the task samplers of all splits; see `TaskConfig.tasks`."""
        test = Split(sinusoid(self.test.shots, self.test.queries, oracle=self.oracle))
        train = Split(sinusoid(self.train.shots, self.train.queries, oracle=self.oracle))
        return Tasks({"train": train, "validation": test, "test": test}, 1, regression_loss)
