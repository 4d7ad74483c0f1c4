"""Transforms of one image for data augmentation. They run on the device, compiled together with the task sampler.

`flip` and `shift` raise an `AssertionError` for a batch of images: apply them to a batch with `jax.vmap`.
"""

import chex
import jax
import jax.numpy as jnp

from metajax.tasks.episodes import Transform


def invert(image: jax.Array, rng: jax.Array) -> jax.Array:
    """Return `1 - image`. Dark ink (0) on a light background (1) becomes 1 on 0.

    MAML inverts the images of Omniglot; Reptile does not.

    >>> import jax, jax.numpy as jnp, metajax as mj
    >>> mj.tasks.invert(jnp.zeros((1, 1, 1)), jax.random.key(0)).item()
    1.0
    """
    return 1 - image


def flip(image: jax.Array, rng: jax.Array) -> jax.Array:
    """Mirror an image left to right with probability 1/2."""
    _check(image)
    return jnp.where(jax.random.bernoulli(rng), image[:, ::-1], image)


def shift(pixels: int) -> Transform:
    """Return a transform that shifts an image at random by up to `pixels` along each axis.

    The uncovered border is filled with the nearest pixels of the image.

    >>> import jax, jax.numpy as jnp, metajax as mj
    >>> mj.tasks.shift(2)(jnp.ones((8, 8, 3)), jax.random.key(0)).shape
    (8, 8, 3)
    """

    def transform(image: jax.Array, rng: jax.Array) -> jax.Array:
        _check(image)
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        start = jax.random.randint(rng, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)

    return transform


def chain(*transforms: Transform) -> Transform:
    """Return a transform that applies `transforms` in order, each with a separate random key."""

    def transform(image: jax.Array, rng: jax.Array) -> jax.Array:
        for i, each in enumerate(transforms):
            image = each(image, jax.random.fold_in(rng, i))
        return image

    return transform


def _check(image: jax.Array) -> None:
    chex.assert_rank(
        image, 3, custom_message="image must be one image [height, width, channels]; use jax.vmap for more"
    )
