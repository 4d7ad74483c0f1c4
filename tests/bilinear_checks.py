"""Derivatives of bilinear operations, and the plan of another platform, for the tests of kernels."""

import contextlib
import importlib
from unittest import mock

import jax
import jax.numpy as jnp

from metajax.kernels import plan
from metajax.kernels.plan import Platform

MODULES = [importlib.import_module(f"metajax.kernels.{name}") for name in ("conv", "dense")]
"""Modules that call `plan`. `metajax.kernels.conv` is also the name of a function."""


@contextlib.contextmanager
def plan_for(platform: Platform):
    """Compile with the plan of a platform on every device, in the body of a `with` statement."""

    def planned(operation, shapes, dtype, _, **options):
        return plan(operation, shapes, dtype, platform, **options)

    with contextlib.ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(mock.patch.object(module, "plan", planned))
        yield


def derivatives(fn, batched):
    """Return a function that computes first and second derivatives of an energy of `fn(x, w)`.

    The second derivatives are forward over reverse and reverse over reverse. The function is compiled at each call.
    """

    def energy(x, w):
        return jnp.sum(jnp.sin(fn(x, w)))

    def run(x, w, dx, dw):
        gradient = jax.grad(energy, argnums=(0, 1))
        _, forward = jax.jvp(gradient, (x, w), (dx, dw))
        _, reverse = jax.vjp(gradient, x, w)
        return gradient(x, w), forward, reverse((dx, dw))

    return jax.jit(run if batched is None else jax.vmap(run, batched * 2))


def pulled_back(fn):
    """Return a function that computes the value of `fn(x, w)` and the cotangents of both arguments."""

    def run(x, w, cotangent):
        out, back = jax.vjp(fn, x, w)
        return out, *back(cotangent)

    return run
