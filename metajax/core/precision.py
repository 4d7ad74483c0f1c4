"""The precision of the operands of matrix products, from JAX's setting."""

import jax


def products_precision() -> str:
    """Return JAX's setting for the precision of matrix products, such as `bfloat16`; `default` if it is not set.

    >>> products_precision()
    'default'
    >>> with jax.default_matmul_precision("bfloat16"):
    ...     products_precision()
    'bfloat16'
    """
    return jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
