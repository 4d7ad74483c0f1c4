"""Sample tasks from images that stay on the host (CPU memory or a memory-mapped file) and not on the accelerator.

Use this module if a data set is too large for the memory of the accelerator. `prefetch` reads the examples of the next
tasks while the accelerator computes.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax.core.parallel import map_tasks, split_over_tasks, step_keys
from metajax.core.trainer import TrainState, check_state
from metajax.core.types import ClassBank, StreamedSampler, Task, TaskSampler
from metajax.errors import UserError, needs
from metajax.tasks.episodes import Transform, check, draw_episode


def host_episodes(
    bank: ClassBank,
    *,
    ways: int,
    shots: int,
    queries: int,
    rotations: bool = False,
    transform: Transform | None = None,
) -> StreamedSampler:
    """Return a sampler of few-shot episodes from a class bank that is too large for the memory of the device.

    For each random key the task equals the task that the sampler of `episodes` returns for this key.

    Args:
        bank: The images of each class. `bank.images` may be a memory map, `np.load(file, mmap_mode="r")`; only the
            examples of the sampled tasks are read. Images of a float type are read once more, to check their values.
        ways: Classes in an episode.
        shots: Support examples of each class.
        queries: Query examples of each class.
        rotations: Whether to add, for each class, three classes with its images rotated by 90°, 180° and 270°.
        transform: A function `(image, rng) -> image` for augmentation, applied to each image on the device.

    Returns:
        The task sampler, for `trainer` and `prefetch`. `on_demand` makes a sampler for `evaluator` from it.

    Raises:
        ValueError: If the bank has too few classes, if a class has too few examples, or if the bank's arrays do not
            have the shapes and values that `ClassBank` describes.

    >>> import jax, numpy as np, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((12, 8, 8, 1), np.uint8), np.array([0, 3, 7]), np.array([3, 4, 5]))
    >>> sampler, key = mj.host_episodes(bank, ways=3, shots=1, queries=2), jax.random.key(0)
    >>> sampler.sample(key, bank.images[sampler.rows(key)]).query.x.shape
    (6, 8, 8, 1)
    """
    check(bank, ways, shots, queries, rotations)
    starts, counts = (jnp.asarray(each, jnp.int32) for each in (bank.starts, bank.counts))
    draw = partial(
        draw_episode, starts, counts, ways=ways, shots=shots, queries=queries, rotations=rotations, transform=transform
    )

    return StreamedSampler(bank.images, lambda rng: draw(rng).rows, lambda rng, images: draw(rng).of(images))


def on_demand(sampler: StreamedSampler) -> TaskSampler:
    """Return a sampler `rng -> Task` whose device fetches the examples of each task from the host, and waits for them.

    Training with `prefetch` is faster. For evaluation, pass the returned sampler to `evaluator`.

    >>> import jax, numpy as np, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((12, 8, 8, 1), np.uint8), np.array([0, 3, 7]), np.array([3, 4, 5]))
    >>> sampler = mj.on_demand(mj.host_episodes(bank, ways=3, shots=1, queries=2))
    >>> sampler(jax.random.key(0)).query.x.shape
    (6, 8, 8, 1)
    """
    dtype = _device_dtype(sampler.source)

    def read(rows: Any) -> np.ndarray:
        # JAX may pass `rows` as a JAX array, but only NumPy arrays can index a memory map.
        return np.asarray(sampler.source[np.asarray(rows)], dtype)

    def sample(rng: jax.Array) -> Task:
        rows = sampler.rows(rng)
        shape = jax.ShapeDtypeStruct((*rows.shape, *sampler.source.shape[1:]), dtype)
        return sampler.sample(rng, jax.pure_callback(read, shape, rows, vmap_method="broadcast_all"))

    return sample


def prefetch(
    sampler: StreamedSampler,
    state: TrainState,
    steps: int,
    *,
    tasks_per_step: int,
    steps_per_call: int | Sequence[int] = 1,
    mesh: Mesh | None = None,
    threads: int = 2,
    ahead: int = 2,
) -> Iterator[jax.Array]:
    """Return an iterator that reads the examples of the next `steps` meta-steps while the device computes.

    The key and step in the training state determine the examples. A run that resumes from a checkpoint therefore sees
    the same examples as a run without interruption.

    Args:
        sampler: The task sampler, for example from `host_episodes`.
        state: The current training state. `prefetch` reads its key and step immediately and does not keep the state.
        steps: Total number of meta-steps.
        tasks_per_step: Number of tasks in a meta-step, as in `trainer`.
        steps_per_call: Number of meta-steps in each call of the training step, as in `trainer`; or a sequence with a
            number for each call.
        mesh: The device mesh, as in `trainer`. If the tasks are divisible evenly over the devices, each process reads
            only the examples of its own tasks.
        threads: Number of threads that read examples.
        ahead: Number of training calls for which examples are prefetched. These examples occupy device memory.

    Returns:
        An iterator over arrays `[steps_per_call, tasks_per_step, examples, ...]` on the devices, one for each training
        call, in the dtype of the source. Pass each array as the second argument of `trainer.step`.

    Raises:
        ValueError: If `steps` is not a multiple of the number `steps_per_call` or not the sum of the sequence
            `steps_per_call`, or if a call has no meta-steps.
        UserError: If JAX_PLATFORMS excludes the CPU.

    >>> import jax, numpy as np, optax, metajax as mj
    >>> bank = mj.ClassBank(np.zeros((8, 1, 1, 1), np.uint8), np.array([0, 4]), np.array([4, 4]))
    >>> sampler = mj.host_episodes(bank, ways=2, shots=1, queries=1)
    >>> learner = mj.maml(mj.regression_loss(lambda p, x, rng: p * x[:, 0, 0, 0]), mj.inner_loop(optax.sgd(0.1), 1))
    >>> trainer = mj.trainer(learner, optax.sgd(0.1), sampler, tasks_per_step=3, steps_per_call=2)
    >>> state = trainer.init(np.float32(1))
    >>> [images.shape for images in mj.prefetch(sampler, state, 4, tasks_per_step=3, steps_per_call=2)]
    [(2, 3, 4, 1, 1, 1), (2, 3, 4, 1, 1, 1)]
    """
    if steps < 0 or np.min(steps_per_call, initial=1) < 1:
        raise ValueError(f"steps must be at least 0 and steps_per_call at least 1, got {steps} and {steps_per_call}")
    if not steps:
        return iter(())
    call_lengths = np.asarray(steps_per_call)
    if call_lengths.ndim == 0:
        if steps % call_lengths:
            raise ValueError(f"steps must be a multiple of steps_per_call = {steps_per_call}, got {steps}")
        call_lengths = np.full(steps // call_lengths, call_lengths)
    if call_lengths.sum() != steps:
        raise ValueError(f"steps_per_call must add up to steps = {steps}, got {call_lengths.sum()}")
    with needs("data"):
        import grain  # importing grain takes a second, and most runs do not need grain

    check_state(state)
    first, key = int(state.step), np.asarray(jax.random.key_data(state.key))
    implementation, host = jax.random.key_impl(state.key), _host()
    sharding = split_over_tasks(mesh, tasks_per_step)

    @jax.jit
    def rows_of(key, step):
        keys, _ = step_keys(jax.random.wrap_key_data(key, impl=implementation), step, 1, tasks_per_step)
        return map_tasks(lambda _, key: sampler.rows(key), None, keys[0])

    def fetch(call: tuple[int, int]) -> jax.Array:
        step, length = call
        with jax.default_device(host):  # sample indices on the CPU, because the accelerator is busy with training
            rows = np.stack([rows_of(key, np.int32(step + i)) for i in range(length)])
        if sharding is None:
            return jnp.asarray(sampler.source[rows])
        shape = (*rows.shape, *sampler.source.shape[1:])

        def of_device(index) -> np.ndarray:
            return np.asarray(sampler.source[rows[index[:2]]], _device_dtype(sampler.source))

        return jax.make_array_from_callback(shape, sharding, of_device)

    lengths = call_lengths.tolist()
    begins = itertools.accumulate(lengths[:-1], initial=first)
    calls = grain.MapDataset.source(list(zip(begins, lengths, strict=True))).map(fetch)
    return iter(calls.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))


def _device_dtype(source: Any) -> Any:
    """Return the dtype that examples have on the device. Without `jax_enable_x64`, float64 becomes float32."""
    return jax.dtypes.canonicalize_dtype(source.dtype)


def _host() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError("images on the host need JAX's CPU backend: add cpu to JAX_PLATFORMS") from error
