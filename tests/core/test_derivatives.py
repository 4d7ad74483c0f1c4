"""Derivatives of every learner's `adapt` and `gradient`, reverse and forward, against plain reverse mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from marks import slow_except

import metajax as mj
from metajax.core.trees import named
from metajax.learners import diagonal_preconditioner, rates_per_layer_and_step
from metajax.learners.scratch import scratch

pytestmark = pytest.mark.usefixtures("compiled_fast")

KEY = jax.random.key(0)
LEARNERS = {
    "maml": mj.maml,
    "maml, multi-step": lambda loss, inner: mj.maml(loss, inner, step_weights=lambda done: jnp.array([0.3, 0.7])),
    "reptile": mj.reptile,
    "foml": mj.foml,
    "scratch": scratch,
    "anil": mj.anil,
    "boil": mj.boil,
    "meta_sgd": mj.meta_sgd,
    "preconditioner": lambda loss, inner: mj.maml(loss, inner, diagonal_preconditioner()),
    "rates per step": lambda loss, inner: mj.maml(loss, inner, rates_per_layer_and_step(2)),
    "maml_plus_plus": mj.maml_plus_plus,
    "imaml": functools.partial(mj.imaml, cg_steps=20),
    "imaml, pulled once": functools.partial(mj.imaml, cg_steps=20, pull_once=True),
    "cavia": functools.partial(mj.cavia, shifts=named("norms"), rng=KEY, size=2),
    "lora": functools.partial(mj.lora, adapts=named("kernel"), rng=KEY, rank=1),
    "proto_maml": lambda loss, inner: mj.proto_maml(loss, inner, embed=embed),
    "prototypical_network": lambda loss, inner: mj.prototypical_network(loss, embed=embed),
}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def embed(params, x, rng=None):
    hidden = jnp.tanh(x @ params["body"]["kernel"])
    return hidden / jnp.sqrt(jnp.square(hidden).mean(0) + 0.1) + params["norms"]


def apply(params, x, rng=None):
    return embed(params, x) @ params["head"]["kernel"] + params["head"]["bias"]


@functools.cache
def problem():
    """Leaves of one shape, between which a wrong rule could mix things up without an error."""
    keys = jax.random.split(KEY, 6)
    params = {
        "body": {"kernel": jax.random.normal(keys[0], (2, 2))},
        "norms": jax.random.normal(keys[1], (2,)) / 3,
        "head": {"kernel": jax.random.normal(keys[2], (2, 2)), "bias": jax.random.normal(keys[3], (2,))},
    }
    labels = jnp.array([0, 1, 0, 1])
    support, query = (mj.Batch(jax.random.normal(key, (4, 2)) + labels[:, None], labels) for key in keys[4:])
    return params, mj.Task(support, query)


def functions(name: str, mixed_mode: bool):
    """Scalars of the flattened meta-parameters: of what `adapt` returns, and of the meta-gradient."""
    params, task = problem()
    loss = mj.classification_loss(apply)
    learner = LEARNERS[name](loss, mj.inner_loop(optax.sgd(0.5), 2, mixed_mode=mixed_mode))
    meta_params, state = learner.init(params)
    flat, unravel = ravel_pytree(meta_params)

    def after(flat):
        adapted = learner.adapt(unravel(flat), task.support, KEY, steps=2).params
        return loss(adapted, task.query, KEY)[0]

    def size(flat):
        return optax.tree.norm(learner.gradient(unravel(flat), task, KEY, state).gradient, squared=True)

    start = flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape)
    return start, {"adapt": after, "gradient": size}


@pytest.mark.parametrize("of", ["adapt", "gradient"])
@pytest.mark.parametrize("name", slow_except([*LEARNERS], [4, 8]))
def test_every_derivative_is_that_of_plain_reverse_mode(name, of):
    """Reverse and forward mode, and a Hessian-vector product; plain reverse mode is right by central differences."""
    start, plain = functions(name, mixed_mode=False)
    plain, mixed = plain[of], functions(name, mixed_mode=True)[1][of]
    along, h = jax.random.normal(jax.random.key(2), start.shape), 1e-5

    @jax.jit  # one program for all, since compilation takes most of the time
    def run(start):
        numeric = (plain(start + h * along) - plain(start - h * along)) / (2 * h)
        forward = jax.jvp(mixed, (start,), (along,))[1]
        gradients = jax.grad(plain), jax.grad(mixed)
        if of == "gradient":
            return [gradient(start) for gradient in gradients], (0.0, 0.0), forward, numeric
        pairs = [jax.jvp(gradient, (start,), (along,)) for gradient in gradients]
        return *zip(*pairs, strict=True), forward, numeric

    (expected, gradient), (product, mixed_product), forward, numeric = run(start)
    np.testing.assert_allclose(expected @ along, numeric, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(forward, expected @ along, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(mixed_product, product, rtol=1e-8, atol=1e-10)
