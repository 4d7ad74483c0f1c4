"""ANIL: only the head adapts in the inner loop, on features that are meta-learned."""

import dataclasses

from metajax.inner import InnerLoop
from metajax.learners._interface import Ingredients, MetaLearner, Part
from metajax.learners.maml import maml
from metajax.partition import Chooses, merge, named, opposite, split
from metajax.types import LossFn


def only(adapts: Chooses, setting: str = "what adapts") -> Part:
    """Let only some leaves adapt in the inner loop; the others are meta-learned and stay put there.

    The inner gradient by the others is not computed at all.

    Args:
        adapts: The leaves that adapt, as a predicate `(path, leaf) -> bool` or a pytree of bools.
        setting: What an error calls them.

    Returns:
        A part for `maml`, of the name `only`, that meta-learns nothing more.

    >>> only(named("head")).name
    'only'
    """

    def change(learned, adaptation, support):
        fast, slow = split(adaptation.params, adapts, setting)
        return adaptation._replace(params=fast, view=lambda fast, step: adaptation.view(merge(fast, slow), step))

    return Part("only", change)


def _called(head: str) -> str:
    return f"the name of the head (head={head!r})"


def anil(loss_fn: LossFn, inner: InnerLoop, *parts: Part, head: str = "head") -> MetaLearner:
    r"""Almost No Inner Loop: MAML whose inner loop adapts the head alone.

    With :math:`\theta = (\theta_{body}, \theta_{head})` the inner step is
    :math:`\theta_{head} \leftarrow \theta_{head} - \alpha \nabla_{\theta_{head}} L(\theta_{body}, \theta_{head})`; the
    meta-gradient is by both.

    Args:
        loss_fn: `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *parts: Parts to combine it with; see `maml`.
        head: Name of the head among the parameters.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation.

    References:
        Raghu et al., `Rapid Learning or Feature Reuse? <https://arxiv.org/abs/1909.09157>`_, 2020.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p["body"] + p["head"] - target) ** 2 / 2, {})
    >>> learner = mj.anil(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> adapted = learner.adapt({"body": 1.0, "head": 1.0}, 0.0, jax.random.key(0)).params
    >>> float(adapted["body"]), float(adapted["head"])
    (1.0, 0.0)
    """
    return maml(loss_fn, inner, only(named(head), _called(head)), *parts)


def boil(loss_fn: LossFn, inner: InnerLoop, *parts: Part, head: str = "head") -> MetaLearner:
    r"""Body Only update in Inner Loop: MAML whose inner loop adapts all but the head.

    The inner step is :math:`\theta_{body} \leftarrow \theta_{body} - \alpha \nabla_{\theta_{body}} L`; so features must
    change with the task, where ANIL's are reused.

    Args:
        loss_fn: `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *parts: Parts to combine it with; see `maml`.
        head: Name of the head among the parameters.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation.

    References:
        Oh et al., `BOIL: Towards Representation Change for Few-shot Learning
        <https://arxiv.org/abs/2008.08882>`_, 2021.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p["body"] + p["head"] - target) ** 2 / 2, {})
    >>> learner = mj.boil(loss, mj.inner_loop(optax.sgd(0.5), steps=1))
    >>> adapted = learner.adapt({"body": 1.0, "head": 1.0}, 0.0, jax.random.key(0)).params
    >>> float(adapted["body"]), float(adapted["head"])
    (0.0, 1.0)
    """
    return maml(loss_fn, inner, only(opposite(named(head)), _called(head)), *parts)


@dataclasses.dataclass(frozen=True)
class ANIL:
    """ANIL as settings."""

    head: str = "head"
    """Name of the head among the parameters."""

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        return anil(given.loss_fn, given.inner, head=self.head)


@dataclasses.dataclass(frozen=True)
class BOIL:
    """BOIL as settings."""

    head: str = "head"
    """Name of the head among the parameters."""

    def build(self, given: Ingredients) -> MetaLearner:
        """Make the learner."""
        return boil(given.loss_fn, given.inner, head=self.head)
