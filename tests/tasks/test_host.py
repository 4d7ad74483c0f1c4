"""Banks on the host: the same tasks as on the device, prefetched, resumed and split over devices."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import rows, run, small
from PIL import Image

import metajax as mj
from metajax.core.trainer import init_state
from metajax.errors import UserError
from metajax.experiment import run as experiment_run
from metajax.profiling import training_calls

pytestmark = pytest.mark.usefixtures("compiled_fast")

COUNTS = [6, 9, 7, 12]
SIZES = {"ways": 3, "shots": 2, "queries": 2, "rotations": True}
TRANSFORM = mj.tasks.chain(mj.tasks.invert, mj.tasks.flip, mj.tasks.shift(1))
OPTIMIZER = optax.adam(1e-2)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A bank whose images are a memory map."""
    path = tmp_path_factory.mktemp("bank") / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (sum(COUNTS), 5, 5, 1), np.uint8))
    counts = np.array(COUNTS)
    return mj.ClassBank(np.load(path, mmap_mode="r"), np.cumsum(counts) - counts, counts)


def loss_fn(params, data, rng):
    logits = data.x.reshape(len(data.y), -1) @ params
    return mj.classification_loss(lambda *_: logits)(params, data, rng)


LEARNER = mj.maml(loss_fn, mj.inner_loop(optax.sgd(0.1), 1))
PARAMS = jax.random.normal(jax.random.key(9), (25, 3)) / 5


def fresh():
    return init_state(LEARNER, OPTIMIZER, PARAMS, seed=5)


@pytest.mark.parametrize("transform", [None, TRANSFORM])
def test_a_task_is_that_of_the_device_bit_for_bit(bank, transform):
    assert isinstance(bank.images, np.memmap)
    here = mj.host_episodes(bank, transform=transform, **SIZES)
    there = mj.episodes(bank, transform=transform, **SIZES)
    rows, host, device = jax.jit(here.rows), jax.jit(here.sample), jax.jit(lambda sample, key: sample(key))
    for i in range(5):
        key = jax.random.key(i)
        a, b = host(key, bank.images[rows(key)]), device(there, key)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def test_what_is_prefetched_are_the_images_of_the_tasks_of_each_step(bank):
    """Task by task and step by step, from a state in the middle of a run."""
    tasks, state = mj.host_episodes(bank, **SIZES), fresh()._replace(step=jnp.int32(7))
    calls = list(mj.prefetch(tasks, state, 4, tasks_per_step=3, steps_per_call=2))
    assert [call.dtype for call in calls] == [np.uint8] * 2
    rows = jax.jit(tasks.rows)
    for step, images in enumerate(np.concatenate(calls)):
        keys = mj.task_keys(jax.random.fold_in(state.key, 7 + step), 3)
        for key, task_images in zip(keys, images, strict=True):
            np.testing.assert_array_equal(task_images, bank.images[rows(jax.random.split(key)[0])])


def train_streamed(tasks, state, steps, train=None, **options):
    train = train or mj.trainer(LEARNER, OPTIMIZER, tasks, **options).step
    losses = []
    for images in mj.prefetch(tasks, state, steps, **options):
        state, metrics = train(state, images)
        losses.append(metrics["loss"])
    return state, np.concatenate(losses)


@pytest.mark.parametrize(("devices", "num_tasks"), [pytest.param(None, 4, marks=pytest.mark.slow), (2, 3)])
def test_training_is_that_of_the_device(bank, devices, num_tasks):
    mesh = devices and mj.task_mesh(jax.devices()[:devices])
    options = {"tasks_per_step": num_tasks, "steps_per_call": 3, "mesh": mesh}
    state, losses = train_streamed(mj.host_episodes(bank, **SIZES), fresh(), 6, **options)
    train = mj.trainer(LEARNER, OPTIMIZER, mj.episodes(bank, **SIZES), **options).step
    expected, first = train(fresh())
    expected, second = train(expected)
    np.testing.assert_allclose(losses, np.concatenate([first["loss"], second["loss"]]), rtol=1e-6)
    np.testing.assert_allclose(state.meta_params, expected.meta_params, rtol=1e-5, atol=1e-7)
    assert int(state.step) == 6


def test_tasks_lie_on_their_own_devices(bank):
    mesh = mj.task_mesh(jax.devices()[:2])
    tasks = mj.host_episodes(bank, **SIZES)
    (images,) = mj.prefetch(tasks, fresh(), 1, tasks_per_step=4, mesh=mesh)
    assert [shard.data.shape[:2] for shard in images.addressable_shards] == [(1, 2), (1, 2)]
    np.testing.assert_array_equal(images, next(mj.prefetch(tasks, fresh(), 1, tasks_per_step=4)))


def test_a_run_goes_on_exactly_where_it_stopped(bank):
    tasks, options = mj.host_episodes(bank, **SIZES), {"tasks_per_step": 2, "steps_per_call": 2}
    train = mj.trainer(LEARNER, OPTIMIZER, tasks, **options).step
    whole, losses = train_streamed(tasks, fresh(), 8, train, **options)
    half, first = train_streamed(tasks, fresh(), 4, train, **options)
    resumed, second = train_streamed(tasks, half, 4, train, **options)
    np.testing.assert_array_equal(np.concatenate([first, second]), losses)
    np.testing.assert_array_equal(resumed.meta_params, whole.meta_params)


def test_a_failure_keeps_the_last_good_state():
    """Or later steps of the call would go on with what was meant for others."""
    learner = mj.maml(lambda p, data, rng: ((p - data) ** 2, {}), mj.inner_loop(optax.sgd(0.1), 0))
    sampler = mj.StreamedSampler(np.ones(8), lambda rng: jnp.int32(0), lambda rng, one: mj.Task(one, one))
    train = mj.trainer(learner, OPTIMIZER, sampler, tasks_per_step=2, steps_per_call=4).step
    examples = jnp.ones((4, 2)).at[1, 0].set(jnp.nan)
    state, metrics = train(init_state(learner, OPTIMIZER, jnp.float32(0.0)), examples)
    assert mj.first_non_finite(metrics) == (1, "loss")
    assert int(state.step) == 1
    assert np.isnan(metrics["loss"][1:]).all()


def test_a_sampler_and_its_examples_go_together(bank):
    streamed, sizes = mj.host_episodes(bank, **SIZES), {"tasks_per_step": 2, "steps_per_call": 1}
    (examples,) = mj.prefetch(streamed, fresh(), 1, **sizes)
    with pytest.raises(ValueError, match=r"call step\(state, examples\).*metajax.prefetch, or .*on_demand"):
        mj.trainer(LEARNER, OPTIMIZER, streamed, **sizes).step(fresh())
    with pytest.raises(ValueError, match=r"only a StreamedSampler takes examples"):
        mj.trainer(LEARNER, OPTIMIZER, mj.on_demand(streamed), **sizes).step(fresh(), examples)
    with pytest.raises(TypeError, match=r"pass metajax.on_demand\(sampler\)"):
        mj.evaluator(LEARNER, loss_fn, streamed, steps=1)
    other = streamed._replace(sample=lambda rng, images: (images, images))
    with pytest.raises(TypeError, match=r"a task is metajax.Task"):
        mj.trainer(LEARNER, OPTIMIZER, other, **sizes).step(fresh(), examples)


def test_calls_that_do_not_divide_the_steps_are_named(bank):
    with pytest.raises(ValueError, match="steps must be a multiple of steps_per_call = 2, got 3"):
        mj.prefetch(mj.host_episodes(bank, **SIZES), fresh(), 3, tasks_per_step=1, steps_per_call=2)


def test_nothing_to_come_is_nothing_fetched(bank):
    tasks = mj.host_episodes(bank, **SIZES)
    assert list(mj.prefetch(tasks, fresh(), 0, tasks_per_step=1, steps_per_call=2)) == []
    for per_call in (0, [2, 0]):
        with pytest.raises(ValueError, match="steps_per_call at least 1"):
            mj.prefetch(tasks, fresh(), 2, tasks_per_step=1, steps_per_call=per_call)


def test_images_on_the_host_need_its_cpu(bank, monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="add cpu to JAX_PLATFORMS"):
        mj.prefetch(mj.host_episodes(bank, **SIZES), fresh(), 1, tasks_per_step=1)


def test_calls_may_be_of_different_lengths(bank):
    tasks, sizes = mj.host_episodes(bank, **SIZES), {"tasks_per_step": 2}
    uneven = [*mj.prefetch(tasks, fresh(), 6, steps_per_call=[2, 1, 3], **sizes)]
    assert [len(call) for call in uneven] == [2, 1, 3]
    even = np.concatenate([*mj.prefetch(tasks, fresh(), 6, steps_per_call=np.int64(3), **sizes)])
    np.testing.assert_array_equal(np.concatenate(uneven), even)
    with pytest.raises(ValueError, match="must add up to steps = 6, got 3"):
        mj.prefetch(tasks, fresh(), 6, steps_per_call=[2, 1], **sizes)


def test_sizes_that_the_bank_has_not_are_named(bank):
    with pytest.raises(ValueError, match="class 0 of the bank has only 6 examples"):
        mj.host_episodes(bank, ways=2, shots=5, queries=5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [None, 2])
def test_without_their_images_tasks_fetch_them(bank, devices):
    """In evaluation and in training, a task at a time, some at once, and on several devices."""
    mesh = devices and mj.task_mesh(jax.devices()[:devices])
    samplers = mj.on_demand(mj.host_episodes(bank, **SIZES)), mj.episodes(bank, **SIZES)
    for chunk_size in (1, 3):
        options = {"chunk_size": chunk_size, "mesh": mesh}
        evaluations = [mj.evaluator(LEARNER, loss_fn, s, steps=1, num_tasks=6, **options) for s in samplers]
        ours, expected = (evaluate(PARAMS, jax.random.key(0)) for evaluate in evaluations)
        for kind in ("transductive", "non_transductive"):
            np.testing.assert_allclose(
                getattr(ours, kind)["loss"].mean, getattr(expected, kind)["loss"].mean, rtol=1e-6
            )
        options |= {"tasks_per_step": 6, "steps_per_call": 3}
        trained = [mj.trainer(LEARNER, OPTIMIZER, s, **options).step(fresh())[1]["loss"] for s in samplers]
        np.testing.assert_allclose(*trained, rtol=1e-6)


def test_benchmarks_fetch_ahead_as_training_does(bank):
    tasks, read = mj.host_episodes(bank, **SIZES), []

    class Counted:
        shape = bank.images.shape

        def __getitem__(self, rows):
            read.append(rows.shape)
            return bank.images[rows]

    counted = tasks._replace(source=Counted())
    sizes = {"tasks_per_step": 2, "steps_per_call": 3}
    call = training_calls(LEARNER, OPTIMIZER, counted, PARAMS, **sizes)
    call()
    call()
    assert len(read) >= 2
    assert {shape[:2] for shape in read} == {(3, 2)}


CONFIG = '''"""A folder of images, kept on the host."""

from metajax.experiment import *

config = Experiment(
    task=FolderConfig(ways=2, train=Shots(shots=1, queries=2), test=Shots(shots=1, queries=2), size=16, images="host"),
    model=Conv4Config(channels=4),
    learner=MAMLConfig(),
    inner=Inner(learning_rate=0.1),
    outer=Outer(learning_rate=1e-2),
    training=TrainingSettings(steps=12, tasks_per_step=4, steps_per_call=2, checkpoint_every=4),
    validation=Validation(num_tasks=4),
    evaluation=EvaluationSettings(steps=1, num_tasks=4),
)
'''


@pytest.mark.slow
def test_on_the_command_line_a_run_is_that_of_the_device(tmp_path, monkeypatch):
    """With calls of one length, or of two, and resumed halfway; each fetched ahead."""
    prefetched = []

    def recorded(tasks, state, steps, **options):
        prefetched.append((int(state.step), options["steps_per_call"]))
        return mj.prefetch(tasks, state, steps, **options)

    monkeypatch.setattr(experiment_run, "prefetch", recorded)
    rng = np.random.default_rng(0)
    for split, classes in (("train", 4), ("validation", 2), ("test", 2)):
        for i in range(classes):
            folder = tmp_path / "images" / split / f"{split}{i}"
            folder.mkdir(parents=True)
            for j in range(4):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{j}.png")
    config = small(tmp_path, text=CONFIG)

    def trained(name: str, *options: str) -> list[float]:
        """The training loss of each call, and the test loss."""
        common = ("--task.source", tmp_path / "images", "--data-dir", tmp_path / "data", "--workdir", tmp_path / name)
        assert run("train", config, *common, *options).code == 0
        evaluation = json.loads((tmp_path / name / "evaluation.json").read_text())
        return [*(row["loss"] for row in rows(tmp_path / name)), *evaluation["transductive"]["loss"]["mean"]]

    expected = trained("device", "--task.images", "device")
    host = trained("host")
    np.testing.assert_allclose(host, expected, rtol=1e-5)
    uneven = trained("uneven", "--training.steps-per-call", "3")
    expected = trained("uneven_device", "--training.steps-per-call", "3", "--task.images", "device")
    np.testing.assert_allclose(uneven, expected, rtol=1e-5)
    shutil.copytree(tmp_path / "host", tmp_path / "cut")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
    assert trained("cut") == host
    assert prefetched == [(0, [2] * 6), (0, [3, 1] * 3), (4, [2] * 4)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_images_keep_their_values(tmp_path, dtype):
    """Fetched by a callback, and prefetched for one device or two."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((16, 3, 3, 1)).astype(dtype))
    counts = np.array([8, 8])
    bank = mj.ClassBank(np.load(tmp_path / "x.npy", mmap_mode="r"), np.cumsum(counts) - counts, counts)
    sizes, key = {"ways": 2, "shots": 1, "queries": 2}, jax.random.key(0)
    tasks, expected = mj.host_episodes(bank, **sizes), mj.episodes(bank, **sizes)(key)
    on_device = np.float16 if dtype == "float16" else np.float32
    for task in (mj.on_demand(tasks)(key), tasks.sample(key, bank.images[tasks.rows(key)])):
        for ours, theirs in zip(*map(jax.tree.leaves, (task, expected)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for mesh in (None, mj.task_mesh(jax.devices()[:2])):
        (call,) = mj.prefetch(tasks, fresh(), 1, tasks_per_step=2, mesh=mesh)
        assert call.dtype == on_device
        keys = mj.task_keys(jax.random.fold_in(fresh().key, 0), 2)
        for task_images, one in zip(call[0], keys, strict=True):
            rows = np.asarray(tasks.rows(jax.random.split(one)[0]))
            np.testing.assert_array_equal(task_images, bank.images[rows].astype(on_device))
