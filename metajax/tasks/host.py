"""Tasks whose images stay on the host, for example in a memory-mapped file.

Tasks are sampled as on the device; `feed` prefetches their images while the device computes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax.core.parallel import map_tasks, split_over_tasks, step_keys
from metajax.core.trainer import TrainState, check_state
from metajax.core.types import ClassBank, Task
from metajax.errors import UserError, needs
from metajax.tasks.episodes import Transform, check, draw_episode


class HostTasks(NamedTuple):
    """A task sampler in two parts: the indices of a task's images, and the task from the images at these indices.

    Attributes:
        images: `[all examples, height, width, channels]`, `uint8` or floats in `[0, 1]`: an array or a memory map.
        rows: `rng -> int32[examples]`, the indices in `images` of a task's examples.
        sampler: `(rng, images=None) -> Task`. For `trainer`, pass the images of `rows(rng)`, `[examples,
            height, width, channels]` in the dtype of `images`. Without images the device fetches them through a
            callback and waits for them; use this form for `evaluator`, or instead of `feed`.
    """

    images: Any
    rows: Callable[[jax.Array], jax.Array]
    sampler: Callable[..., Task]


def host_episodes(
    bank: ClassBank,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: bool = False,
    transform: Transform | None = None,
) -> HostTasks:
    """Return the tasks of `episodes` for a class bank that is too large for the device.

    For each key the task equals that of `episodes`.

    Args:
        bank: The classes. Its `images` are only indexed, so a memory map stays on disk:
            `np.load(file, mmap_mode="r")`. Images of a float type are read once, to check their values.
        ways: Classes in an episode.
        shots: Support examples of each class.
        queries: Query examples of each class.
        rotations: Whether to add, for each class, three classes with its images rotated by 90°, 180° and 270°.
        transform: Applied to each image, on the device.

    Returns:
        The tasks, for `feed`. Their field `sampler` is for `trainer` and `evaluator`.

    Raises:
        ValueError: If the bank has too few classes, if a class has too few examples, or if the bank's arrays do not
            have the shapes and values that `ClassBank` describes.

    >>> import jax, numpy as np, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((12, 8, 8, 1), np.uint8), np.array([0, 3, 7]), np.array([3, 4, 5]))
    >>> tasks, key = mj.host_episodes(bank, ways=3, shots=1, queries=2), jax.random.key(0)
    >>> tasks.sampler(key, bank.images[tasks.rows(key)]).query.x.shape
    (6, 8, 8, 1)
    """
    check(bank, ways, shots, queries, rotations)
    starts, counts = (jnp.asarray(each, jnp.int32) for each in (bank.starts, bank.counts))
    draw = partial(
        draw_episode, starts, counts, ways=ways, shots=shots, queries=queries, rotations=rotations, transform=transform
    )

    def fetch(rows: jax.Array) -> jax.Array:
        dtype = _device_dtype(bank.images)
        shape = jax.ShapeDtypeStruct((*rows.shape, *bank.images.shape[1:]), dtype)

        def of_rows(rows: Any) -> np.ndarray:
            # `rows` may be a JAX array; a memory map can be indexed only by NumPy arrays.
            return np.asarray(bank.images[np.asarray(rows)], dtype)

        return jax.pure_callback(of_rows, shape, rows, vmap_method="broadcast_all")

    def sampler(rng: jax.Array, images: jax.Array | None = None) -> Task:
        episode = draw(rng)
        return episode.of(fetch(episode.rows) if images is None else images)

    return HostTasks(bank.images, lambda rng: draw(rng).rows, sampler)


def feed(
    tasks: HostTasks,
    state: TrainState,
    steps: int,
    *,
    tasks_per_step: int,
    steps_per_call: int | Sequence[int] = 1,
    mesh: Mesh | None = None,
    threads: int = 2,
    ahead: int = 2,
) -> Iterator[jax.Array]:
    """Prefetch the images of the next `steps` meta-steps while the device computes.

    The images are a function of the state's key and step, so a run resumed from a checkpoint continues exactly.

    Args:
        tasks: From `host_episodes`.
        state: The current training state. `feed` reads its key and step at once and does not keep the state.
        steps: Number of meta-steps.
        tasks_per_step: As in `trainer`.
        steps_per_call: Meta-steps of every call, as in `trainer`; or a sequence with the meta-steps of each
            call.
        mesh: As in `trainer`. If the tasks are divisible evenly over the devices, each process reads only the
            images of its own tasks.
        threads: Grain threads that read images.
        ahead: Number of training calls whose images are loaded in advance. These images occupy device memory.

    Returns:
        An iterator over the images of each call, `[steps_per_call, tasks_per_step, examples, height, width, channels]`,
        on the devices, in the bank's dtype. Pass them as the second argument of the training step.

    Raises:
        ValueError: If `steps` is not a multiple of `steps_per_call`, or not the sum of the sequence; or if a call has
            no steps.
        UserError: If JAX may not use the CPU.

    >>> import jax, numpy as np, optax, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((8, 1, 1, 1), np.uint8), np.array([0, 4]), np.array([4, 4]))
    >>> tasks = mj.host_episodes(bank, ways=2, shots=1, queries=1)
    >>> learner = mj.maml(mj.regression_loss(lambda p, x, rng: p * x[:, 0, 0, 0]), mj.inner_loop(optax.sgd(0.1), 1))
    >>> trainer = mj.trainer(learner, optax.sgd(0.1), tasks.sampler, tasks_per_step=3, steps_per_call=2)
    >>> state = trainer.init(np.float32(1))
    >>> [images.shape for images in mj.feed(tasks, state, 4, tasks_per_step=3, steps_per_call=2)]
    [(2, 3, 4, 1, 1, 1), (2, 3, 4, 1, 1, 1)]
    """
    if steps < 0 or np.min(steps_per_call, initial=1) < 1:
        raise ValueError(f"steps must be at least 0 and steps_per_call at least 1, got {steps} and {steps_per_call}")
    if not steps:
        return iter(())
    of_each = np.asarray(steps_per_call)
    if of_each.ndim == 0:
        if steps % of_each:
            raise ValueError(f"steps must be a multiple of steps_per_call = {steps_per_call}, got {steps}")
        of_each = np.full(steps // of_each, of_each)
    if of_each.sum() != steps:
        raise ValueError(f"steps_per_call must add up to steps = {steps}, got {of_each.sum()}")
    with needs("data"):
        import grain  # the import takes a second, and most runs do not need it

    check_state(state)
    first, key = int(state.step), np.asarray(jax.random.key_data(state.key))
    implementation, host = jax.random.key_impl(state.key), _host()
    sharding = split_over_tasks(mesh, tasks_per_step)

    @jax.jit
    def rows_of(key, step):
        keys, _ = step_keys(jax.random.wrap_key_data(key, impl=implementation), step, 1, tasks_per_step)
        return map_tasks(lambda _, key: tasks.rows(key), None, keys[0])

    def fetch(call: tuple[int, int]) -> jax.Array:
        step, length = call
        with jax.default_device(host):  # the accelerator is busy training
            rows = np.stack([rows_of(key, np.int32(step + i)) for i in range(length)])
        if sharding is None:
            return jnp.asarray(tasks.images[rows])
        shape = (*rows.shape, *tasks.images.shape[1:])

        def of_device(index) -> np.ndarray:
            return np.asarray(tasks.images[rows[index[:2]]], _device_dtype(tasks.images))

        return jax.make_array_from_callback(shape, sharding, of_device)

    lengths = of_each.tolist()
    begins = itertools.accumulate(lengths[:-1], initial=first)
    calls = grain.MapDataset.source(list(zip(begins, lengths, strict=True))).map(fetch)
    return iter(calls.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))


def _device_dtype(images: Any) -> Any:
    """Return the dtype of images on the device, which may not support float64."""
    return jax.dtypes.canonicalize_dtype(images.dtype)


def _host() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError("images on the host need JAX's CPU backend: add cpu to JAX_PLATFORMS") from error
