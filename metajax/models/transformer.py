"""A small causal Transformer over tokens."""

import jax
import jax.numpy as jnp
from flax import nnx


class Transformer(nnx.Module):
    """Pre-norm blocks of causal self-attention and a GELU layer, then logits of the next token at every position.

    Args:
        vocabulary: Number of tokens, and of logits.
        length: Most tokens in a sequence.
        width: Size of a token's features.
        layers: Blocks.
        heads: Attention heads of a block; a divisor of `width`.
        rngs: Source of the initial values.

    Raises:
        ValueError: If `heads` does not divide `width`.

    References:
        Vaswani et al., `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_, 2017; pre-norm after Xiong et
        al., `On Layer Normalization <https://arxiv.org/abs/2002.04745>`_, 2020.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> model = mj.models.Transformer(64, length=16, width=32, layers=2, heads=4, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((3, 16), jnp.int32)).shape
    (3, 16, 64)
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        length: int = 128,
        width: int = 256,
        layers: int = 4,
        heads: int = 8,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        self.embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (vocabulary, width)))
        self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (length, width)))
        self.blocks = nnx.List([_Block(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """`int[examples, tokens]` to logits `[examples, tokens, vocabulary]`."""
        x = self.embedding[...][tokens] + self.positions[...][: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query_key_value = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        packed = self.query_key_value(self.attention_norm(x))
        query, key, value = jnp.split(packed.reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(seen.reshape(x.shape))
        return x + self.contract(jax.nn.gelu(self.expand(self.mlp_norm(x))))
