"""Transformers: a causal language model, and a vision Transformer whose tokens are the patches of an image."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from metajax.errors import UserError
from metajax.limits import LARGEST_IMAGE, MOST_FEATURES, whole
from metajax.models.config import as_image
from metajax.models.layers import check_image_shape


class Transformer(nnx.Module):
    """A causal language model. For each token it returns the logits of the next token.

    Each block has self-attention and an MLP with GELU. Layer normalisation comes before both (pre-norm).

    Args:
        vocabulary: Number of different tokens, which is also the number of logits.
        length: Largest number of tokens in a sequence, for which position embeddings exist.
        width: Number of features of a token.
        layers: Number of blocks.
        heads: Number of attention heads in a block; a divisor of `width`.
        rngs: Random streams for the initial parameters.

    Raises:
        ValueError: If `heads` does not divide `width`. A call with sequences of more than `length` tokens also raises a
            `ValueError`.

    References:
        Vaswani et al., `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_, 2017. Pre-norm: Xiong et
        al., `On Layer Normalization <https://arxiv.org/abs/2002.04745>`_, 2020.

    >>> import jax, jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> model = mj.models.Transformer(64, length=16, width=32, layers=2, heads=4, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jnp.zeros((3, 16), jnp.int32)).shape
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
        self.embedding = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (vocabulary, width), jnp.float32))
        self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (length, width), jnp.float32))
        self.blocks = nnx.List([_Block(width, heads, causal=True, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map `int[examples, tokens]` to logits `[examples, tokens, vocabulary]`."""
        chex.assert_rank(tokens, 2, custom_message="tokens must be [examples, tokens]")
        chex.assert_type(tokens, int, custom_message="tokens must be integers")
        length = self.positions.shape[0]
        if tokens.shape[1] > length:
            raise ValueError(f"sequences have {tokens.shape[1]} tokens, but the network was made for at most {length}")
        x = self.embedding[...][tokens] + self.positions[...][: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ViT(nnx.Module):
    """A small vision Transformer. Its tokens are image patches with learned position embeddings.

    The features of the tokens are averaged, and a linear layer, the `head`, returns the outputs. Layer normalisation
    uses the statistics of a single token, so no example of a batch influences another. Transductive and
    non-transductive predictions are therefore the same.

    Args:
        outputs: Number of outputs for each example: the number of classes in a task.
        image_shape: `(height, width, channels)` of an image. A call with images of another shape raises a `ValueError`.
        patch: Side of a square patch in pixels, a divisor of the height and width of the image.
        width: Number of features of a token.
        layers: Number of blocks.
        heads: Number of attention heads in a block; a divisor of `width`.
        rngs: Random streams for the initial parameters.

    Raises:
        ValueError: If `heads` does not divide `width`, or if `patch` does not divide the height and width of the image.

    References:
        Dosovitskiy et al., `An Image is Worth 16x16 Words <https://arxiv.org/abs/2010.11929>`_, 2021. Mean
        pooling: Beyer et al., `Better plain ViT baselines <https://arxiv.org/abs/2205.01580>`_, 2022.

    >>> import jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> model = mj.models.ViT(5, image_shape=(28, 28, 1), width=32, layers=2, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((3, 28, 28, 1))).shape
    (3, 5)
    """

    def __init__(
        self,
        outputs: int,
        *,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        patch: int = 7,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        rngs: nnx.Rngs,
    ):
        height, across, channels = image_shape
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        if height % patch or across % patch:
            raise ValueError(f"patch must divide the image of {height}×{across} pixels, got {patch}")
        self.patch = patch
        self.image_shape = (height, across, channels)
        self.embed = nnx.Linear(patch * patch * channels, width, rngs=rngs)
        tokens = (height // patch) * (across // patch)
        self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (tokens, width), jnp.float32))
        self.blocks = nnx.List([_Block(width, heads, causal=False, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[examples, height, width, channels]` to `[examples, outputs]`."""
        check_image_shape(x, *self.image_shape)
        n, height, across, channels = x.shape
        p = self.patch
        patches = x.reshape(n, height // p, p, across // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = self.embed(patches.reshape(n, -1, p * p * channels)) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, *, causal: bool, rngs: nnx.Rngs):
        self.heads = heads
        self.causal = causal
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query_key_value = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        packed = self.query_key_value(self.attention_norm(x))
        query, key, value = jnp.split(packed.reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.project(attended.reshape(x.shape))
        return x + self.contract(jax.nn.gelu(self.expand(self.mlp_norm(x))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A small vision Transformer."""

    patch: int = 7
    """Side of a patch in pixels; it must divide the side of the image."""
    width: int = 128
    """Number of features of each patch."""
    layers: int = 4
    """Number of Transformer blocks."""
    heads: int = 4
    """Attention heads of a block; the number must divide the width."""

    def __post_init__(self):
        whole("model", 1, LARGEST_IMAGE, patch=self.patch)
        whole("model", 1, MOST_FEATURES, width=self.width, heads=self.heads)
        whole("model", 1, 1000, layers=self.layers)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the vision Transformer for examples of shape `shape`; see `ModelConfig.build`."""
        try:
            return ViT(
                outputs,
                image_shape=as_image(shape),
                patch=self.patch,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                rngs=rngs,
            )
        except ValueError as error:
            raise UserError(f"model: {error}") from error
