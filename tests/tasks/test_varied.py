"""Episodes of varying ways and shots: counts, masks, domains, and padding that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import metajax as mj
from metajax.tasks import Domain, one_domain, varied_episodes
from metajax.tasks.varied import _sizes, _table

pytestmark = pytest.mark.usefixtures("compiled_fast")


def numbered(counts: list[int], domain: int = 0, rows: int | None = None) -> mj.ClassBank:
    """Images that say which example they are, in base 250, of which class and of which domain; `rows` of them."""
    total = sum(counts)
    images = np.zeros((rows or total, 2, 2, 1), np.uint8)
    images[:total, 0, 0, 0], images[:total, 0, 1, 0] = np.arange(total) % 250, np.arange(total) // 250
    images[:total, 1, 0, 0], images[:total, 1, 1, 0] = np.repeat(np.arange(len(counts)), counts), domain
    return mj.ClassBank(images, np.cumsum(counts) - counts, np.array(counts))


def read(batch: mj.Batch) -> np.ndarray:
    """`[real examples, (example, class, domain, label)]`."""
    pixels = np.rint(np.asarray(batch.x) * 255).astype(int)[..., 0]
    columns = [pixels[:, 0, 0] + 250 * pixels[:, 0, 1], pixels[:, 1, 0], pixels[:, 1, 1], np.asarray(batch.y)]
    return np.stack(columns, 1)[np.asarray(batch.mask)]


SIZES = [
    {"min_ways": 1, "max_ways": 6, "max_support": 9, "max_queries": 4},
    {"min_ways": 3, "max_ways": 4, "max_support": 30, "max_queries": 2, "max_support_per_class": 5},
]


@pytest.fixture(scope="module", params=SIZES)
def draw(request):
    """One compiled program for any two domains of 8 and 5 classes of 2 to 12 examples: twenty of their episodes."""
    sampler = varied_episodes([Domain(numbered([12] * 8, 0)), Domain(numbered([12] * 5, 1))], **request.param)
    compiled = jax.jit(lambda sample, keys: jax.vmap(sample)(keys))

    def run(counts, seed):
        domains = [Domain(numbered(each, i, 12 * len(each))) for i, each in enumerate(counts)]
        own = jax.tree_util.Partial(sampler.func, _table(domains))
        return jax.device_get(compiled(own, jax.random.split(jax.random.key(seed), 20)))

    return run, request.param


@settings(deadline=None, max_examples=25)
@given(
    first=st.lists(st.integers(2, 12), min_size=8, max_size=8),
    second=st.lists(st.integers(2, 12), min_size=5, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_an_episode_is_what_the_protocol_says(draw, first, second, seed):
    run, sizes = draw
    counts = [first, second]
    tasks = run(counts, seed)
    for i in range(20):
        check_episode(jax.tree.map(lambda leaf, i=i: leaf[i], tasks), counts, **sizes)
    assert len({int(pixels) for pixels in np.rint(tasks.support.x[:, 0, 1, 1, 0] * 255)}) == 2, "both domains"


def check_episode(task, counts, *, min_ways, max_ways, max_support, max_queries, max_support_per_class=100):
    assert task.support.x.shape == (max_support, 2, 2, 1)
    assert task.query.x.shape == (max_ways * max_queries, 2, 2, 1)
    support, query = read(task.support), read(task.query)
    both = np.concatenate([support, query])
    domain, ways = both[0, 2], both[:, 3].max() + 1
    assert (both[:, 2] == domain).all(), "one domain"
    assert min_ways <= ways <= min(max_ways, len(counts[domain]))
    assert len({*both[:, 0].tolist()}) == len(both), "no example twice, so none in both sets"
    assert len({(label, cls) for _, cls, _, label in both.tolist()}) == ways, "a label is a class and a class a label"
    assert len({*both[:, 1].tolist()}) == ways
    sizes = np.array([counts[domain][both[both[:, 3] == label, 1][0]] for label in range(ways)])
    per_class = np.bincount(query[:, 3], minlength=ways)
    assert (per_class == min(max_queries, (sizes // 2).min())).all(), "queries are balanced"
    shots = np.bincount(support[:, 3], minlength=ways)
    assert (shots >= 1).all()
    assert (shots <= sizes - per_class).all()
    assert len(support) <= ways * max_support_per_class
    starts = np.cumsum(counts[domain]) - counts[domain]
    assert (both[:, 0] - starts[both[:, 1]] < np.array(counts[domain])[both[:, 1]]).all(), "an example is of its class"
    for batch, real in [(task.support, support), (task.query, query)]:
        assert batch.mask.tolist() == [True] * len(real) + [False] * (len(batch.y) - len(real))
        everything = read(batch._replace(mask=np.ones_like(batch.mask)))
        assert {*map(tuple, everything)} == {*map(tuple, real)}, "padding repeats real examples"


SIZES_OF_CLASSES = jax.jit(_sizes, static_argnums=(3, 4))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(2, 300), min_size=2, max_size=6), st.integers(0, 2**31), st.integers(6, 80))
def test_sizes_are_those_of_the_equations(sizes, seed, max_support):
    """The same uniform numbers, in numpy's double precision, give the same sizes."""
    n, padded = np.array(sizes), np.array(sizes + [0] * (8 - len(sizes)))
    shots, queries = SIZES_OF_CLASSES(jax.random.key(seed), padded, max_support, 100, 10)
    beta_key, alpha_key = jax.random.split(jax.random.key(seed))
    beta = 1 - float(jax.random.uniform(beta_key))
    alpha = np.asarray(jax.random.uniform(alpha_key, (8,), minval=np.log(0.5), maxval=np.log(2)), float)
    q = min(10, (n // 2).min())
    total = min(max_support, np.ceil(beta * np.minimum(100, n - q)).sum())
    ratio = n * np.exp(alpha[: len(n)])
    exact = ratio / ratio.sum() * (total - len(n))
    assert int(queries) == q
    assert (np.asarray(shots)[len(n) :] == 0).all()
    near_a_whole_number = np.abs(exact - np.rint(exact)) < 1e-4
    expected = np.minimum(np.floor(exact) + 1, n - q)
    assert ((np.asarray(shots)[: len(n)] == expected) | near_a_whole_number).all()


DRAW = jax.jit(lambda sample, keys: jax.vmap(sample)(keys))


@pytest.fixture(scope="module")
def two_domains():
    domains = [Domain(numbered([4] * 7, 0)), Domain(numbered([9] * 30, 1))]
    return varied_episodes(domains, min_ways=2, max_ways=5, max_support=20, max_queries=2)


def test_domains_ways_and_classes_are_equally_likely(two_domains):
    tasks = DRAW(two_domains, jax.random.split(jax.random.key(0), 4000))
    firsts = np.rint(np.asarray(tasks.support.x)[:, 0, :, :, 0] * 255).astype(int)
    domains = firsts[:, 1, 1]
    assert abs(domains.mean() - 0.5) < 0.03, "two domains, each one time in two, whatever their sizes"
    ways = np.asarray(tasks.support.y).max(1) + 1
    for domain in range(2):
        table = np.bincount(ways[domains == domain], minlength=6)[2:]
        assert ((table - table.mean()) ** 2 / table.mean()).sum() < 22, "χ² with 3 degrees of freedom, p < 0.0001"
        classes = np.bincount(firsts[domains == domain, 1, 0])
        assert ((classes - classes.mean()) ** 2 / classes.mean()).sum() < 80, "at most 29 degrees of freedom"
    for label in range(2):
        both = np.asarray(tasks.query.y)[:, 0] == label
        assert both.mean() > 0.2, "the first example may be of any class"


def test_one_domain_is_only_that_one_and_shares_images_and_program(two_domains):
    before = DRAW._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    for index in range(2):
        alone = one_domain(two_domains, index)
        assert jax.tree.leaves(alone)[0] is jax.tree.leaves(two_domains)[0]
        tasks = DRAW(alone, jax.random.split(jax.random.key(1), 4000))
        assert (np.rint(np.asarray(tasks.query.x)[:, :, 1, 1] * 255) == index).all()
        assert len({*np.asarray(tasks.support.mask).sum(1).tolist()}) > 5
    assert DRAW._cache_size() <= max(before, 1), "one program for all domains, ways and shots"  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(IndexError, match="there are 2 domains"):
        one_domain(two_domains, 2)
    with pytest.raises(TypeError, match="made by varied_episodes"):
        one_domain(mj.sinusoid(), 0)


def test_each_domain_has_its_own_transform_and_its_own_turns():
    images = np.random.default_rng(0).integers(1, 255, (4, 5, 5, 1), np.uint8)
    bank = mj.ClassBank(images, np.array([0, 2]), np.array([2, 2]))
    domains = [Domain(bank, transform=lambda x, rng: -x), Domain(bank, rotations=True)]
    sampler = varied_episodes(domains, min_ways=2, max_ways=8, max_support=8, max_queries=1)
    turned = {np.rot90(image, k).tobytes(): (row // 2, k) for row, image in enumerate(images) for k in range(4)}
    most = 0
    draw = jax.jit(lambda sample, rng: sample(rng))
    for i in range(12):
        task = draw(one_domain(sampler, 1), jax.random.key(i))
        pixels = np.rint(np.asarray(task.support.x) * 255).astype(np.uint8)
        found = {(label, turned[each.tobytes()]) for label, each in zip(task.support.y.tolist(), pixels, strict=True)}
        assert len({cls for _, cls in found}) == len(found) == int(task.support.y.max()) + 1
        most = max(most, len(found))
        assert float(draw(one_domain(sampler, 0), jax.random.key(i)).support.x.max()) < 0
    assert most > 2, "turned classes are classes too"


class Net(nnx.Module):
    """A convolution, a normalisation and a head of five outputs."""

    def __init__(self, norm):
        rngs = nnx.Rngs(0)
        self.conv, self.head = mj.models.Conv(1, 4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)
        self.norm = norm(4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def all_of(norm, mixed_mode):
    """`task -> (loss, adapted parameters, meta-gradient and metrics)`."""
    apply, params = mj.functional(Net(norm))
    loss_fn = mj.classification_loss(apply, varied_ways=True)
    learner = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.3), 1, mixed_mode=mixed_mode))

    @jax.jit
    def run(task):
        key = jax.random.key(1)
        loss, adapted = loss_fn(params, task.query, key)[0], learner.adapt(params, task.support, key).params
        return loss, adapted, learner.gradient(params, task, key, ())

    return run


def padded_and_alone():
    """An episode, and the same one of its real examples only; some classes are bright and some dark."""
    images = (
        np.random.default_rng(0).integers(0, 255, (60, 6, 6, 1), np.uint8) // np.repeat([1, 9], 30)[:, None, None, None]
    )
    images = images.astype(np.uint8)
    bank = mj.ClassBank(images, np.arange(6) * 10, np.full(6, 10))
    sampler = varied_episodes([Domain(bank)], min_ways=3, max_ways=5, max_support=25, max_queries=3)
    task = jax.device_get(jax.jit(lambda sample, rng: sample(rng))(sampler, jax.random.key(3)))
    alone = mj.Task(*(mj.Batch(batch.x[batch.mask], batch.y[batch.mask]) for batch in task))
    assert len(alone.support.y) < 25
    assert len(alone.query.y) < 15
    return task, alone


@pytest.mark.parametrize("mixed_mode", [False, True])
def test_padding_changes_nothing_with_group_normalisation(mixed_mode):
    """Loss, adapted parameters and meta-gradient of a padded episode are those of its real examples alone."""
    run = all_of(mj.models.GroupNorm, mixed_mode)
    for a, b in zip(*(jax.tree.leaves(run(task)) for task in padded_and_alone()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_padding_is_seen_by_batch_normalisation():
    """Which is why an experiment refuses it."""
    apply, params = mj.functional(Net(mj.models.BatchNorm))
    loss_fn = mj.classification_loss(apply, varied_ways=True)
    padded, alone = (loss_fn(params, task.query, None)[0] for task in padded_and_alone())
    assert abs(padded - alone) > 1e-3


def test_unused_logits_neither_count_nor_learn():
    """A linear model of 5 outputs on a 3-way task is one of 3 outputs."""
    x, y = jax.random.normal(jax.random.key(0), (8, 4)), jnp.array([0, 1, 2, 2, 1, 0, 0, 1])
    weights = jax.random.normal(jax.random.key(1), (4, 5))
    few, many = (mj.classification_loss(lambda p, x, rng: x @ p, varied_ways=varied) for varied in (False, True))
    few, many = (jax.jit(jax.value_and_grad(lambda w, f=f: f(w, mj.Batch(x, y), None)[0])) for f in (few, many))
    (loss, gradient), (expected, expected_gradient) = many(weights), few(weights[:, :3])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, :3], expected_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, 3:], 0)
    unused = mj.classification_loss(lambda p, x, rng: jnp.eye(5)[jnp.full(len(x), 4)], varied_ways=True)
    assert float(unused(None, mj.Batch(x, y), None)[1]["accuracy"]) == 3 / 8, "an output that is not used is no answer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ways": 8}, "min_ways = 6, but domain 1 has only 5 classes"),
        ({"max_ways": 5}, "min_ways must be at most max_ways"),
        ({"max_ways": 40}, "max_ways at most max_support, so that each class has an example; got 6, 40 and 30"),
        ({"max_queries": 0}, "max_queries must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(options, message):
    domains = [Domain(numbered([4] * 6)), Domain(numbered([4] * 5))]
    with pytest.raises(ValueError, match=message):
        varied_episodes(domains, **{"min_ways": 6, "max_ways": 6, "max_support": 30, **options})


def test_banks_that_do_not_go_together_are_named():
    small = Domain(mj.ClassBank(np.zeros((4, 3, 3, 1), np.uint8), np.array([0, 2]), np.array([2, 2])))
    with pytest.raises(
        ValueError, match=r"images of domain 1 have shape \(3, 3, 1\), but those of domain 0 \(2, 2, 1\)"
    ):
        varied_episodes([Domain(numbered([2, 2])), small], min_ways=2, max_ways=2, max_support=4)
    with pytest.raises(ValueError, match="class 1 of domain 0 has fewer than 2 examples"):
        varied_episodes([Domain(numbered([2, 1]))], min_ways=2, max_ways=2, max_support=4)
    with pytest.raises(ValueError, match="at least one domain"):
        varied_episodes([])
