"""MAML's relatives, each against a closed form or an independent computation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import metajax as mj
from metajax.core.trees import invert, map_with_names, named
from metajax.learners import (
    annealed_weights,
    context,
    diagonal_preconditioner,
    low_rank,
    only,
    rates_per_layer_and_step,
    values_per_step,
)
from metajax.learners.scratch import scratch

pytestmark = pytest.mark.usefixtures("compiled_fast")

A = np.array([[2.0, 0.5], [0.5, 1.0]])
SUPPORT, QUERY, START = np.array([0.3, 0.7]), np.array([-1.0, 0.4]), np.array([1.0, -2.0])
RATE = 0.1
KEY = jax.random.key(0)
TASK = mj.Task(SUPPORT, QUERY)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def quadratic(params, target, rng):
    d = params - target
    return d @ jnp.asarray(A) @ d / 2, {}


def two_layers(params, data, rng):
    """A small smooth network with normalised activations, so that finite differences hold."""
    hidden = data.x @ params["body"]["kernel"] + params["body"]["bias"]
    hidden = jnp.tanh((hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 0.1) + params["norms"])
    out = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    return jnp.square(out - data.y).mean(), {}


def network(seed=0):
    normal = iter(jax.random.split(jax.random.key(seed), 9))
    draw = lambda *shape: jax.random.normal(next(normal), shape)  # noqa: E731
    return {
        "body": {"kernel": draw(1, 3), "bias": draw(3)},
        "norms": draw(3),
        "head": {"kernel": draw(3, 2), "bias": draw(2)},
    }


def regression(seed=1):
    keys = jax.random.split(jax.random.key(seed), 4)
    support, query = (
        mj.Batch(jax.random.normal(a, (6, 1)), jax.random.normal(b, (6, 2))) for a, b in (keys[:2], keys[2:])
    )
    return mj.Task(support, query)


def loss_after_adaptation(learner, loss_fn, task):
    return lambda meta_params: loss_fn(learner.adapt(meta_params, task.support, KEY).params, task.query, KEY)[0]


def assert_gradient_is_numeric(learner, loss_fn, meta_params, task, *, rtol=1e-5):
    """Against central differences of the query loss after `adapt`."""
    flat, unravel = ravel_pytree(meta_params)
    after = jax.jit(jax.vmap(lambda flat: loss_after_adaptation(learner, loss_fn, task)(unravel(flat))))
    h = 1e-5
    steps = h * jnp.eye(flat.size)
    numeric = (after(flat + steps) - after(flat - steps)) / (2 * h)
    state = learner.init(network())[1]
    analytic = ravel_pytree(learner.gradient(meta_params, task, KEY, state).gradient)[0]
    np.testing.assert_allclose(analytic, numeric, rtol=rtol, atol=1e-7)
    assert np.abs(numeric).max() > 1e-3


def perturbed(tree, seed=5):
    flat, unravel = ravel_pytree(tree)
    return unravel(flat + 0.1 * jax.random.normal(jax.random.key(seed), flat.shape))


def sgd(steps, rate=RATE, **options):
    return mj.inner_loop(optax.sgd(rate), steps, **options)


# Rates


def test_meta_sgd_has_its_closed_form():
    learner = mj.meta_sgd(quadratic, sgd(1))
    rates = np.array([0.5, 3.0])
    gradient = learner.gradient({"init": START, "rates": rates}, TASK, KEY, ()).gradient
    support_gradient = A @ (START - SUPPORT)
    query_gradient = A @ (START - RATE * rates * support_gradient - QUERY)
    by_init = (np.eye(2) - RATE * np.diag(rates) @ A).T @ query_gradient
    np.testing.assert_allclose(gradient["init"], by_init, rtol=1e-12)
    np.testing.assert_allclose(gradient["rates"], -RATE * support_gradient * query_gradient, rtol=1e-12)


def test_meta_sgd_starts_as_maml():
    learner = mj.meta_sgd(quadratic, sgd(3))
    gradient = learner.gradient(learner.init(START)[0], TASK, KEY, ()).gradient["init"]
    np.testing.assert_allclose(gradient, mj.maml(quadratic, sgd(3)).gradient(START, TASK, KEY, ()).gradient, rtol=1e-12)


def test_a_preconditioner_is_meta_sgd_with_positive_rates():
    log_diagonal = np.array([-0.7, 0.4])
    of = mj.maml(quadratic, sgd(3), diagonal_preconditioner())
    gradient = of.gradient({"init": START, "log_diagonal": log_diagonal}, TASK, KEY, ()).gradient
    rates = np.exp(log_diagonal)
    same = mj.meta_sgd(quadratic, sgd(3)).gradient({"init": START, "rates": rates}, TASK, KEY, ()).gradient
    np.testing.assert_allclose(gradient["init"], same["init"], rtol=1e-12)
    np.testing.assert_allclose(gradient["log_diagonal"], same["rates"] * rates, rtol=1e-12)


@pytest.mark.slow
def test_learned_rates_keep_working_inside_any_inner_optimizer():
    inner = mj.inner_loop(optax.adam(0.05, eps_root=1e-8), 3)
    learner = mj.meta_sgd(two_layers, inner)
    assert_gradient_is_numeric(learner, two_layers, perturbed(learner.init(network())[0]), regression())


def test_rates_per_layer_and_step_make_each_step_its_own():
    """Two steps by hand; a third takes the second's rate."""
    learner = mj.maml(quadratic, sgd(2), rates_per_layer_and_step(2))
    meta_params = {"init": START, "step_rates": np.array([0.5, 2.0])}
    phi = START
    for rate in (0.5, 2.0, 2.0):
        phi = phi - RATE * rate * A @ (phi - SUPPORT)
    np.testing.assert_allclose(learner.adapt(meta_params, SUPPORT, KEY, steps=3).params, phi, rtol=1e-12)


# MAML++


def test_maml_plus_plus_agrees_with_finite_differences():
    learner = mj.maml(two_layers, sgd(3), rates_per_layer_and_step(3), values_per_step(named("norms"), 3))
    meta_params = perturbed(learner.init(network())[0])
    assert_gradient_is_numeric(learner, two_layers, meta_params, regression())


def test_values_per_step_are_those_of_the_step_and_do_not_adapt():
    learner = mj.maml(two_layers, sgd(2), values_per_step(named("norms"), 2))
    meta_params, _ = learner.init(network())
    values = jnp.arange(9.0).reshape(3, 3) / 10
    meta_params["per_step"]["norms"] = values
    seen = learner.adapt(meta_params, regression().support, KEY, steps=4, observe=lambda params: params["norms"]).trace
    np.testing.assert_array_equal(seen, values[jnp.array([0, 1, 2, 2, 2])])


@pytest.mark.parametrize("weights", [[0.0, 0.0, 1.0], [0.2, 0.5, 0.3]])
def test_a_multi_step_loss_is_the_weighted_sum_of_the_losses_after_each_step(weights):
    learner = mj.maml(two_layers, sgd(3), step_weights=lambda done: jnp.array(weights))
    gradient = learner.gradient(network(), regression(), KEY, jnp.int32(0)).gradient
    each = [mj.maml(two_layers, sgd(s)).gradient(network(), regression(), KEY, ()).gradient for s in (1, 2, 3)]
    expected = jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), gradient, expected)


def test_the_order_changes_when_it_is_due():
    learner = mj.maml(quadratic, sgd(3), second_order_from=2)
    first, second = (mj.maml(quadratic, sgd(3, first_order=yes)) for yes in (True, False))
    state = learner.init(START)[1]
    for expected in (first, first, second, second):
        estimate = learner.gradient(START, TASK, KEY, state)
        np.testing.assert_allclose(estimate.gradient, expected.gradient(START, TASK, KEY, ()).gradient, rtol=1e-12)
        state = estimate.state
    assert int(state) == 4


@settings(deadline=None)  # the first call compiles
@given(steps=st.integers(1, 8), over=st.integers(1, 1000), done=st.integers(0, 3000))
def test_annealed_weights_sum_to_one_and_move_to_the_last_step(steps, over, done):
    weights = np.asarray(annealed_weights(steps, over)(done))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    assert (weights >= 0).all()
    assert weights[-1] >= weights[0] - 1e-9
    later = np.asarray(annealed_weights(steps, over)(done + 1))
    assert later[-1] >= weights[-1] - 1e-9


def test_annealed_weights_are_those_of_the_authors_code():
    """Theirs by epochs; after the last one of them only the last step's loss counts."""
    steps, over = 5, 100
    for done in (0, 1, 50, 97, 98, 99, 100, 10_000):
        others = max(1 / steps - done / over / steps, 0.03 / steps)
        expected = [others] * (steps - 1) + [1 - (steps - 1) * others] if done < over else [0, 0, 0, 0, 1]
        np.testing.assert_allclose(annealed_weights(steps, over)(done), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "made", [
        lambda steps: mj.maml(two_layers, sgd(3), rates_per_layer_and_step(steps)),
        lambda steps: mj.maml(two_layers, sgd(3), values_per_step(named("norms"), steps)),
        lambda steps: mj.maml(two_layers, sgd(3), step_weights=annealed_weights(steps, 10)),
        lambda steps: mj.anil(two_layers, sgd(3), rates_per_layer_and_step(steps)),
    ], ids=["rates", "values", "weights", "anil"],
)  # fmt: skip
def test_values_for_another_number_of_inner_steps_are_refused(made):
    made(3)
    for steps in (2, 5):
        with pytest.raises(ValueError, match=rf"{steps}.*inner step|inner step.*{steps}"):
            made(steps)
    with pytest.raises(ValueError, match="an inner step"):
        made(0)


# Which parameters adapt


@pytest.mark.parametrize(("learner", "adapts"), [(mj.anil, named("head")), (mj.boil, invert(named("head")))])
def test_anil_and_boil_are_maml_with_a_mask(learner, adapts):
    masked = mj.maml(two_layers, sgd(3, adapts=adapts)).gradient(network(), regression(), KEY, ())
    estimate = learner(two_layers, sgd(3)).gradient(network(), regression(), KEY, ())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), estimate.gradient, masked.gradient)
    assert_gradient_is_numeric(learner(two_layers, sgd(3)), two_layers, network(), regression())


def test_a_mask_of_bools_combines_with_parts():
    """As the same choice by names does, where a part has split leaves off before."""
    kernels = map_with_names(lambda path, leaf: path.endswith("kernel"), network())
    by_mask, by_name = (
        mj.anil(two_layers, sgd(2, adapts=adapts)).gradient(network(), regression(), KEY, ()).gradient
        for adapts in (kernels, named("kernel"))
    )
    jax.tree.map(np.testing.assert_array_equal, by_mask, by_name)


def test_parts_combine():
    """ANIL with learned rates per step, of which only the head's matter."""
    learner = mj.maml(two_layers, sgd(2), only(named("head")), rates_per_layer_and_step(2))
    meta_params = perturbed(learner.init(network())[0])
    assert_gradient_is_numeric(learner, two_layers, meta_params, regression())
    gradient = learner.gradient(meta_params, regression(), KEY, ()).gradient["step_rates"]
    assert np.all(gradient["body"]["kernel"] == 0)
    assert np.all(gradient["head"]["kernel"] != 0)


def test_cavia_is_maml_on_a_context_among_the_inputs():
    """A network that is given the context explicitly, which alone adapts."""

    def plain(params, data, rng):
        hidden = jnp.tanh(data.x @ params["body"]["kernel"] + params["body"]["bias"])
        return jnp.square(hidden @ params["head"]["kernel"] + params["head"]["bias"] - data.y).mean(), {}

    def with_context(everything, data, rng):
        x = jnp.concatenate([data.x, jnp.broadcast_to(everything["context"], (len(data.x), 2))], 1)
        kernel = jnp.concatenate([everything["body"]["kernel"], everything["maps"]], 0)
        return plain({**everything, "body": {**everything["body"], "kernel": kernel}}, data._replace(x=x), rng)

    learner = mj.cavia(plain, sgd(3, 0.5), shifts=named("body/bias"), rng=jax.random.key(3), size=2)
    meta_params, _ = learner.init(network())
    explicit = mj.maml(with_context, sgd(3, 0.5, adapts=named("context")))
    everything = {**network(), "context": jnp.zeros(2), "maps": meta_params["context_maps"]["body"]["bias"]}
    expected = explicit.gradient(everything, regression(), KEY, ()).gradient
    gradient = learner.gradient(meta_params, regression(), KEY, ()).gradient
    assert np.abs(expected["maps"]).min() > 1e-6
    np.testing.assert_allclose(gradient["context_maps"]["body"]["bias"], expected["maps"], rtol=1e-9)
    for name in ("body", "head"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), gradient["init"][name], expected[name])


def test_low_rank_updates_have_their_rank_and_gradient():
    learner = mj.lora(two_layers, sgd(3), adapts=named("kernel"), rng=jax.random.key(2), rank=1)
    meta_params, _ = learner.init(network())
    before = jax.tree.map(np.asarray, meta_params["init"])
    after = learner.adapt(meta_params, regression().support, KEY).params
    change = np.asarray(after["head"]["kernel"]) - before["head"]["kernel"]
    assert np.linalg.matrix_rank(change, tol=1e-9) == 1
    np.testing.assert_array_equal(after["norms"], before["norms"])
    assert_gradient_is_numeric(learner, two_layers, perturbed(meta_params), regression())


def test_low_rank_updates_find_their_weights_among_those_that_adapt():
    """Of those that ANIL lets: the factors are all that adapts anyway."""
    options = {"adapts": lambda path, leaf: path == "head/kernel", "rng": jax.random.key(2)}
    both = mj.anil(two_layers, sgd(3), low_rank(1, **options))
    alone = mj.lora(two_layers, sgd(3), rank=1, **options)
    meta_params, _ = alone.init(network())
    expected = alone.gradient(meta_params, regression(), KEY, ()).gradient
    assert np.any(expected["low_rank"]["head"]["kernel"][0] != 0) or np.any(expected["low_rank"]["head"]["kernel"][1])
    adapted = both.adapt(meta_params, regression().support, KEY).params
    assert np.any(adapted["head"]["kernel"] != meta_params["init"]["head"]["kernel"])
    gradient = both.gradient(meta_params, regression(), KEY, ()).gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), gradient, expected)


@pytest.mark.parametrize(
    "part", [low_rank(1, named("kernel"), KEY), context(2, named("kernel"), KEY)], ids=lambda part: part.name
)
def test_a_part_that_changes_what_another_keeps_from_adapting_is_refused(part):
    learner = mj.anil(two_layers, sgd(3), part)
    with pytest.raises(ValueError, match="an earlier modifier does not let adapt"):
        learner.adapt(learner.init(network())[0], regression().support, KEY)


# Prototypes


def embed(params, x, rng=None):
    return jnp.tanh(x @ params["body"])


def linear_head(params, x, rng=None):
    return embed(params, x) @ params["head"]["kernel"] + params["head"]["bias"]


def classification(seed=0, ways=3, shots=2):
    keys = jax.random.split(jax.random.key(seed), 2)
    labels = jnp.tile(jnp.arange(ways), shots)
    return mj.Task(*(mj.Batch(jax.random.normal(key, (len(labels), 4)) + labels[:, None], labels) for key in keys))


def classifier(ways=3):
    body = jax.random.normal(jax.random.key(9), (4, 5))
    return {"body": body, "head": {"kernel": jnp.zeros((5, ways)), "bias": jnp.zeros(ways)}}


def test_a_prototypical_network_classifies_by_squared_distance():
    loss_fn = mj.classification_loss(linear_head)
    task, params = classification(), classifier()
    adapted = mj.prototypical_network(loss_fn, embed=embed).adapt(params, task.support, KEY).params
    probabilities = jax.nn.softmax(linear_head(adapted, task.query.x))
    support, query = embed(params, task.support.x), embed(params, task.query.x)
    centres = np.stack([np.asarray(support)[np.asarray(task.support.y) == k].mean(0) for k in range(3)])
    distances = ((np.asarray(query)[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(-distances), rtol=1e-9)


def test_proto_maml_is_a_prototypical_network_that_goes_on_adapting():
    loss_fn = mj.classification_loss(linear_head)
    learner = mj.proto_maml(loss_fn, sgd(2), embed=embed)
    assert_gradient_is_numeric(learner, loss_fn, classifier(), classification())
    start = learner.adapt(classifier(), classification().support, KEY, steps=0).params
    same = mj.prototypical_network(loss_fn, embed=embed).adapt(classifier(), classification().support, KEY).params
    jax.tree.map(np.testing.assert_array_equal, start, same)


def test_examples_that_do_not_count_are_no_part_of_a_prototype():
    loss_fn = mj.classification_loss(linear_head)
    support = classification().support
    longer = mj.Batch(*(jnp.concatenate([a, a[:2]]) for a in support[:2]), jnp.ones(8).at[6:].set(0))
    learner = mj.prototypical_network(loss_fn, embed=embed)
    whole, masked = (learner.adapt(classifier(), each, KEY).params for each in (support, longer))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), whole, masked)


def test_prototypes_need_labels_and_features_that_fit():
    params = {"body": jnp.ones((4, 6)), "head": {"kernel": jnp.ones((6, 3)), "bias": jnp.zeros(3)}}
    loss, task = mj.classification_loss(linear_head), classification()
    for y in (task.support.y[:, None], task.support.y.astype(jnp.float32), jax.nn.one_hot(task.support.y, 3)):
        learner = mj.proto_maml(loss, sgd(1), embed=embed)
        with pytest.raises(ValueError, match="prototypes need integer labels"):
            learner.adapt(params, task.support._replace(y=y), KEY)
    learner = mj.proto_maml(loss, sgd(1), embed=lambda params, x, rng: x)
    with pytest.raises(ValueError, match=r"features \(6, 4\) do not fit head/kernel \(6, 3\)"):
        learner.adapt(params, task.support, KEY)
    for other in (lambda x: x[:, None], lambda x: x[:-1], lambda x: x.mean(1)):
        learner = mj.proto_maml(loss, sgd(1), embed=lambda params, x, rng, other=other: other(x))
        with pytest.raises(AssertionError, match=r"embed must return features \[examples, size\]"):
            learner.adapt(params, task.support, KEY)


def test_prototypes_need_a_linear_head():
    learner = mj.prototypical_network(mj.classification_loss(linear_head), embed=embed, head="top")
    with pytest.raises(ValueError, match="'top'"):
        learner.adapt(classifier(), classification().support, KEY)


def test_features_are_what_goes_into_the_head():
    apply, params = mj.functional(mj.models.Conv4(3, rngs=nnx.Rngs(0)))
    x = jax.random.normal(KEY, (6, 28, 28, 1), jnp.float32)
    through = mj.features(apply)(params, x) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(through, apply(params, x), rtol=1e-5, atol=1e-5)


# Implicit and first-order gradients


def test_imaml_has_its_closed_form_on_a_quadratic():
    strength = 0.7
    learner = mj.imaml(quadratic, sgd(500), strength=strength)
    solution = np.linalg.solve(A + strength * np.eye(2), A @ SUPPORT + strength * START)
    expected = np.linalg.solve(np.eye(2) + A / strength, A @ (solution - QUERY))
    np.testing.assert_allclose(learner.gradient(START, TASK, KEY, ()).gradient, expected, rtol=1e-8)


def test_imaml_that_is_pulled_once_has_its_closed_form_on_a_quadratic():
    steps, strength, damping = 4, 0.7, 3.0
    learner = mj.imaml(quadratic, sgd(steps), strength=strength, damping=damping, pull_once=True)
    contraction = np.eye(2) - RATE * A
    reached = [SUPPORT + np.linalg.matrix_power(contraction, s) @ (START - SUPPORT) for s in range(steps + 1)]
    pulled = [START + (1 - RATE * strength) * (each - START) for each in reached]
    adapted = learner.adapt(START, SUPPORT, KEY, observe=lambda params: params)
    np.testing.assert_allclose(adapted.params, pulled[-1], rtol=1e-8)
    np.testing.assert_allclose(adapted.trace, pulled, rtol=1e-8, err_msg="every step is observed after the pull")
    expected = np.linalg.solve(np.eye(2) + A / (strength + damping), A @ (pulled[-1] - QUERY))
    np.testing.assert_allclose(learner.gradient(START, TASK, KEY, ()).gradient, expected, rtol=1e-8)


def test_imaml_tends_to_the_exact_gradient_as_the_inner_problem_converges():
    """The exact one differentiates through a long proximal inner loop."""
    params, task, strength = network(), regression(), 2.0

    def proximal(center):
        def loss_fn(params, data, rng):
            away = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), params, center)
            return two_layers(params, data, rng)[0] + strength / 2 * sum(jax.tree.leaves(away)), {}

        return loss_fn

    def after(params):
        adapted = sgd(400, 0.2).run(proximal(params), params, task.support, KEY).params
        return two_layers(adapted, task.query, KEY)[0]

    exact = ravel_pytree(jax.grad(after)(params))[0]

    def error(steps):
        learner = mj.imaml(two_layers, sgd(steps, 0.2), strength=strength, cg_steps=20)
        return np.abs(ravel_pytree(learner.gradient(params, task, KEY, ()).gradient)[0] - exact).max()

    errors = [error(steps) for steps in (4, 16, 64, 256)]
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors)), errors
    assert errors[-1] < 1e-6 * np.abs(exact).max()


def test_imaml_gives_leaves_that_do_not_adapt_their_gradient_too():
    params, task, strength = network(), regression(), 2.0
    inner = sgd(400, 0.2, adapts=named("head"))
    learner = mj.imaml(two_layers, inner, strength=strength, cg_steps=20)
    assert_gradient_is_numeric(learner, two_layers, params, task)


def test_imamls_memory_does_not_grow_with_the_inner_steps():
    def bytes_needed(steps):
        learner = mj.imaml(two_layers, mj.inner_loop(optax.sgd(RATE), steps, unroll=1))
        compiled = (
            jax.jit(lambda p, t: learner.gradient(p, t, KEY, ()).gradient).lower(network(), regression()).compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_needed(64) <= 1.05 * bytes_needed(2)


@pytest.mark.parametrize("arguments", [{"strength": 0.0}, {"damping": -1.0}, {"cg_steps": 0}])
def test_imaml_refuses_what_makes_no_sense(arguments):
    with pytest.raises(ValueError, match="strength must be positive"):
        mj.imaml(quadratic, sgd(1), **arguments)


def test_foml_takes_the_last_inner_gradient():
    contraction = np.linalg.matrix_power(np.eye(2) - RATE * A, 2)
    estimate = mj.foml(quadratic, sgd(3)).gradient(START, TASK, KEY, ())
    np.testing.assert_allclose(estimate.gradient, A @ contraction @ (START - SUPPORT), rtol=1e-12)
    adapted = mj.foml(quadratic, sgd(3)).adapt(START, SUPPORT, KEY).params
    np.testing.assert_allclose(estimate.metrics["loss"], quadratic(adapted, QUERY, KEY)[0], rtol=1e-12)


def test_what_does_not_adapt_is_left_alone_by_foml_and_reptile():
    inner = sgd(2, adapts=named("head"))
    for learner in (mj.foml, mj.reptile):
        gradient = learner(two_layers, inner).gradient(network(), regression(), KEY, ()).gradient
        assert not np.any(gradient["body"]["kernel"])
        assert np.all(gradient["head"]["kernel"] != 0)


@pytest.mark.parametrize("adapting", [mj.learners.context, mj.learners.low_rank])
@pytest.mark.parametrize("rates", [mj.learners.learned_rates(), rates_per_layer_and_step(2)], ids=["each", "step"])
def test_learned_rates_do_not_combine_with_other_adapting_parameters(adapting, rates):
    part = adapting(2, named("kernel"), jax.random.key(0))
    learner = mj.maml(two_layers, sgd(2), rates, part)
    with pytest.raises(ValueError, match="cannot be combined"):
        learner.adapt(learner.init(network())[0], regression().support, KEY)


def test_an_inner_loop_in_which_nothing_would_adapt_is_refused():
    learner = mj.maml(two_layers, sgd(1, adapts=lambda path, leaf: False))
    with pytest.raises(ValueError, match="no parameter adapts: the mask selects none of body/bias, body/kernel"):
        learner.adapt(network(), regression().support, KEY)
    unchanged = learner.adapt(network(), regression().support, KEY, steps=0).params
    jax.tree.map(np.testing.assert_array_equal, unchanged, network())


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(ValueError, match="different names"):
        mj.maml(two_layers, sgd(1), mj.learners.learned_rates(), mj.learners.learned_rates())


@pytest.mark.parametrize("learner", [mj.maml, mj.reptile, mj.foml, mj.imaml, scratch])
def test_an_optimizer_is_no_inner_loop(learner):
    with pytest.raises(TypeError, match="inner_loop"):
        learner(two_layers, optax.sgd(0.1))


def test_features_need_the_head_that_is_named():
    apply, params = mj.functional(mj.models.MLP(4, 3, hidden=(5,), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="'top'"):
        mj.features(apply, "top")(params, jnp.ones((2, 4)))


def test_reptile_is_the_sum_of_the_gradients_of_which_foml_keeps_the_last():
    delta = mj.reptile(quadratic, sgd(3)).gradient(START, TASK, KEY, ()).gradient
    gradients = [mj.foml(quadratic, sgd(s)).gradient(START, TASK, KEY, ()).gradient for s in (1, 2, 3)]
    np.testing.assert_allclose(delta, RATE * sum(gradients), rtol=1e-12)


def test_without_inner_steps_maml_is_joint_training():
    gradient = mj.maml(quadratic, sgd(0)).gradient(START, TASK, KEY, ()).gradient
    np.testing.assert_allclose(gradient, A @ (START - QUERY), rtol=1e-12)


@pytest.mark.parametrize("learner", [mj.reptile, mj.foml])
def test_learners_that_live_on_inner_steps_need_one(learner):
    with pytest.raises(ValueError, match="needs at least one"):
        learner(quadratic, mj.inner_loop(optax.sgd(0.1), 0))
