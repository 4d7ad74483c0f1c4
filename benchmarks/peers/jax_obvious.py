"""JAX the obvious way: `lax.conv`, the mean query loss of all tasks under one `vmap`, its gradient, one call a step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import Unsupported
from metajax.profiling.workloads import Workload


def prepare(
    workload: Workload, params: dict[str, np.ndarray], tasks: dict[str, np.ndarray]
) -> tuple[Callable[[], None], Callable[[], dict[str, np.ndarray]]]:
    """Make `step` and `gradient` for a workload."""
    if workload.model == "resnet12":
        raise Unsupported("no residual network here")
    forward = {"mlp": _mlp, "conv4": _conv4, "conv4_pool": _conv4}[workload.model]
    data = {name: jnp.asarray(value) for name, value in tasks.items()}
    stop = jax.lax.stop_gradient if workload.learner == "fomaml" else lambda grads: grads

    def loss(params, x, y):
        outputs = forward(params, x)
        if workload.model == "mlp":
            return jnp.mean((outputs - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    def adapt(params, x, y):
        for _ in range(workload.steps):
            grads = stop(jax.grad(loss)(params, x, y))
            params = jax.tree.map(lambda p, g: p - workload.learning_rate * g, params, grads)
        return params

    def query_loss(params, support_x, support_y, query_x, query_y):
        return loss(adapt(params, support_x, support_y), query_x, query_y)

    def meta_gradient(params, data):
        if workload.learner == "reptile":
            adapted = jax.vmap(adapt, (None, 0, 0))(params, data["support_x"], data["support_y"])
            return jax.tree.map(lambda before, after: before - after.mean(0), params, adapted)
        mean = lambda params: jax.vmap(functools.partial(query_loss, params))(**data).mean()  # noqa: E731
        return jax.grad(mean)(params)

    optimizer = optax.adam(1e-3)

    @jax.jit
    def update(params, opt_state, data):
        updates, opt_state = optimizer.update(meta_gradient(params, data), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    first = {name: jnp.asarray(value) for name, value in params.items()}
    current = (first, optimizer.init(first))

    def step() -> None:
        nonlocal current
        current = jax.block_until_ready(update(*current, data))

    return step, lambda: jax.device_get(jax.jit(meta_gradient)(first, data))


def _mlp(params, x):
    for i in range(2):
        x = jax.nn.relu(x @ params[f"layers/{i}/kernel"] + params[f"layers/{i}/bias"])
    return x @ params["head/kernel"] + params["head/bias"]


def _conv4(params, x):
    pool = params["convs/0/kernel"].shape[-1] == 32
    stride = (1, 1) if pool else (2, 2)
    for i in range(4):
        kernel = params[f"convs/{i}/kernel"]
        x = jax.lax.conv_general_dilated(
            x, kernel, stride, [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-3) + params[f"norms/{i}/offset"])
        if pool:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(x.shape[0], -1) if pool else x.mean((1, 2))
    return x @ params["head/kernel"] + params["head/bias"]
