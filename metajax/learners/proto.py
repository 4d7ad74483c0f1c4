"""Prototypical networks, and Proto-MAML, whose head starts from the prototypes (mean features) of the classes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from metajax.core.functional import features
from metajax.core.inner_loop import InnerLoop, check_inner_loop, inner_loop
from metajax.core.learner import BuildContext, MetaLearner, Modifier
from metajax.core.trees import map_with_names, names
from metajax.core.types import ApplyFn, Batch, LossFn
from metajax.learners.maml import maml


def prototypes(embed: ApplyFn, head: str = "head") -> Modifier:
    r"""Initialise the head, a linear layer, from the prototypes: the mean features of each class of the support set.

    The kernel starts as :math:`2 c_k` and the bias as :math:`-\lVert c_k \rVert^2`, so that the logits are the negative
    squared distances to the prototypes, up to a constant. The meta-gradient also flows through the prototypes. The
    values of the model's head are not used, only their shapes.

    The features of the support set are computed in one batch, without the query set. So batch normalisation uses the
    statistics of the support set, in training and in evaluation, as in the other learners.

    Args:
        embed: `(params, x, rng) -> features [examples, size]`, the inputs of the head, from `metajax.features`.
        head: Path of the head among the parameters, with leaves `kernel [size, ways]` and `bias [ways]`.

    Returns:
        A modifier for `maml` with the name `prototypes` and without meta-parameters. The support set must be a `Batch`.
        The modifier raises a `ValueError` if the head or the labels do not fit, and an `AssertionError` if `embed` does
        not return one row of features for each label.

    >>> prototypes(lambda params, x, rng: x).name
    'prototypes'
    """

    def change(learned, adaptation, support: Batch):
        params = adaptation.params
        x = embed(adaptation.to_model(params, 0), support.x, None)
        leaves = dict(zip(names(params), jax.tree.leaves(params), strict=True))
        if f"{head}/kernel" not in leaves or f"{head}/bias" not in leaves:
            raise ValueError(
                f"there is no linear layer {head!r} with kernel and bias among the adapting parameters: "
                f"{', '.join(leaves)}"
            )
        if jnp.ndim(support.y) != 1 or not jnp.issubdtype(jnp.result_type(support.y), jnp.integer):
            shape, dtype = jnp.shape(support.y), jnp.result_type(support.y)
            raise ValueError(f"prototypes need integer labels [examples], got {dtype}{list(shape)}")
        chex.assert_shape(x, (len(support.y), None), custom_message="embed must return features [examples, size]")
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # sums in bfloat16 cannot count beyond 256
        members = jax.nn.one_hot(support.y, leaves[f"{head}/bias"].shape[0], dtype=x.dtype)
        if support.mask is not None:
            members = members * support.mask[:, None].astype(x.dtype)
        centres = (members.T @ x) / jnp.maximum(members.sum(0), 1)[:, None]
        kernel = leaves[f"{head}/kernel"]
        if centres.T.shape != kernel.shape:
            raise ValueError(f"features {x.shape} do not fit {head}/kernel {kernel.shape}: embed is for another layer")
        start = {f"{head}/kernel": 2 * centres.T, f"{head}/bias": -jnp.square(centres).sum(-1)}

        def started(path, leaf):
            return start[path].astype(leaf.dtype) if path in start else leaf

        return adaptation._replace(params=map_with_names(started, params))

    return Modifier("prototypes", change)


def proto_maml(
    loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier, embed: ApplyFn, head: str = "head"
) -> MetaLearner:
    r"""Make the learner of Proto-MAML: MAML whose head starts from the prototypes of each task.

    The inner loop starts from :math:`(\theta_{body}, 2 c_k, -\lVert c_k \rVert^2)` and adapts all parameters.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`, a cross-entropy of logits.
        inner: The inner loop, from `inner_loop`.
        *modifiers: Further modifiers of the inner loop; see `maml`.
        embed: The function that computes the inputs of the head; see `prototypes`.
        head: Path of the head, a linear layer, among the parameters.

    Returns:
        A `MetaLearner` whose meta-parameters are the initialisation.

    References:
        Triantafillou et al., `Meta-Dataset <https://arxiv.org/abs/1903.03096>`_, 2020, section 3.

    >>> import optax, metajax as mj
    >>> from flax import nnx
    >>> apply, params = mj.functional(mj.models.Conv4(5, rngs=nnx.Rngs(0)))
    >>> inner = mj.inner_loop(optax.sgd(0.1), steps=3)
    >>> learner = mj.proto_maml(mj.classification_loss(apply), inner, embed=mj.features(apply))
    """
    return maml(loss_fn, inner, prototypes(embed, head), *modifiers)


def prototypical_network(
    loss_fn: LossFn, *, embed: ApplyFn, head: str = "head", inner: InnerLoop | None = None
) -> MetaLearner:
    r"""Make the learner of prototypical networks, which classify by the nearest class mean in a learned feature space.

    Training uses no inner steps. The meta-gradient is the gradient of the query loss of
    :math:`p(y = k \mid x) \propto \exp(-\lVert f_\theta(x) - c_k \rVert^2)`. Inner steps in evaluation fine-tune the
    network on the support set.

    With batch normalisation the authors' code differs from metajax. In training that code normalises the support and
    query sets in one batch, and in evaluation it uses running statistics. metajax normalises the support set and the
    query set separately, each by its own statistics, as in the other learners.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`, a cross-entropy of logits.
        embed: The function that computes the inputs of the head; see `prototypes`.
        head: Path of the head, a linear layer, among the parameters.
        inner: An inner loop of 0 steps. Its optimiser fine-tunes the network in evaluation. Default: SGD with a
            learning rate of 0.01.

    Returns:
        A `MetaLearner` whose meta-parameters are the model's parameters.

    Raises:
        ValueError: If `inner` has steps.

    References:
        Snell et al., `Prototypical Networks for Few-shot Learning <https://arxiv.org/abs/1703.05175>`_, 2017.

    >>> import metajax as mj
    >>> from flax import nnx
    >>> apply, params = mj.functional(mj.models.Conv4(5, rngs=nnx.Rngs(0)))
    >>> learner = mj.prototypical_network(mj.classification_loss(apply), embed=mj.features(apply))
    """
    inner = inner_loop(optax.sgd(0.01), 0) if inner is None else inner
    check_inner_loop(inner)
    if inner.steps:
        raise ValueError(f"prototypical networks train without inner steps: set inner.steps to 0, not {inner.steps}")
    return maml(loss_fn, inner, prototypes(embed, head))


@dataclasses.dataclass(frozen=True)
class ProtoMAMLConfig:
    """Settings of Proto-MAML."""

    head: str = "head"
    """Path of the head, a linear layer, among the parameters."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        embed = features(context.apply, self.head)
        return proto_maml(context.loss_fn, context.inner, embed=embed, head=self.head)


@dataclasses.dataclass(frozen=True)
class PrototypicalNetworkConfig:
    """Settings of prototypical networks. `inner.steps` must be 0; inner steps in evaluation fine-tune the network."""

    head: str = "head"
    """Path of the head, a linear layer, among the parameters."""

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        embed = features(context.apply, self.head)
        return prototypical_network(context.loss_fn, embed=embed, head=self.head, inner=context.inner)
