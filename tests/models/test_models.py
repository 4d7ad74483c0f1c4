"""Layers against independent computations, and the adapter on every kind of module."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.example_libraries import stax

import metajax as mj
from metajax.models import BatchNorm, Conv, GroupNorm, max_pool

pytestmark = pytest.mark.usefixtures("compiled_fast")


@settings(deadline=None, max_examples=12)
@given(
    side=st.integers(5, 12),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_convolution_is_that_of_lax(side, kernel, stride, padding, channels):
    conv = Conv(*channels, kernel_size=kernel, stride=stride, padding=padding, use_bias=True, rngs=nnx.Rngs(0))
    conv.bias[...] = jnp.arange(float(channels[1]))
    x = jax.random.normal(jax.random.key(1), (2, side, side + 1, channels[0]))
    if kernel > side + 2 * padding:
        with pytest.raises(ValueError, match="does not fit images"):
            conv(x)
        return
    expected = jax.lax.conv_general_dilated(
        x, conv.kernel[...], (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(conv(x), expected + conv.bias[...], rtol=1e-4, atol=1e-5)


def test_pooling_before_normalisation_is_pooling_after(key):
    """Of the mini-ImageNet form: pooled first where the line of the normalisation is sure to rise."""
    model = mj.models.Conv4(5, image_shape=(16, 16, 3), channels=4, pool=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (6, 16, 16, 3))
    out = x
    for conv, norm in zip(model.convs, model.norms, strict=True):
        out = linen.max_pool(nnx.relu(norm(conv(out))), (2, 2), (2, 2))
    np.testing.assert_allclose(model(x), model.head(out.reshape(6, -1)), rtol=1e-4, atol=1e-5)


def test_batch_norm_uses_the_batch_at_hand():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (6, 4, 4, 5))
    norm = BatchNorm(5, rngs=nnx.Rngs(0))
    norm.offset[...] = jnp.arange(5.0)
    out = np.asarray(norm(x)) - np.arange(5.0)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
    assert not np.allclose(norm(x[:3]), norm(x)[:3]), "an example sees the others"


def test_group_norm_sees_each_example_alone():
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 6))
    norm = GroupNorm(6, groups=4, rngs=nnx.Rngs(0))
    assert norm.groups == 3, "the largest divisor"
    np.testing.assert_allclose(norm(x[:2]), norm(x)[:2], atol=1e-6)
    expected = nnx.GroupNorm(6, num_groups=3, epsilon=1e-3, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(norm(x), expected, atol=1e-4)


def test_pooling_is_the_window_maximum():
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    np.testing.assert_array_equal(max_pool(x), linen.max_pool(x, (2, 2), (2, 2)))


MODELS = {
    "mlp": (lambda rngs: mj.models.MLP(28 * 28, 5, rngs=rngs), (28, 28, 1), 28 * 28 * 40 + 40 + 40 * 40 + 40 + 205),
    "mlp, fully connected Omniglot": (
        lambda rngs: mj.models.MLP(784, 5, hidden=(256, 128, 64, 64), normalise=True, rngs=rngs),
        (28, 28, 1),
        784 * 256 + 256 * 128 + 128 * 64 + 64 * 64 + 64 * 5 + 2 * (256 + 128 + 64 + 64) + 5,
    ),
    "conv4 Omniglot": (
        lambda rngs: mj.models.Conv4(5, rngs=rngs),
        (28, 28, 1),
        9 * 64 + 3 * 9 * 64 * 64 + 4 * 64 + 325,
    ),
    "conv4 mini-ImageNet": (
        lambda rngs: mj.models.Conv4(5, image_shape=(84, 84, 3), channels=32, pool=True, rngs=rngs),
        (84, 84, 3),
        9 * 3 * 32 + 3 * 9 * 32 * 32 + 4 * 32 + 25 * 32 * 5 + 5,
    ),
    "resnet12": (lambda rngs: mj.models.ResNet12(5, rngs=rngs), (84, 84, 3), 12_427_525),
    "resnet18": (lambda rngs: mj.models.ResNet18(5, rngs=rngs), (32, 32, 3), 11_171_397),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_published_sizes(name):
    make, shape, size = MODELS[name]
    apply, params = mj.functional(make(nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    out = jax.eval_shape(apply, params, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert out.shape == (2, 5)


def test_the_head_of_every_model_is_called_head():
    """`anil`, `boil` and the prototypes look for that name."""
    small = [
        mj.models.MLP(4, 3, rngs=nnx.Rngs(0)),
        mj.models.MLP(4, 3, hidden=(), rngs=nnx.Rngs(0)),
        mj.models.MLP(4, 3, normalise=True, rngs=nnx.Rngs(0)),
        mj.models.Conv4(3, channels=4, rngs=nnx.Rngs(0)),
        mj.models.ResNet12(3, widths=(4, 4, 4, 4), rngs=nnx.Rngs(0)),
        mj.models.ResNet18(3, width=4, rngs=nnx.Rngs(0)),
        mj.models.ViT(3, width=8, layers=1, rngs=nnx.Rngs(0)),
    ]
    for model in small:
        _, params = mj.functional(model)
        assert params["head"]["kernel"].shape[-1] == 3


def test_a_perceptron_takes_another_initialiser():
    _, params = mj.functional(mj.models.MLP(2, 3, kernel_init=nnx.initializers.ones_init(), rngs=nnx.Rngs(0)))
    kernels = [params["layers"][0]["kernel"], params["layers"][1]["kernel"], params["head"]["kernel"]]
    for kernel in kernels:
        np.testing.assert_array_equal(kernel, 1)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_models_take_either_normalisation(kind):
    small = [
        mj.models.Conv4(3, channels=4, norm=kind, rngs=nnx.Rngs(0)),
        mj.models.ResNet12(3, in_channels=1, widths=(4, 4, 4, 4), norm=kind, rngs=nnx.Rngs(0)),
        mj.models.ResNet18(3, in_channels=1, width=4, stem="large", norm=kind, rngs=nnx.Rngs(0)),
    ]
    x = jax.random.normal(jax.random.key(0), (6, 28, 28, 1))
    for model in small:
        apply, params = mj.functional(model)
        whole, part = jax.jit(apply)(params, x), jax.jit(apply)(params, x[:3])
        assert np.isfinite(whole).all()
        assert np.allclose(whole[:3], part, atol=1e-4) == (kind == "group")


def test_images_too_small_to_pool_are_named():
    with pytest.raises(ValueError, match="at least 16×16 pixels, got 8×8"):
        mj.models.Conv4(5, image_shape=(8, 8, 1), pool=True, rngs=nnx.Rngs(0))


def test_images_of_another_shape_are_named():
    rngs = nnx.Rngs(0)
    of_one_size = [
        mj.models.Conv4(5, image_shape=(16, 16, 1), channels=4, rngs=rngs),
        mj.models.Conv4(5, image_shape=(16, 16, 1), channels=4, pool=True, rngs=rngs),
        mj.models.ViT(5, image_shape=(16, 16, 1), patch=4, width=8, layers=1, rngs=rngs),
        mj.models.ResNet12(5, in_channels=1, image_size=(16, 16), widths=(2, 2, 2, 2), rngs=rngs),
        mj.models.ResNet18(5, in_channels=1, image_size=(16, 16), width=2, rngs=rngs),
    ]
    for model in of_one_size:
        apply, params = mj.functional(model)
        assert jax.eval_shape(apply, params, jnp.ones((2, 16, 16, 1))).shape == (2, 5)
        for shape in [(32, 32, 1), (17, 31, 1), (8, 32, 1), (16, 16, 3)]:
            said = f"made for images of shape 16×16×1, got images of shape {'×'.join(map(str, shape))}"
            for call in (model, functools.partial(apply, params), jax.vmap(functools.partial(apply, params))):
                with pytest.raises(ValueError, match=said):
                    call(jnp.ones((*([2] if isinstance(call, functools.partial | nnx.Module) else [3, 2]), *shape)))
    of_any_size = [
        mj.models.ResNet12(5, in_channels=1, widths=(2, 2, 2, 2), rngs=rngs),
        mj.models.ResNet18(5, in_channels=1, width=2, rngs=rngs),
    ]
    for model in of_any_size:
        apply, params = mj.functional(model)
        assert jax.eval_shape(apply, params, jnp.ones((2, 17, 31, 1))).shape == (2, 5)
        with pytest.raises(ValueError, match="shape any×any×1, got images of shape 16×16×3"):
            model(jnp.ones((2, 16, 16, 3)))
    with pytest.raises(ValueError, match="sequences have 6 tokens, but the network was made for at most 4"):
        mj.models.Transformer(8, length=4, width=8, heads=2, layers=1, rngs=rngs)(jnp.zeros((2, 6), jnp.int32))
    with pytest.raises(ValueError, match=r"examples, height, width, channels\], got \(28, 28, 1\)"):
        mj.models.Conv4(5, rngs=nnx.Rngs(0))(jnp.ones((28, 28, 1)))
    with pytest.raises(ValueError, match=r"of shape 28×28×1, got images of shape 28×28×3"):
        mj.models.Conv4(5, rngs=nnx.Rngs(0))(jnp.ones((2, 28, 28, 3)))


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x))
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=False)(x))


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(self.first(x))))


def pair():
    def init(rng):
        return {"w": jax.random.normal(rng, (3, 2))}

    def apply(params, x, rng=None):
        noise = 0 if rng is None else jax.random.normal(rng, (2,))
        return x @ params["w"] + noise

    return init, apply


KINDS = {
    "nnx": lambda: mj.functional(NnxModel(nnx.Rngs(0))),
    "linen": lambda: mj.functional(
        LinenModel(), {"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.ones((1, 3))
    ),
    "pair": lambda: mj.functional(pair(), jax.random.key(0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_becomes_a_pure_function(kind):
    apply, params = KINDS[kind]()
    x = jax.random.normal(jax.random.key(2), (8, 3))
    run = jax.jit(apply)
    a, b = run(params, x, jax.random.key(0)), run(params, x, jax.random.key(1))
    np.testing.assert_array_equal(a, run(params, x, jax.random.key(0)), "pure: nothing is remembered")
    assert not np.allclose(a, b), "the key feeds the noise"
    zeros = jax.tree.map(jnp.zeros_like, params)
    if kind != "pair":
        np.testing.assert_allclose(
            run(zeros, x, jax.random.key(0)), 0, atol=1e-6, err_msg="all parameters are arguments"
        )
    gradient = jax.grad(lambda p: apply(p, x, jax.random.key(0))[:, 0].sum())(params)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_can_be_meta_trained(kind):
    import optax

    apply, params = KINDS[kind]()
    learner = mj.maml(mj.classification_loss(apply), mj.inner_loop(optax.sgd(0.1), 2))
    x, y = jax.random.normal(jax.random.key(2), (4, 3)), jnp.array([0, 1, 0, 1])
    estimate = learner.gradient(params, mj.Task(mj.Batch(x, y), mj.Batch(x, y)), jax.random.key(0), ())
    assert jax.tree.structure(estimate.gradient) == jax.tree.structure(params)
    assert np.isfinite(estimate.metrics["loss"])


def test_linen_without_other_collections_or_keys():
    apply, params = mj.functional(linen.Dense(2), jax.random.key(0), jnp.ones((1, 3)))
    np.testing.assert_allclose(apply(params, jnp.ones((4, 3))), jnp.ones((4, 3)) @ params["kernel"], rtol=1e-6)


class Flagged(linen.Module):
    """As Flax's tutorials write it: a flag behind the input."""

    @linen.compact
    def __call__(self, x, train, scale=1.0):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        return scale * linen.Dropout(0.5, deterministic=not train)(linen.Dense(2)(x))


class DropoutFlag(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        return linen.Dropout(0.5, deterministic=not train)(linen.Dense(2)(x))


class NnxFlag(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(3, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, *, train):
        return self.dropout(self.linear(x), deterministic=not train)


@pytest.mark.parametrize("given", ["position", "keyword"])
@pytest.mark.parametrize("train", [True, False])
def test_arguments_behind_the_input_are_passed_on_at_each_call(given, train):
    arguments, options = ((train,), {}) if given == "position" else ((), {"train": train})
    apply, params = mj.functional(DropoutFlag(), jax.random.key(0), jnp.ones((1, 3)), *arguments, **options)
    a, b = (apply(params, jnp.ones((20, 3)), jax.random.key(seed)) for seed in (1, 2))
    assert np.array_equal(a, b) != train, "the flag decides whether there is noise"


@pytest.mark.parametrize("train", [True, False])
def test_an_nnx_module_gets_its_flags_by_keyword(train):
    apply, params = mj.functional(NnxFlag(nnx.Rngs(0)), train=train)
    a, b = (apply(params, jnp.ones((20, 3)), jax.random.key(seed)) for seed in (1, 2))
    assert np.array_equal(a, b) != train


def test_more_arguments_reach_a_linen_module_with_other_collections():
    x = jax.random.normal(jax.random.key(1), (8, 3))
    one, two = (mj.functional(Flagged(), jax.random.key(0), x, True, scale=scale) for scale in (1.0, 2.0))
    key = jax.random.key(2)
    np.testing.assert_allclose(2 * one[0](one[1], x, key), two[0](one[1], x, key), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, r"an NNX module, a Linen module or a pair .* got int"),
        ((linen.Dense,), TypeError, "got the class Dense: make an instance"),
        ((linen.Dense(1),), TypeError, "needs a key and an example input.* got 0 arguments"),
        ((linen.Dense(1), jax.random.key(0)), TypeError, "needs a key and an example input.* got 1 argument "),
        ((linen.Dense(1), "0", jnp.ones((1, 3))), TypeError, r"a key .* is expected, got '0'"),
        (
            (linen.Dense(1), jnp.ones((1, 3)), jax.random.key(0)),
            TypeError,
            r"a key .* is expected, got float32\[1, 3\]",
        ),
        ((linen.Dropout(0.5, deterministic=True), jax.random.key(0), jnp.ones(3)), ValueError, "has no parameters"),
        ((nnx.Dropout(0.5),), ValueError, "Dropout has no parameters"),
        ((nnx.Linear(3, 1, rngs=nnx.Rngs(0)), jax.random.key(0)), TypeError, "has its parameters already"),
        (((dict, lambda params, x, rng: x),), ValueError, "the pair has no parameters"),
        (((lambda: {"n": 3}, lambda params, x, rng: x),), ValueError, "parameter 'n' of the pair is 3"),
        (((lambda: {"n": jnp.arange(2)}, lambda params, x, rng: x),), ValueError, r"'n' of the pair is int32\[2\]"),
        ((stax.Dense(1), jax.random.key(0), (-1, 3)), TypeError, r"apply\(params, x, rng\), but it takes \(params, in"),
        (
            (((stax.Dense(1)[0]), lambda params, x, rng: x), jax.random.key(0), (-1, 3)),
            ValueError,
            "parameter '0/0' of the pair is -1",
        ),
        (((lambda: {"w": 1.0}, lambda params, rng, x: x),), TypeError, "change the order"),
        (((lambda: {"w": 1.0}, lambda params, x: x),), TypeError, r"but it takes \(params, x\): wrap it"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        mj.functional(*arguments)


def test_an_error_of_a_pair_says_what_it_was_called_with():
    """For example a Haiku model whose arguments hide that `rng` comes second."""
    apply, params = mj.functional((lambda: {"w": jnp.ones((3, 1))}, lambda params, *others: others[1] @ params["w"]))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        apply(params, jnp.ones((2, 3)), jax.random.key(0))
    expected = "with params = {w: float32[3, 1]}, x = float32[2, 3], rng = key<fry>[]"
    assert any(expected in note for note in caught.value.__notes__)


def test_pairs_of_haiku_and_stax_run_as_the_docstring_says():
    haiku = (lambda rng, x: {"w": jnp.ones((3, 1))}, lambda params, rng, x: x @ params["w"])
    stax_pair = stax.Dense(1)
    pairs = [
        ((haiku[0], lambda params, x, rng: haiku[1](params, rng, x)), jnp.ones((2, 3))),
        ((lambda *a: stax_pair[0](*a)[1], lambda params, x, rng: stax_pair[1](params, x, rng=rng)), (-1, 3)),
    ]
    for pair_, example in pairs:
        apply, params = mj.functional(pair_, jax.random.key(0), example)
        assert apply(params, jnp.ones((2, 3)), jax.random.key(1)).shape == (2, 1)


class StackedBlock(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.dropout = nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(jax.nn.relu(self.linear(x)))


class Stacked(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(StackedBlock, in_axes=(0,), out_axes=0))(rngs)

    def __call__(self, x):
        return nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


def test_stacked_layers_have_noise_of_their_own():
    apply, params = mj.functional(Stacked(nnx.Rngs(0)))
    params = jax.tree.map(jnp.zeros_like, params)
    params["blocks"]["linear"]["bias"] += 1.0  # each block adds 2 where its mask lets it
    x = jnp.zeros((500, 4))
    a, b = (apply(params, x, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(a, apply(params, x, jax.random.key(0)))
    assert not np.array_equal(a, b)
    shares = [float((a == value).mean()) for value in (0.0, 2.0, 4.0, 6.0)]
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 3 / 8, 1 / 8], atol=0.05)


def test_dropout_alone_is_switched_off_as_the_docstring_says():
    net = NnxModel(nnx.Rngs(0))
    noisy, params = mj.functional(net)
    net.set_attributes(nnx.Dropout, deterministic=True)
    still, _ = mj.functional(net)
    x = jax.random.normal(jax.random.key(2), (8, 3))
    a, b = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(still(params, x, a), still(params, x, b))
    assert not np.allclose(noisy(params, x, a), noisy(params, x, b)), "the first pair stays as it was"
    hidden = net.first(x)
    hidden = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-5)
    np.testing.assert_allclose(still(params, x, a), net.last(hidden), rtol=1e-4, atol=1e-5)


def evaluated() -> nnx.Module:
    net = NnxModel(nnx.Rngs(0))
    net.eval()
    return net


@pytest.mark.parametrize("make", [
    lambda: mj.functional(evaluated()),
    lambda: mj.functional(Flagged(), jax.random.key(0), jnp.ones((1, 3)), False),
    lambda: mj.functional(Flagged(), jax.random.key(0), jnp.ones((1, 3)), train=False),
], ids=["nnx", "linen", "linen by keyword"])  # fmt: skip
def test_running_statistics_that_were_never_updated_are_refused(make):
    apply, params = make()
    x = jnp.ones((4, 3))
    for run in (apply, jax.jit(apply)):
        with pytest.raises(ValueError, match=r"\((norm|BatchNorm_0)\) would use running statistics, which still have"):
            run(params, x)


def test_running_statistics_that_were_updated_are_a_warning():
    net = NnxModel(nnx.Rngs(0))
    net(jax.random.normal(jax.random.key(1), (8, 3)))
    net.eval()
    apply, params = mj.functional(net)
    with pytest.warns(UserWarning, match=r"\(norm\) uses running statistics, which metajax holds constant"):
        out = apply(params, jnp.ones((4, 3)))
    np.testing.assert_allclose(out, net(jnp.ones((4, 3))), rtol=1e-5)


def test_streams_of_noise_are_independent():
    class TwoStreams(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))
            self.a = nnx.Dropout(0.5, rngs=rngs, rng_collection="a")
            self.b = nnx.Dropout(0.5, rngs=rngs, rng_collection="b")

        def __call__(self, x):
            return jnp.stack([self.a(x), self.b(x)])

    apply, params = mj.functional(TwoStreams(nnx.Rngs(params=0, a=1, b=2)))
    a, b = apply(params, jnp.ones(1000), jax.random.key(0))
    assert 0.4 < float((a == b).mean()) < 0.6


def test_a_vit_sees_each_example_alone_and_the_order_of_its_patches():
    module = mj.models.ViT(3, image_shape=(8, 8, 1), patch=4, width=16, layers=1, heads=2, rngs=nnx.Rngs(0))
    apply, params = mj.functional(module)
    model = jax.jit(functools.partial(apply, params))
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    np.testing.assert_allclose(model(x)[2:3], model(x[2:3]), rtol=1e-4, atol=1e-5)
    swapped = jnp.concatenate([x[:, :, 4:], x[:, :, :4]], axis=2)
    assert not np.allclose(model(x), model(swapped), atol=1e-3)


@pytest.mark.parametrize(("options", "message"), [({"heads": 3}, "heads"), ({"patch": 3}, "patch")])
def test_a_vit_that_does_not_divide_its_image_or_width_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mj.models.ViT(3, image_shape=(8, 8, 1), width=16, **{"patch": 4, "heads": 2, **options}, rngs=nnx.Rngs(0))
