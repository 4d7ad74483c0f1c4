"""Episodes, glyphs and sinusoids: what every task must satisfy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metajax as mj
from metajax.tasks import draw_without_replacement
from metajax.tasks.episodes import draw_episode, rotate

pytestmark = pytest.mark.usefixtures("compiled_fast")


def numbered_bank(counts: list[int]) -> mj.ClassBank:
    """Every image is 2×2 and says which example it is, in base 250, and which class: all in one corner each."""
    total = sum(counts)
    rows = np.arange(total)
    classes = np.repeat(np.arange(len(counts)), counts)
    images = np.zeros((total, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0], images[:, 1, 0, 0] = rows % 250, rows // 250, classes
    counts = np.array(counts, np.int32)
    return mj.ClassBank(images, (np.cumsum(counts) - counts).astype(np.int32), counts)


def read(batch: mj.Batch) -> tuple[np.ndarray, np.ndarray]:
    """Example numbers and classes of a batch of numbered images."""
    pixels = np.rint(np.asarray(batch.x) * 255).astype(int)[..., 0]
    return pixels[:, 0, 0] + 250 * pixels[:, 0, 1], pixels[:, 1, 0]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_episodes_keep_support_and_query_apart(data):
    shots, queries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(shots + queries, 12), min_size=2, max_size=8))
    ways = data.draw(st.integers(1, len(counts)))
    task = mj.episodes(numbered_bank(counts), ways=ways, shots=shots, queries=queries)(
        jax.random.key(data.draw(st.integers(0, 2**31)))
    )
    (support, support_class), (query, query_class) = read(task.support), read(task.query)
    assert len({*support.tolist(), *query.tolist()}) == ways * (shots + queries), "no example twice"
    labels = {}
    for label, cls in zip(
        [*task.support.y.tolist(), *task.query.y.tolist()], [*support_class, *query_class], strict=True
    ):
        assert labels.setdefault(label, cls) == cls, "a label is one class"
    assert sorted(labels) == list(range(ways))
    assert len(set(labels.values())) == ways, "a class has one label"
    assert np.bincount(task.support.y, minlength=ways).tolist() == [shots] * ways
    assert np.bincount(task.query.y, minlength=ways).tolist() == [queries] * ways
    starts = np.cumsum(counts) - counts
    for example, cls in zip([*support, *query], [*support_class, *query_class], strict=True):
        assert starts[cls] <= example < starts[cls] + counts[cls], "an example is of its class"


def test_every_class_label_order_and_example_is_equally_likely():
    """Classes of 3, 5 and 40 examples: χ² on labels, on classes and on the examples of the largest."""
    bank = numbered_bank([3, 5, 40])
    sample = jax.jit(jax.vmap(mj.episodes(bank, ways=2, shots=1, queries=1)))
    tasks = sample(jax.random.split(jax.random.key(0), 6000))
    support = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tasks.support)
    examples, classes = read(support)
    expected = 12000 / 6
    table = np.array([[np.sum((classes == c) & (np.asarray(support.y) == y)) for y in range(2)] for c in range(3)])
    assert ((table - expected) ** 2 / expected).sum() < 25, "χ² with 5 degrees of freedom, p < 0.0002"
    largest = np.bincount(examples[classes == 2] - 8, minlength=40)
    assert ((largest - largest.mean()) ** 2 / largest.mean()).sum() < 80, "39 degrees of freedom"
    first = np.asarray(tasks.support.y)[:, 0].mean()
    assert abs(first - 0.5) < 0.03, "the order of the examples does not tell the label"


def test_rotated_classes_are_classes():
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 1), np.uint8)
    bank = mj.ClassBank(images, np.array([0, 2]), np.array([2, 2]))
    sample = mj.episodes(bank, ways=8, shots=1, queries=1, rotations=True)
    task = sample(jax.random.key(0))
    turned = {
        np.rot90(image, turns).tobytes(): (row // 2, turns) for row, image in enumerate(images) for turns in range(4)
    }
    found = {}
    for batch in task:
        for image, label in zip(np.rint(np.asarray(batch.x) * 255).astype(np.uint8), batch.y.tolist(), strict=True):
            assert found.setdefault(label, turned[image.tobytes()]) == turned[image.tobytes()]
    assert len(set(found.values())) == 8


@settings(deadline=None, max_examples=40)
@given(population=st.integers(1, 30), data=st.data())
def test_draws_are_distinct_and_in_range(population, data):
    draws = data.draw(st.integers(1, population))
    seed = data.draw(st.integers(0, 2**31))
    drawn = draw_without_replacement(jax.random.key(seed), jnp.int32(population), draws)
    assert len(set(drawn.tolist())) == draws
    assert all(0 <= each < population for each in drawn.tolist())


def test_every_ordered_draw_is_equally_likely():
    draws = jax.vmap(partial(draw_without_replacement, population=4, draws=2))(
        jax.random.split(jax.random.key(1), 12000)
    )
    table = np.zeros((4, 4))
    np.add.at(table, tuple(np.asarray(draws).T), 1)
    off_diagonal = table[~np.eye(4, dtype=bool)]
    assert np.trace(table) == 0
    assert ((off_diagonal - 1000) ** 2 / 1000).sum() < 35, "χ² with 11 degrees of freedom"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ways": 4, "shots": 1, "queries": 1}, "ways = 4, but the bank has only 3 classes"),
        ({"ways": 2, "shots": 2, "queries": 2}, "shots \\+ queries = 2 \\+ 2 = 4, but class 0 .* only 3 examples"),
        ({"ways": 2, "shots": 0, "queries": 2}, "shots must be at least 1, got 0"),
    ],
)
def test_sizes_that_the_bank_has_not_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        mj.episodes(numbered_bank([3, 5, 9]), **sizes)


@pytest.mark.parametrize("starts", [[0, 3, 9], [-1, 2, 7], [0, 3]])
def test_a_bank_whose_classes_lie_outside_its_images_is_refused(starts):
    """An accelerator would clamp the rows, and show other images."""
    bank = numbered_bank([3, 5, 9])._replace(starts=np.array(starts))
    with pytest.raises(ValueError, match="the bank has 17 images, but"):
        mj.episodes(bank, ways=2, shots=1, queries=1)


def test_transforms_get_a_key_for_each_image():
    bank = mj.ClassBank(np.zeros((8, 2, 2, 1), np.uint8), np.array([0, 4]), np.array([4, 4]))
    sample = mj.episodes(bank, ways=2, shots=2, queries=2, transform=lambda x, rng: x + jax.random.uniform(rng))
    task = sample(jax.random.key(0))
    noise = np.concatenate([task.support.x[:, 0, 0, 0], task.query.x[:, 0, 0, 0]])
    assert len(set(noise.tolist())) == 8


def test_augmentations_move_and_mirror():
    image = jnp.arange(9.0).reshape(3, 3, 1)
    flipped = jax.vmap(mj.tasks.flip, (None, 0))(image, jax.random.split(jax.random.key(0), 200))
    mirrored = np.array([bool((each == image[:, ::-1]).all()) for each in flipped])
    same = np.array([bool((each == image).all()) for each in flipped])
    assert (mirrored ^ same).all()
    assert 60 < mirrored.sum() < 140
    shifted = jax.vmap(mj.tasks.shift(1), (None, 0))(image, jax.random.split(jax.random.key(0), 200))
    assert len({each.tobytes() for each in np.asarray(shifted)}) == 9, "all nine positions"
    np.testing.assert_array_equal(mj.tasks.chain(mj.tasks.invert, mj.tasks.invert)(image, jax.random.key(0)), image)


def test_augmentations_refuse_a_batch_of_images():
    images = jnp.ones((2, 3, 3, 1))
    for transform in (mj.tasks.flip, mj.tasks.shift(1)):
        with pytest.raises(AssertionError, match=r"image must be one image \[height, width, channels\]"):
            transform(images, jax.random.key(0))


def test_the_shapes_of_an_episode_are_checked():
    options = {"ways": 2, "shots": 1, "queries": 1, "rotations": False, "transform": None}
    starts, key = jnp.array([0, 2]), jax.random.key(0)
    for counts in (jnp.array([2, 2, 2]), jnp.array([[2, 2]])):
        with pytest.raises(AssertionError, match=r"starts and counts must be \[classes\]"):
            draw_episode(starts, counts, key, **options)
    episode = draw_episode(starts, jnp.array([2, 2]), key, **options)
    for images in (jnp.ones((3, 8, 8, 1)), jnp.ones((4, 8, 8))):
        with pytest.raises(AssertionError, match=r"images must be \[rows, height, width, channels\]"):
            episode.of(images)


@pytest.mark.parametrize(("shape", "message"), [((3, 3), "height, width, channels"), ((3, 2, 1), "must be square")])
def test_only_square_images_are_rotated(shape, message):
    with pytest.raises(AssertionError, match=message):
        rotate(jnp.ones(shape), jnp.array(1))


def test_sinusoids_are_what_they_say():
    tasks = jax.vmap(mj.sinusoid(5, 7))(jax.random.split(jax.random.key(0), 2000))
    x = np.concatenate([tasks.support.x, tasks.query.x], 1)[..., 0]
    y = np.concatenate([tasks.support.y, tasks.query.y], 1)[..., 0]
    for xs, ys in zip(x[:50], y[:50], strict=True):  # y = a sin x + b cos x: two unknowns, twelve equations
        basis = np.stack([np.sin(xs), np.cos(xs)], 1)
        (s, c), *_ = np.linalg.lstsq(basis, ys)
        np.testing.assert_allclose(basis @ [s, c], ys, atol=1e-4)
        amplitude, phase = np.hypot(s, c), np.arctan2(-c, s)
        assert 0.1 - 1e-3 <= amplitude <= 5 + 1e-3
        assert -1e-2 <= phase <= np.pi + 1e-2
    assert x.min() < -4.9
    assert x.max() > 4.9
    assert np.abs(x).max() <= 5


def test_glyphs_are_characters():
    """Drawings of one character are nearer to each other than to those of others; drawers do differ."""
    sample = jax.jit(mj.glyphs(ways=5, shots=1, queries=3))
    right = 0
    for i in range(40):
        task = sample(jax.random.key(i))
        assert 0 <= float(task.support.x.min()) <= float(task.support.x.max()) <= 1
        ink = np.asarray(task.query.x).reshape(15, -1).sum(1)
        assert (ink > 5).all(), "no blank drawing"
        assert (ink < 300).all()
        support = np.asarray(task.support.x).reshape(5, -1)
        query = np.asarray(task.query.x).reshape(15, -1)
        nearest = ((query[:, None] - support[None]) ** 2).sum(-1).argmin(1)
        right += (np.asarray(task.support.y)[nearest] == np.asarray(task.query.y)).mean() / 40
    assert 0.4 < right < 0.95, "pixels tell something, and not all"


def test_glyphs_without_drawers_are_identical():
    task = jax.jit(mj.glyphs(ways=2, shots=2, queries=1, drawer=0.0))(jax.random.key(0))
    a, b = np.asarray(task.support.x)[np.asarray(task.support.y) == 0]
    np.testing.assert_array_equal(a, b)


def test_the_oracle_is_told_what_makes_the_task():
    task = mj.sinusoid(shots=5, queries=7, oracle=True)(jax.random.key(3))
    x, amplitude, phase = task.query.x.T
    np.testing.assert_allclose(task.query.y[:, 0], amplitude * np.sin(x - phase), rtol=1e-5, atol=1e-5)
    blind = mj.sinusoid(shots=5, queries=7)(jax.random.key(3))
    np.testing.assert_array_equal(blind.query.x[:, 0], x)


def float_bank(images, counts=(4, 4)) -> mj.ClassBank:
    counts = np.array(counts)
    return mj.ClassBank(images, np.cumsum(counts) - counts, counts)


LEVELS = np.linspace(0, 1, 8 * 4).reshape(8, 2, 2, 1)
EPISODE = {"ways": 2, "shots": 2, "queries": 2}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("on_device", [False, True])
def test_float_images_are_taken_as_they_are(dtype, on_device):
    images = LEVELS.astype(jnp.dtype(dtype))
    task = mj.episodes(float_bank(jnp.asarray(images) if on_device else images), **EPISODE)(jax.random.key(0))
    drawn = np.concatenate([task.support.x, task.query.x])
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(np.sort(drawn.ravel()), np.sort(images.astype(np.float32).ravel()))


def test_a_bank_of_bytes_and_of_their_floats_give_the_same_tasks():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), np.uint8)
    tasks = [
        mj.episodes(float_bank(images), **EPISODE)(jax.random.key(0)) for images in (pixels, np.float32(pixels / 255))
    ]
    for a, b in zip(*map(jax.tree.leaves, tasks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def changed(value: float) -> np.ndarray:
    images = LEVELS.copy()
    images[5, 1, 0, 0] = value
    return images


BAD_BANKS = [
    (float_bank(changed(np.nan)), "image 5 of .* has NaN or infinite values"),
    (float_bank(changed(np.nan).astype(np.float16)), "image 5 of .* has NaN or infinite values"),
    (float_bank(changed(np.nan).astype(jnp.bfloat16)), "image 5 of .* has NaN or infinite values"),
    (float_bank(changed(np.inf)), "image 5 of .* has NaN or infinite values"),
    (float_bank(jnp.asarray(changed(-np.inf))), "image 5 of .* has NaN or infinite values"),
    (float_bank(LEVELS * 255), r"are floats from 0 to 255, and floats must be in \[0, 1\]: divide them by 255"),
    (float_bank(LEVELS * 2 - 1), r"are floats from -1 to 1, .*: scale them, and normalise in `transform`"),
    (float_bank(np.zeros((8, 2, 2, 1), np.int64)), r"must be uint8 in \[0, 255\] or floats in \[0, 1\], got int64"),
    (float_bank(np.zeros((8, 2, 2, 1), bool)), "got bool"),
    (float_bank(np.zeros((8, 2, 2, 1), np.complex64)), "got complex64"),
    (float_bank(np.zeros((8, 2, 2), np.uint8)), r"must be \[examples, height, width, channels\], got the shape"),
    (
        float_bank(LEVELS)._replace(counts=np.array([4.0, 4.0])),
        r"counts of .* must be integers \[classes\], got float64",
    ),
    (float_bank(LEVELS)._replace(starts=np.array([[0, 4]])), r"starts of .* must be integers \[classes\], got int64"),
    (float_bank(LEVELS)._replace(starts=np.array([0])), "8 images, but its classes do not lie within them"),
    (float_bank(LEVELS)._replace(starts=np.array([0, 6])), "8 images, but its classes do not lie within them"),
    (float_bank(LEVELS)._replace(counts=np.array([9, -1])), "8 images, but its classes do not lie within them"),
    (float_bank(LEVELS, ()), "has no classes"),
]


@pytest.mark.parametrize("make", [mj.episodes, mj.host_episodes])
@pytest.mark.parametrize(("bank", "said"), BAD_BANKS)
def test_banks_that_make_no_sense_are_refused(make, bank, said):
    with pytest.raises(ValueError, match=said) as info:
        make(bank, **EPISODE)
    assert "the bank" in str(info.value)


@pytest.mark.parametrize(("bank", "said"), BAD_BANKS)
def test_domains_that_make_no_sense_are_refused(bank, said):
    good = mj.tasks.Domain(float_bank(LEVELS))
    with pytest.raises(ValueError, match=said) as info:
        mj.varied_episodes([good, mj.tasks.Domain(bank)], min_ways=2, max_ways=2)
    assert "domain 1" in str(info.value)


@pytest.mark.parametrize("mixed", [False, True])
def test_domains_of_float_images(mixed):
    """Also beside one of bytes, whose images are then divided by 255 and no others."""
    pixels = np.full((8, 2, 2, 1), 51, np.uint8)
    banks = [float_bank(np.full((8, 2, 2, 1), 0.4, np.float32)), float_bank(pixels if mixed else pixels / 255)]
    sampler = mj.varied_episodes(
        [mj.tasks.Domain(b) for b in banks], min_ways=2, max_ways=2, max_support=4, max_queries=2
    )
    for index, level in enumerate((0.4, 0.2)):
        task = mj.tasks.one_domain(sampler, index)(jax.random.key(0))
        assert task.support.x.dtype == np.float32
        np.testing.assert_allclose(task.support.x, level, rtol=1e-6)
