"""CAVIA: the inner loop adapts only a context vector, which modulates a meta-learned network."""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.core.checks import check_count
from metajax.core.inner_loop import InnerLoop
from metajax.core.learner import BuildContext, MetaLearner, Modifier
from metajax.core.trees import Mask, map_changed, named, split
from metajax.core.types import LossFn
from metajax.errors import UserError
from metajax.learners.maml import maml


def context(size: int, shifts: Mask, rng: jax.Array) -> Modifier:
    r"""Adapt only a context vector. A meta-learned linear map of the vector is added to some leaves of the model.

    Adding such a map to a layer's bias is equivalent to appending the context to the layer's inputs. Adding such maps
    to the scales and offsets of normalisation modulates feature maps (FiLM).

    Args:
        size: Size of the context vector. The vector starts from 0 in every task.
        shifts: Mask of the leaves that the context shifts: a predicate `(path, leaf) -> bool` or a pytree of bools.
        rng: A random key for the initial values of the linear maps, which are normally distributed with standard
            deviation :math:`1/\sqrt{size}`.

    Returns:
        A modifier for `maml` with the name `context_maps`. It meta-learns an array `[size, ...]` for each shifted leaf,
        in the leaf's dtype.

    Raises:
        ValueError: If `size` is below 1. The modifier's `init` raises a `ValueError` if the mask selects no leaf.

    >>> modifier = context(4, named("bias"), jax.random.key(0))
    >>> jax.tree.map(jnp.shape, modifier.init({"bias": jnp.zeros(3), "kernel": jnp.zeros((2, 3))}))
    {'bias': (4, 3), 'kernel': None}
    """
    check_count("size", size)

    def init(params):
        leaves, structure = jax.tree.flatten(split(params, shifts, "shifts")[0])
        if not leaves:
            raise ValueError("the context must shift at least one parameter, but the mask `shifts` selects none")
        keys = jax.random.split(rng, len(leaves))
        return structure.unflatten(
            [
                jax.random.normal(key, (size, *jnp.shape(leaf)), jnp.result_type(leaf)) / size**0.5
                for key, leaf in zip(keys, leaves, strict=True)
            ]
        )

    def change(maps, adaptation, support):
        def to_model(vector, step):
            def shifted(leaf, map_):
                return leaf + jnp.tensordot(vector, map_, 1).astype(jnp.result_type(leaf))

            return adaptation.to_model(map_changed(shifted, adaptation.params, maps), step)

        dtype = jnp.result_type(*jax.tree.leaves(maps))
        return adaptation._replace(params=jnp.zeros(size, dtype), to_model=to_model)

    return Modifier("context_maps", change, init)


def cavia(
    loss_fn: LossFn, inner: InnerLoop, *modifiers: Modifier, shifts: Mask, rng: jax.Array, size: int = 5
) -> MetaLearner:
    r"""Make the learner of CAVIA (fast context adaptation): a small context vector adapts; tasks share the parameters.

    The inner step is :math:`\phi \leftarrow \phi - \alpha \nabla_\phi L(\phi, \theta)` from :math:`\phi = 0`. The
    meta-gradient is :math:`\nabla_\theta L_{query}(\phi_S, \theta)`.

    Args:
        loss_fn: The loss function, `(params, data, rng) -> (scalar, metrics)`.
        inner: The inner loop, from `inner_loop`. Inner learning rates may be much larger than for MAML.
        *modifiers: Further modifiers of the inner loop; see `maml`.
        shifts: Mask of the leaves that the context shifts; see `context`.
        rng: A random key for the initial values of the linear maps.
        size: Size of the context vector.

    Returns:
        A `MetaLearner` whose meta-parameters are `"init"`, the model's parameters, and `"context_maps"`, the linear
        maps of the context. `adapt` returns the model's parameters with the shifts added.

    Raises:
        ValueError: If `size` is below 1. The learner's `init` raises a `ValueError` if the mask selects no leaf.

    References:
        Zintgraf et al., `Fast Context Adaptation via Meta-Learning <https://arxiv.org/abs/1810.03642>`_, 2019.

    >>> import jax, optax, metajax as mj
    >>> loss = lambda p, target, rng: ((p["bias"] - target) ** 2 / 2, {})
    >>> learner = mj.cavia(
    ...     loss, mj.inner_loop(optax.sgd(1.0), 1), shifts=lambda path, leaf: True, rng=jax.random.key(0), size=1
    ... )
    >>> meta_params = {"init": {"bias": 1.0}, "context_maps": {"bias": jax.numpy.ones(1)}}
    >>> float(learner.adapt(meta_params, 0.0, jax.random.key(1)).params["bias"])  # the context went from 0 to −1
    0.0
    """
    return maml(loss_fn, inner, context(size, shifts, rng), *modifiers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAVIAConfig:
    """Settings of CAVIA."""

    size: int = 5
    """Size of the context vector."""
    shifts: tuple[str, ...] = ("bias",)
    """Names of the parameters that the context shifts. "layers/0/bias" is equivalent to a context among the network's
    inputs; "norms" modulates feature maps (FiLM if the normalisation has scales)."""

    def __post_init__(self):
        if not 1 <= self.size <= 100_000:
            raise UserError(f"learner.size must be from 1 to 100000, got {self.size}")

    def build(self, context: BuildContext) -> MetaLearner:
        """Make the meta-learner for the loss, the inner loop and the model in `context`."""
        return cavia(context.loss_fn, context.inner, shifts=named(*self.shifts), rng=context.rng, size=self.size)
