"""The inner loop against closed forms and explicit loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import slow_except

import metajax as mj

pytestmark = pytest.mark.usefixtures("compiled_fast")

A = jnp.array([[2.0, 0.5], [0.5, 1.0]])


def quadratic(params, target, rng):
    """½ (θ − t)ᵀ A (θ − t), gradient A (θ − t)."""
    d = params - target
    return d @ A @ d / 2, {}


START, TARGET = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.7])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_sgd_on_a_quadratic_has_its_closed_form(key, steps, remat):
    adapted = mj.inner_loop(optax.sgd(0.1), steps, remat=remat).run(quadratic, START, TARGET, key)
    contraction = np.linalg.matrix_power(np.eye(2) - 0.1 * np.asarray(A), steps)
    np.testing.assert_allclose(adapted.params, TARGET + contraction @ (START - TARGET), rtol=1e-5)


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1, eps_root=1e-8),
    "chain with schedule": optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.sgd(optax.exponential_decay(0.3, 1, 0.5)),
        optax.add_decayed_weights(-0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"unroll": 1}, {"remat": True}, {"first_order": True}], ids=str)
def test_any_optimizer_and_strategy_equals_an_explicit_loop(key, name, options):
    optimizer = OPTIMIZERS[name]
    adapted = mj.inner_loop(optimizer, 4, **options).run(quadratic, START, TARGET, key)
    params, state = START, optimizer.init(START)
    for _ in range(4):
        updates, state = optimizer.update(A @ (params - TARGET), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(adapted.params, params, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(adapted.opt_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("unroll", "copies"), [(None, False), (True, False), (2, False), (1, True), (False, True)])
def test_an_unrolled_loop_starts_from_what_tasks_share_without_a_copy_for_each(key, unroll, copies):
    def loss(params, x, rng):
        return jnp.sum(jnp.sin(x @ params)), {}

    inner = mj.inner_loop(optax.sgd(0.1), 2, unroll=unroll)
    adapt = jax.vmap(lambda x: inner.run(loss, jnp.ones((3, 5)), x, key).params)
    forward = next(eqn for eqn in equations(jax.make_jaxpr(adapt)(jnp.ones((4, 2, 3))).jaxpr) if is_product(eqn))
    _, (batch, _) = forward.params["dimension_numbers"]
    assert bool(batch) is copies


@pytest.mark.parametrize("steps", [1, 2])
def test_an_unrolled_loop_runs_without_jit(key, steps):
    inner = mj.inner_loop(optax.sgd(0.1), steps)
    expected = inner.run(quadratic, START, TARGET, key)
    with jax.disable_jit():
        adapted = inner.run(quadratic, START, TARGET, key)
    np.testing.assert_allclose(adapted.params, expected.params, rtol=1e-6)


def equations(jaxpr):
    """All of a program's, in order, those of loops and calls among them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(value, "eqns"):
                yield from equations(getattr(value, "jaxpr", value))


def is_product(eqn):
    return eqn.primitive.name == "dot_general"


def test_steps_at_call_time_override_the_default(key):
    inner = mj.inner_loop(optax.sgd(0.1), 2)
    more = inner.run(quadratic, START, TARGET, key, steps=5)
    np.testing.assert_array_equal(
        more.params, mj.inner_loop(optax.sgd(0.1), 5).run(quadratic, START, TARGET, key).params
    )


@pytest.mark.parametrize("remat", [False, True])
def test_trace_has_every_step_from_zero(key, remat):
    inner = mj.inner_loop(optax.sgd(0.1), 7, remat=remat)
    trace = inner.run(quadratic, START, TARGET, key, observe=lambda params: {"params": params}).trace["params"]
    expected = [inner.run(quadratic, START, TARGET, key, steps=s).params for s in range(8)]
    np.testing.assert_allclose(trace, jnp.stack(expected), rtol=1e-6)


def test_an_opt_state_continues_where_it_stopped(key):
    inner = mj.inner_loop(optax.adam(0.1), 2)
    first = inner.run(quadratic, START, TARGET, key)
    second = inner.run(quadratic, first.params, TARGET, key, opt_state=first.opt_state)
    whole = inner.run(quadratic, START, TARGET, key, steps=4)
    np.testing.assert_allclose(second.params, whole.params, rtol=1e-6)


TREE = {"body": {"w": jnp.ones(3)}, "head": {"w": jnp.ones(2), "b": jnp.zeros(2)}}


def tree_loss(params, data, rng):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(params)) + params["head"]["b"].sum(), {}


@pytest.mark.parametrize(
    "adapts",
    [lambda path, _: path.startswith("head"), {"body": {"w": False}, "head": {"w": True, "b": True}}],
    ids=["predicate", "mask"],
)
def test_only_chosen_leaves_adapt_and_all_are_differentiated(key, adapts):
    inner = mj.inner_loop(optax.adam(0.1, eps_root=1e-8), 2, adapts=adapts)
    adapted = inner.run(tree_loss, TREE, None, key).params
    np.testing.assert_array_equal(adapted["body"]["w"], TREE["body"]["w"])
    assert not np.any(adapted["head"]["w"] == TREE["head"]["w"])
    assert not np.any(adapted["head"]["b"] == TREE["head"]["b"])
    moments = inner.init(TREE)[0].mu
    assert moments["body"]["w"] is None, "no optimiser state for what does not adapt"
    grads = jax.grad(lambda tree: tree_loss(inner.run(tree_loss, tree, None, key).params, None, key)[0])(TREE)
    np.testing.assert_allclose(grads["body"]["w"], 2 * TREE["body"]["w"])


def test_minibatches_are_epochs_of_the_support_set(key):
    def count(params, rows, rng):
        return jnp.sum(params[rows]), {}

    adapted = mj.inner_loop(optax.sgd(1.0), 6, batch_size=4).run(count, jnp.zeros(8), jnp.arange(8), key).params
    np.testing.assert_array_equal(adapted, -3 * np.ones(8), "24 draws of 8 examples are 3 epochs")
    first_epoch = mj.inner_loop(optax.sgd(1.0), 2, batch_size=4).run(count, jnp.zeros(8), jnp.arange(8), key).params
    np.testing.assert_array_equal(first_epoch, -np.ones(8))
    of_numpy = mj.inner_loop(optax.sgd(1.0), 2, batch_size=4).run(count, jnp.zeros(8), np.arange(8), key).params
    np.testing.assert_array_equal(of_numpy, first_epoch)


def test_a_batch_size_that_does_not_fit_is_named(key):
    with pytest.raises(ValueError, match="between 1 and the 8 support examples, got 9"):
        mj.inner_loop(optax.sgd(1.0), 1, batch_size=9).run(quadratic, jnp.zeros(8), jnp.arange(8), key)


def test_the_loss_gets_another_key_at_each_step(key):
    def noisy(params, data, rng):
        return params * jax.random.normal(rng), {}

    def steps_of(key):
        trace = mj.inner_loop(optax.sgd(1.0), 5).run(noisy, jnp.float32(0.0), None, key, observe=lambda p: p).trace
        return np.diff(trace)

    steps = steps_of(key)
    assert len(set(steps.tolist())) == 5
    assert not np.any(steps == steps_of(jax.random.key(1)))


def test_first_order_stores_nothing_for_each_step(key):
    """The derivative of a first-order loop is the identity, and its residuals do not grow with the steps."""

    def quartic(params, target, rng):
        return jnp.sum((params - target) ** 4), {}

    def residual_bytes(steps, first_order):
        inner = mj.inner_loop(optax.sgd(0.01), steps, first_order=first_order)
        _, backward = jax.vjp(lambda p: inner.run(quartic, p, TARGET, key).params, START)
        return sum(leaf.size for leaf in jax.tree.leaves(backward) if hasattr(leaf, "size"))

    assert residual_bytes(64, True) == residual_bytes(2, True)
    assert residual_bytes(64, False) > residual_bytes(2, False)


RULES = [{"unroll": 1, "mixed_mode": True}, {"unroll": True, "mixed_mode": True}, {"remat": True, "mixed_mode": True}]
INNER = {
    "sgd": lambda rate: optax.sgd(rate),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(rate, eps_root=1e-12),
    "a rate for each parameter": lambda rate: optax.stateless(
        lambda grads, _: jax.tree.map(lambda g: -rate * g, grads)
    ),
}


@pytest.mark.parametrize("name", slow_except([*INNER], [0]))
@pytest.mark.parametrize("options", RULES, ids=str)
def test_every_differentiation_rule_is_plain_reverse_mode(key, name, options):
    """By the initialisation, by the data, by the rate, and by a quantity that the loss closes over."""
    adapts = (lambda path, leaf: path != "b") if name == "adam" else None

    def outer(learned, options):
        params, rate, strength, inputs = learned

        def loss(params, data, rng):
            x, targets = data
            hidden = jnp.tanh(x @ params["w"] + params["b"])
            noise = jax.random.normal(rng, hidden.shape)
            errors = optax.softmax_cross_entropy_with_integer_labels(hidden + 0.1 * noise, targets)
            return errors.mean() + strength * jnp.sum(params["w"] ** 4), {}

        inner = mj.inner_loop(INNER[name](rate), 5, adapts=adapts, batch_size=4, **options)
        data = (inputs, jnp.arange(6) % 3)
        return loss(inner.run(loss, params, data, key).params, data, key)[0]

    with jax.enable_x64(True):
        draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float64)  # noqa: E731
        learned = ({"w": draw(0, 4, 3), "b": draw(1, 3)}, jnp.float64(0.1), jnp.float64(0.01), draw(2, 6, 4))
        plain = jax.grad(outer)(learned, {"mixed_mode": False, "unroll": 1})
        ours = jax.grad(outer)(learned, options)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            assert np.all(np.abs(np.asarray(b)).max() > 1e-6)
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


WRAPPED = {
    "jit of grad": lambda outer: jax.jit(jax.grad(outer)),
    "grad of jit": lambda outer: jax.grad(jax.jit(outer)),
    "vmap of grad": lambda outer: lambda start, *more: jax.vmap(jax.grad(outer), (None, 0, 0, 0))(start, *more).sum(0),
    "grad of vmap": lambda outer: jax.grad(lambda start, *more: jax.vmap(outer, (None, 0, 0, 0))(start, *more).sum()),
}


@pytest.mark.parametrize("name", slow_except([*WRAPPED], [0, 2]))
def test_a_loss_may_close_over_anything(key, name):
    """Labels, a key, floats: as constants of the one transformation, and traced by the other."""

    def outer(start, scale, labels, noise_key, mixed_mode):
        def loss(params, data, rng):
            logits = jnp.tanh(params * scale + jax.random.normal(noise_key, (3,)))
            return -jax.nn.log_softmax(logits)[labels] + 0.1 * jnp.sum(params**4), {}

        inner = mj.inner_loop(optax.sgd(0.1), 3, mixed_mode=mixed_mode)
        return loss(inner.run(loss, start, None, key).params, None, key)[0]

    several = "vmap" in name
    scale, labels, keys = jnp.array([1.0, 2.0]), jnp.array([2, 0]), jax.random.split(key)
    given = (scale, labels, keys) if several else (scale[0], labels[0], keys[0])
    start = jnp.array([0.3, -0.2, 0.1])
    mixed, plain = (
        WRAPPED[name](lambda *args, mode=mode: outer(*args, mixed_mode=mode))(start, *given) for mode in (True, False)
    )
    np.testing.assert_allclose(mixed, plain, rtol=1e-4, atol=1e-6)


def test_memory_of_a_step_falls_with_mixed_mode_and_again_with_remat(key):
    """Activations are not kept; with remat, moments of Adam neither."""
    width = 100  # 10,000 parameters: mixed mode by default
    hidden = jnp.ones((width, width))

    def deep(params, data, rng):
        x = jnp.ones((256, width))
        for _ in range(4):
            x = jnp.tanh(x @ params)
        return x.mean(), {}

    def temporary_bytes(**options):
        inner = mj.inner_loop(optax.adam(0.1, eps_root=1e-12), 64, **options)
        outer = jax.grad(lambda p: deep(inner.run(deep, p, None, key).params, None, key)[0])
        return jax.jit(outer).lower(hidden).compile().memory_analysis().temp_size_in_bytes

    plain, mixed, remat = (temporary_bytes(**o) for o in ({"mixed_mode": False}, {"mixed_mode": True}, {"remat": True}))
    assert temporary_bytes() == mixed
    assert mixed < plain / 5
    assert remat < mixed / 2
    with pytest.raises(ValueError, match="choose remat or unroll=True, not both"):
        mj.inner_loop(optax.sgd(0.1), 2, remat=True, unroll=True)


def test_minibatches_go_on_across_the_end_of_an_epoch(key):
    """Four draws of 3 from 5 examples: two whole epochs, and two draws of the third."""

    def count(params, rows, rng):
        return jnp.sum(params[rows]), {}

    adapted = mj.inner_loop(optax.sgd(1.0), 4, batch_size=3).run(count, jnp.zeros(5), jnp.arange(5), key).params
    assert sorted(np.asarray(-adapted).astype(int).tolist()) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("adapts", "said"),
    [
        ("head", r"use metajax.named\('head'\)"),
        (mj.named("head", "hed"), "no parameter path has a part 'hed'; there are body, head"),
        (mj.invert(mj.named("hed")), "no parameter path has a part 'hed'"),
        ({"head": True}, "one bool for each parameter, but the two trees differ in body; or use metajax.named"),
    ],
)
def test_a_choice_that_fits_nothing_says_so(adapts, said):
    inner = mj.inner_loop(optax.sgd(0.1), 1, adapts=adapts)
    with pytest.raises(ValueError, match=said):
        inner.init({"head": 1.0, "body": 2.0})


def test_what_was_split_off_before_still_has_its_name():
    """A learner may leave the inner loop the head alone; to freeze the body besides is no mistake."""
    inner = mj.inner_loop(optax.sgd(0.1), 1, adapts=mj.invert(mj.named("body")))
    chosen, rest = inner.split({"head": 1.0, "body": None})
    assert chosen == {"head": 1.0, "body": None}
    assert rest == {"head": None, "body": None}


def test_what_is_no_inner_loop_is_refused_where_it_is_made():
    with pytest.raises(TypeError, match=r"an optax optimiser, such as optax.sgd\(0.1\), got 0.01"):
        mj.inner_loop(0.01, 1)
    with pytest.raises(ValueError, match="a whole number, at least 0, got '3'"):
        mj.inner_loop(optax.sgd(0.1), "3")
    with pytest.raises(ValueError, match="a whole number, at least 0, got -1"):
        mj.inner_loop(optax.sgd(0.1), 3).run(lambda *_: (0.0, {}), jnp.ones(2), None, jax.random.key(0), steps=-1)
    with pytest.raises(TypeError, match="separate arguments"):
        mj.named(["head"])
    nothing = mj.inner_loop(optax.sgd(0.1), 1, adapts=mj.invert(mj.named("head", "body")))
    with pytest.raises(ValueError, match="selects none of body, head"):
        nothing.run(lambda params, data, rng: (0.0, {}), {"head": 1.0, "body": 2.0}, None, jax.random.key(0))


def test_what_is_observed_may_be_a_number_of_pythons():
    loop = mj.inner_loop(optax.sgd(0.1), 2)
    loss = lambda p, data, rng: (p**2, {})  # noqa: E731
    trace = loop.run(loss, jnp.float32(1.0), None, jax.random.key(0), observe=lambda p: {"n": 3, "p": p}).trace
    np.testing.assert_array_equal(trace["n"], [3, 3, 3])
    np.testing.assert_allclose(trace["p"], [1, 0.8, 0.64], rtol=1e-6)


def two_kernels(params, target, rng):
    return ((jnp.tanh(target["x"] @ params["k"]) + target["x"] @ params["b"] - target["y"]) ** 2).mean(), {}


@pytest.mark.parametrize(
    ("steps", "options"),
    slow_except([(1, {}), (2, {}), (2, {"remat": True}), (2, {"unroll": 1}), (3, {})], [1, 4]),
    ids=str,
)
def test_derivatives_of_a_meta_gradient_in_mixed_mode_are_those_of_plain_reverse_mode(key, steps, options):
    """Leaves of one shape: where JAX mixes up residuals and tangents, shapes do not tell."""
    with jax.enable_x64(True):
        b, k, x, y = (jax.random.normal(each, (4, 4), jnp.float64) / 2 for each in jax.random.split(key, 4))
        params, task = {"b": b, "k": k}, mj.Task({"x": x, "y": y}, {"x": y, "y": x})

        def size(params, mixed_mode):
            options_now = dict(options) if mixed_mode else {}
            inner = mj.inner_loop(optax.sgd(0.5), steps, mixed_mode=mixed_mode, **options_now)
            gradient = mj.maml(two_kernels, inner).gradient(params, task, key, ()).gradient
            return optax.tree.norm(gradient, squared=True)

        along = jax.tree.map(lambda leaf: jnp.cos(leaf), params)
        derivatives = {
            "reverse": lambda mixed: jax.grad(size)(params, mixed),
            "forward": lambda mixed: jax.jvp(lambda p: size(p, mixed), (params,), (along,))[1],
            "forward over reverse": lambda mixed: jax.jvp(lambda p: jax.grad(size)(p, mixed), (params,), (along,))[1],
        }
        for name, derivative in derivatives.items():
            if name == "forward over reverse" and steps == 3:
                continue  # takes long to compile
            for got, expected in zip(*map(jax.tree.leaves, (derivative(True), derivative(False))), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12, err_msg=name)


FORWARD = {
    "jvp": lambda adapt, p, v: jax.jvp(adapt, (p,), (v,))[1],
    "jit of jvp": lambda adapt, p, v: jax.jit(lambda p, v: jax.jvp(adapt, (p,), (v,))[1])(p, v),
    "jvp of jit": lambda adapt, p, v: jax.jvp(jax.jit(adapt), (p,), (v,))[1],
    "linearize": lambda adapt, p, v: jax.linearize(adapt, p)[1](v),
    "jacfwd": lambda adapt, p, v: jax.tree.map(lambda j, k: j @ v["b"] + k @ v["k"], *jacobians(adapt, p)),
    "jvp of vmap": lambda adapt, p, v: jax.jvp(jax.vmap(adapt), (stacked(p),), (stacked(v),))[1],
    "vmap of jvp": lambda adapt, p, v: jax.vmap(lambda p, v: jax.jvp(adapt, (p,), (v,))[1])(stacked(p), stacked(v)),
    "grad of jvp": lambda adapt, p, v: jax.grad(lambda p: total(jax.jvp(adapt, (p,), (v,))[1]))(p),
    "jvp of jvp": lambda adapt, p, v: jax.jvp(lambda p: jax.jvp(adapt, (p,), (v,))[1], (p,), (v,))[1],
}


def jacobians(adapt, params):
    by_name = [jax.jacfwd(lambda leaf, name=name: adapt({**params, name: leaf}))(params[name]) for name in ("b", "k")]
    return [jax.tree.map(lambda j: j.reshape(4, 4, 16), each) for each in by_name]


def stacked(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), tree)


def total(tree):
    return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"unroll": 1}], ids=str)
@pytest.mark.parametrize("name", slow_except([*FORWARD], [1]))
def test_forward_mode_through_a_mixed_mode_loop_is_that_through_plain_reverse_mode(key, name, options):
    with jax.enable_x64(True):
        b, k, x, y = (jax.random.normal(each, (4, 4), jnp.float64) / 2 for each in jax.random.split(key, 4))
        params = {"b": b, "k": k}
        along = jax.tree.map(jnp.cos, params)
        if name == "jacfwd":
            along = jax.tree.map(jnp.ravel, along)

        def derivative(**options):
            inner = mj.inner_loop(optax.sgd(0.5, momentum=0.5), 2, **options)
            return FORWARD[name](lambda p: inner.run(two_kernels, p, {"x": x, "y": y}, key).params, params, along)

        got, expected = derivative(mixed_mode=True, **options), derivative(mixed_mode=False)
        for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 9])
def test_any_number_of_steps_runs_without_jit(key, steps, remat):
    inner = mj.inner_loop(optax.sgd(0.1), steps, remat=remat)
    learner = mj.maml(lambda p, d, rng: ((p - d) ** 2, {}), inner)
    with jax.disable_jit():
        gradient = learner.gradient(jnp.float32(1), mj.Task(0.0, 0.0), key, ()).gradient
        trace = inner.run(lambda p, d, rng: ((p - d) ** 2, {}), jnp.float32(1), 0.0, key, observe=lambda p: p).trace
    np.testing.assert_allclose(gradient, 2 * 0.8 ** (2 * steps), rtol=1e-5)
    np.testing.assert_allclose(trace, 0.8 ** np.arange(steps + 1), rtol=1e-5)


@pytest.mark.parametrize("first_order", [False, True])
def test_an_inner_optimizer_may_use_the_loss(key, first_order):
    """Polyak's step is the loss over the gradient's square: half of the way on a quadratic."""
    inner = mj.inner_loop(optax.polyak_sgd(max_learning_rate=10.0), 3, first_order=first_order)

    def adapt(params):
        return inner.run(lambda p, d, rng: ((p - d) ** 2, {}), params, 0.0, key).params

    np.testing.assert_allclose(adapt(jnp.float32(1)), 1 / 8, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(adapt)(jnp.float32(1)), 1.0 if first_order else 1 / 8, rtol=1e-4)
    with pytest.raises(TypeError, match="value_fn"):
        mj.inner_loop(optax.lbfgs(), 1).run(lambda p, d, rng: ((p - d) ** 2, {}), jnp.float32(1), 0.0, key)


def test_an_eager_call_does_not_trace_the_optimizer_again(key):
    calls = []
    sgd = optax.sgd(0.1)

    def update(updates, state, params=None):
        calls.append(updates)
        return sgd.update(updates, state, params)

    inner = mj.inner_loop(optax.GradientTransformation(sgd.init, update), 1, unroll=True)
    counts = []
    for params in (START, START, jnp.ones((2, 2)), jnp.ones((2, 2))):
        calls.clear()
        inner.run(lambda p, d, rng: ((p**2).sum(), {}), params, None, key)
        counts.append(len(calls))
    assert counts == [2, 1, 2, 1]


def test_an_inner_optimizer_without_a_derivative_is_named(key):
    def gradient(optimizer, **options):
        inner = mj.inner_loop(optimizer, 4, **options)
        return mj.maml(tree_loss, inner).gradient(TREE, mj.Task(None, None), key, ()).gradient

    for run in (lambda f: f(), lambda f: jax.jit(f)(), lambda f: jax.vmap(lambda _: f())(jnp.arange(2))):
        with pytest.raises(ValueError, match="derivative of the inner optimiser's update is NaN or infinite"):
            run(lambda: gradient(optax.radam(0.1)))
    with pytest.warns(UserWarning, match=r"where a gradient is exactly 0.*eps_root=1e-8"):
        gradient(optax.adam(0.1))
    gradient(optax.radam(0.1), first_order=True)
    gradient(optax.adam(0.1, eps_root=1e-8))
    for optimizer in (optax.sgd(0.1, momentum=0.9, nesterov=True), optax.rmsprop(0.1), optax.adagrad(0.1)):
        gradient(optimizer)
    mj.inner_loop(optax.radam(0.1), 4).run(tree_loss, TREE, None, key)  # not differentiated


def two_leaves(params, target, rng):
    """The gradient with respect to `a` is constant, so its derivative is 0."""
    return params["a"].sum() + ((params["b"] - target) ** 2).sum(), {}


def test_a_missing_derivative_is_found_in_any_leaf(key):
    learner = mj.maml(two_leaves, mj.inner_loop(optax.radam(0.1), 8))
    with pytest.raises(ValueError, match="derivative of the inner optimiser's update is NaN or infinite"):
        learner.gradient({"a": jnp.ones(2), "b": jnp.ones(2)}, mj.Task(0.5, 0.5), key, ())


@pytest.mark.parametrize("mixed_mode", [False, True])
def test_an_inner_optimizer_may_hold_arrays_be_traced_and_be_a_class(key, mixed_mode):
    task, params = mj.Task(0.0, 0.0), {"w": jnp.ones(5)}

    def loss(params, target, rng):
        return ((params["w"] - target) ** 2).sum() / 2, {}

    def gradient(optimizer):
        learner = mj.maml(loss, mj.inner_loop(optimizer, 1, mixed_mode=mixed_mode))
        return learner.gradient(params, task, key, ()).gradient["w"]

    rates = jnp.linspace(0.1, 0.5, 5)
    each = optax.stateless(lambda updates, params: {"w": -rates * updates["w"]})
    np.testing.assert_allclose(gradient(each), (1 - rates) ** 2, rtol=1e-6)
    traced = jax.jit(lambda rate: gradient(optax.sgd(rate)))(0.5)
    np.testing.assert_allclose(traced, 0.25, rtol=1e-6)

    @dataclasses.dataclass
    class Own:
        rate: float

        def init(self, params):
            return ()

        def update(self, updates, state, params=None):
            return jax.tree.map(lambda u: -self.rate * u, updates), state

    np.testing.assert_allclose(gradient(Own(0.5)), 0.25, rtol=1e-6)


def test_no_trace_leaks(key):
    learner = mj.maml(two_leaves, mj.inner_loop(optax.sgd(0.1), 3))
    with jax.checking_leaks():
        learner.gradient({"a": jnp.ones(2), "b": jnp.ones(2)}, mj.Task(0.5, 0.5), key, ())
