"""ANIL and BOIL. ANIL adapts only the head in the inner loop; BOIL adapts all parameters except the head."""

import dataclasses

from metajax.core.inner_loop import InnerLoop
from metajax.core.learner import BuildContext, MetaLearner, Modifier
from metajax.core.trees import Mask, invert, merge, named, split
from metajax.core.types import LossFn
from metajax.learners.maml import maml


def only(adapts: Mask, setting: str = "the mask of adapting parameters") -> Modifier:
    """Adapt only the leaves that a mask selects; the inner loop does not change the other leaves.

    The other leaves are still meta-learned. The inner gradient with respect to them is not computed.

    Args:
        adapts: Mask of the leaves that adapt: a predicate `(path, leaf) -> bool` or a pytree of bools.
        setting: Name of the mask in error messages.

    Returns:
        A modifier for `maml` with the name `only` and without meta-parameters.

    >>> only(named("head")).name
    'only'
    """

    def change(learned, adaptation, support):
        fast, slow = split(adaptation.params, adapts, setting)
        return adaptation._replace(
            params=fast, to_model=lambda fast, step: adaptation.to_model(merge(fast, slow), step)
        )

    return Modifier("only", change)


def _head_setting(head: str) -> str:
    return f"the name of the head (head={head!r})"


def anil(loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier, head: str = "head") -> MetaLearner:
    r"""Make the learner of Almost No Inner Loop: MAML whose inner loop adapts only the head.

    With :math:`\theta = (\theta_{body}, \theta_{head})` the inner step is
    :math:`\theta_{head} \leftarrow \theta_{head} - \alpha \nabla_{\theta_{head}} L(\theta_{body}, \theta_{head})`; the
    meta-gradient is taken with respect to all of :math:`\theta`.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *modifiers: Further modifiers of the inner loop; see `maml`.
        head: Name of the head, the last layer, in the paths of the parameters.

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
    return maml(loss_fn, inner, only(named(head), _head_setting(head)), *modifiers)


def boil(loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier, head: str = "head") -> MetaLearner:
    r"""Make the learner of Body Only update in Inner Loop: MAML whose inner loop adapts all parameters but the head.

    The inner step is :math:`\theta_{body} \leftarrow \theta_{body} - \alpha \nabla_{\theta_{body}} L`. So the features
    must change for each task, whereas ANIL reuses the same features.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`.
        *modifiers: Further modifiers of the inner loop; see `maml`.
        head: Name of the head, the last layer, in the paths of the parameters.

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
    return maml(loss_fn, inner, only(invert(named(head)), _head_setting(head)), *modifiers)


@dataclasses.dataclass(frozen=True)
class ANILConfig:
    """Settings of ANIL."""

    head: str = "head"
    """Name of the head, the last layer, in the paths of the parameters."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return anil(context.loss_fn, context.inner, head=self.head)


@dataclasses.dataclass(frozen=True)
class BOILConfig:
    """Settings of BOIL."""

    head: str = "head"
    """Name of the head, the last layer, in the paths of the parameters."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return boil(context.loss_fn, context.inner, head=self.head)
