"""The precision of the operands of products, which is JAX's setting."""

import jax


def products_precision() -> str:
    """What was chosen for JAX's products, as `bfloat16` or `float32`; `default` if nothing was.

    >>> products_precision()
    'default'
    >>> with jax.default_matmul_precision("bfloat16"):
    ...     products_precision()
    'bfloat16'
    """
    return jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
