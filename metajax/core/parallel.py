"""Run the tasks of a meta-step or an evaluation in parallel, in chunks and on several devices.

The tasks of a step are split over the devices of a mesh. Each device processes its tasks in chunks, one after the
other; the tasks of a chunk run together under `vmap`. The per-task gradients of a chunk are added to a sum at once, so
memory grows with the chunk size and not with the number of tasks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from metajax.core.checks import check_count
from metajax.core.types import PyTree

AXIS = "tasks"
Out = TypeVar("Out")


def task_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh over `devices` (default: all devices) with one axis, `tasks`.

    >>> import metajax as mj
    >>> mj.task_mesh().axis_names
    ('tasks',)
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """Return the sharding of values that all tasks share: a copy on every device of the mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Put arrays that all tasks share on every device of the mesh, in all processes of the mesh.

    The arrays must have the same values in every process.
    """
    sharding = replicated(mesh)
    if sharding is None or sharding.is_fully_addressable:
        return tree if sharding is None else jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree)


def split_over_tasks(mesh: Mesh | None, num_tasks: int) -> NamedSharding | None:
    """Return the sharding of arrays `[steps, tasks, ...]`.

    The task axis is split over the devices if the number of tasks is divisible by the number of devices, and
    replicated if not.
    """
    if mesh is None or num_tasks % mesh.size:
        return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(None, AXIS))


def task_keys(rng: jax.Array, num_tasks: int, first: int | jax.Array = 0) -> jax.Array:
    """Return the keys of the tasks `first..first + num_tasks - 1`, `key[num_tasks]`.

    Each key is a function of `rng` and the task's index only.

    >>> import jax, metajax as mj
    >>> few, many = mj.task_keys(jax.random.key(0), 2), mj.task_keys(jax.random.key(0), 5)
    >>> bool((few == many[:2]).all())
    True
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(num_tasks))


def step_keys(rng: jax.Array, first: int | jax.Array, steps: int, num_tasks: int) -> tuple[jax.Array, jax.Array]:
    """Return two keys for each task of the meta-steps `first..first + steps - 1`, each `key[steps, num_tasks]`.

    The first key samples the task; the second key is for the learner.
    """

    def of_step(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        halves = jax.vmap(jax.random.split)(task_keys(jax.random.fold_in(rng, step), num_tasks))
        return halves[:, 0], halves[:, 1]

    return jax.vmap(of_step)(first + jnp.arange(steps))


def average_tasks(
    fn: Callable[[Any, Any], Out],
    shared: PyTree,
    per_task: PyTree,
    *,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Out:
    """Average `fn(shared, task)` over tasks. The chunk size and the mesh change the result only by rounding.

    Args:
        fn: A function of `shared` and one task's entry of `per_task` that returns a pytree of arrays.
        shared: A pytree that all tasks share.
        per_task: A pytree of arrays with a leading task axis.
        chunk_size: Number of tasks that run together under `vmap`. Default: all tasks of a device.
        mesh: Devices to split the tasks over, from `task_mesh`. Default: one device.

    Returns:
        The averages, with the structure and dtypes of `fn(shared, task)`. Floats of less than 32 bits are summed in
        float32 and rounded once. Integers are summed in at least 32 bits, and their average is rounded down. A bool
        is `True` if it is `True` for any task.

    Raises:
        ValueError: If there are no tasks, if the leading axes of `per_task` differ, or if `chunk_size` is below 1.

    >>> import jax.numpy as jnp, metajax as mj
    >>> float(mj.average_tasks(lambda a, x: a * x, 2.0, jnp.arange(5.0), chunk_size=2))
    4.0
    """
    num_tasks = _checked_num_tasks(per_task)
    chunk_size = _chunk_size(chunk_size, num_tasks, mesh)

    def average(shared, per_task, valid):
        def add_chunk(total, chunk):
            tasks, valid = chunk
            values = _run_chunk(fn, shared, tasks)
            if valid is not None:  # padded tasks are computed, but add 0 to the sum
                values = jax.tree.map(lambda v: jnp.where(_along(valid, v), v, jnp.zeros_like(v)), values)
            return jax.tree.map(lambda t, v: t + v.sum(0, dtype=t.dtype), total, values), None

        one = jax.eval_shape(fn, shared, jax.tree.map(lambda leaf: leaf[0], per_task))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _sum_type(leaf.dtype)), one)
        total, _ = jax.lax.scan(add_chunk, zeros, _in_chunks((per_task, valid), chunk_size))
        total = total if mesh is None else _sum_over_devices(total)
        return jax.tree.map(
            lambda t, leaf: (t // num_tasks if _is_integer(t) else t / num_tasks).astype(leaf.dtype), total, one
        )

    padded, valid = _pad(per_task, num_tasks, chunk_size * num_devices(mesh))
    return _on_mesh(average, mesh, PartitionSpec())(shared, padded, valid)


def map_tasks(
    fn: Callable[[Any, Any], Out],
    shared: PyTree,
    per_task: PyTree,
    *,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Out:
    """Stack `fn(shared, task)` over tasks; see `average_tasks` for the arguments.

    Returns:
        The results of `fn`, with a leading task axis on every leaf.

    >>> import jax.numpy as jnp, metajax as mj
    >>> mj.map_tasks(lambda a, x: a * x, 2, jnp.arange(3), chunk_size=2).tolist()
    [0, 2, 4]
    """
    num_tasks = _checked_num_tasks(per_task)
    chunk_size = _chunk_size(chunk_size, num_tasks, mesh)

    def run(shared, per_task, _):
        chunks = _in_chunks(per_task, chunk_size)
        values = jax.lax.map(lambda tasks: _run_chunk(fn, shared, tasks), chunks)
        return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), values)

    padded, valid = _pad(per_task, num_tasks, chunk_size * num_devices(mesh))
    values = _on_mesh(run, mesh, PartitionSpec(AXIS))(shared, padded, valid)
    return jax.tree.map(lambda v: v[:num_tasks], values)


def is_tiny(params: PyTree) -> bool:
    """Return whether a model has at most 10,000 parameters. On a CPU, starting its operations takes longest."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params)) <= 10_000


def default_chunk_size(params: PyTree, num_tasks: int, mesh: Mesh | None = None) -> int:
    """Return the default number of tasks that run together on a device.

    On an accelerator, or with a tiny model, all tasks of a device run together. On a CPU larger models run one task at
    a time, because the activations of one task fit in a core's cache and the activations of a larger chunk do not.
    """
    return 1 if _platform(params, mesh) == "cpu" and not is_tiny(params) else _share(num_tasks, mesh)


def _platform(params: PyTree, mesh: Mesh | None) -> str:
    """Return the platform of the devices of a mesh; without a mesh, the platform of the arrays."""
    if mesh is not None:
        return mesh.devices.flat[0].platform
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            return next(iter(leaf.devices())).platform
    # Neither shapes nor the arrays of a function that JAX traces have devices. JAX puts such arrays on the first device
    # by default. The number of tasks decides the structure of the whole program, so `jax.lax.platform_dependent` would
    # trace everything once for each platform. To export a program for another platform, set `chunk_size` or a mesh.
    return jax.devices()[0].platform


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise an error unless `chunk_size` is `None` or a whole number of at least 1."""
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)


def _chunk_size(chunk_size: int | None, num_tasks: int, mesh: Mesh | None) -> int:
    check_chunk_size(chunk_size)
    share = _share(num_tasks, mesh)
    return share if chunk_size is None else min(chunk_size, share)


def _share(num_tasks: int, mesh: Mesh | None) -> int:
    """Return the number of tasks that each device processes, rounded up."""
    return -(-num_tasks // num_devices(mesh))


def _run_chunk(fn: Callable, shared: PyTree, tasks: PyTree) -> PyTree:
    """Apply `fn` to each task of a chunk. A chunk of one task runs without `vmap`, which would add a batch axis."""
    if _num_tasks(tasks) > 1:
        return jax.vmap(fn, (None, 0))(shared, tasks)
    return jax.tree.map(lambda v: v[None], fn(shared, jax.tree.map(lambda leaf: leaf[0], tasks)))


def _in_chunks(per_task: PyTree, chunk_size: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, chunk_size, *leaf.shape[1:]), per_task)


def _pad(per_task: PyTree, num_tasks: int, multiple: int) -> tuple[PyTree, jax.Array | None]:
    """Repeat the last task until the task axis is a multiple of `multiple`.

    Return the padded tasks, and a mask of the tasks that are not padding; the mask is `None` without padding.
    """
    padding = -num_tasks % multiple
    if not padding:
        return per_task, None
    rows = jnp.minimum(jnp.arange(num_tasks + padding), num_tasks - 1)
    return jax.tree.map(lambda leaf: leaf[rows], per_task), jnp.arange(num_tasks + padding) < num_tasks


def _sum_over_devices(tree: PyTree) -> PyTree:
    """Apply `psum` to all leaves of each dtype as one array, because CPU devices synchronise once for every array."""
    leaves, structure = jax.tree.flatten(tree)
    sums = list(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        at = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat, unravel = ravel_pytree([leaves[i] for i in at])
        for i, total in zip(at, unravel(jax.lax.psum(flat, AXIS).astype(dtype)), strict=True):
            sums[i] = total
    return structure.unflatten(sums)


def _on_mesh(fn: Callable, mesh: Mesh | None, out_specs: PartitionSpec) -> Callable:
    if mesh is None:
        return fn
    tasks = PartitionSpec(AXIS)
    # `fn` computes per-task gradients itself. The automatic sum of check_vma over replicated arguments would be wrong.
    return jax.shard_map(fn, mesh=mesh, in_specs=(PartitionSpec(), tasks, tasks), out_specs=out_specs, check_vma=False)


def _checked_num_tasks(per_task: PyTree) -> int:
    shapes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(per_task)}
    if shapes <= {(0,)}:
        raise ValueError("there is no task to average or map over")
    if len(shapes) > 1 or shapes == {()}:
        raise ValueError(f"arrays of tasks share a leading task axis, got axes {sorted(map(list, shapes))}")
    return shapes.pop()[0]


def _num_tasks(per_task: PyTree) -> int:
    return jax.tree.leaves(per_task)[0].shape[0]


def num_devices(mesh: Mesh | None) -> int:
    """Return the number of devices of a mesh, in all processes; 1 without a mesh."""
    return 1 if mesh is None else mesh.size


def _along(valid: jax.Array, values: jax.Array) -> jax.Array:
    return valid.reshape(-1, *([1] * (values.ndim - 1)))


def _sum_type(dtype: Any) -> Any:
    """Return the dtype for sums: at least 32 bits, so that a sum is rounded only once, at the end."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.promote_types(dtype, jnp.float32)
    if jnp.issubdtype(dtype, jnp.unsignedinteger):
        return jnp.promote_types(dtype, jnp.uint32)
    return jnp.promote_types(dtype, jnp.int32) if jnp.issubdtype(dtype, jnp.integer) else dtype


def _is_integer(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.integer)
