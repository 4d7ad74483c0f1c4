"""Residual networks: ResNet-12 as used in few-shot learning, and ResNet-18."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from metajax.kernels import max_pool
from metajax.limits import MOST_CHANNELS, whole
from metajax.models.config import as_image
from metajax.models.layers import Conv, NormKind, check_image_shape, make_norm


class ResNet12(nnx.Module):
    """A network of four residual blocks and a linear layer, the `head`.

    Each block has three 3×3 convolutions and ends in 2×2 max-pooling, unless the height or width is already 1.

    Args:
        outputs: Number of outputs for each example: the number of classes in a task.
        in_channels: Number of channels of an image.
        image_size: Expected `(height, width)` of an image. If set, a call with images of another size raises a
            `ValueError`. Default: any size, because the features are averaged over height and width.
        widths: Number of output channels of each of the four blocks.
        norm: `"batch"` normalises by the statistics of the current batch (`BatchNorm`), `"group"` normalises groups of
            channels of each example (`GroupNorm`).
        rngs: Random streams for the initial parameters.

    References:
        Oreshkin et al., `TADAM <https://arxiv.org/abs/1805.10123>`_, 2018. The default widths are from Lee et al.,
        `MetaOptNet <https://arxiv.org/abs/1904.03758>`_, 2019.

    >>> import jax, jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> model = mj.models.ResNet12(5, in_channels=1, widths=(4, 4, 8, 8), rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jnp.ones((2, 28, 28, 1))).shape
    (2, 5)
    """

    def __init__(
        self,
        outputs: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] | None = None,
        widths: Sequence[int] = (64, 160, 320, 640),
        norm: NormKind = "batch",
        rngs: nnx.Rngs,
    ):
        self.image_shape = (*_size(image_size), in_channels)
        self.blocks = nnx.List(
            [
                _Block(a, b, convs=3, activation=_leaky_relu, norm=norm, rngs=rngs)
                for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)
            ]
        )
        self.head = nnx.Linear(widths[-1], outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[examples, height, width, channels]` to `[examples, outputs]`."""
        check_image_shape(x, *self.image_shape)
        for block in self.blocks:
            x = block(x)
            x = max_pool(x) if min(x.shape[1:3]) > 1 else x
        return self.head(x.mean((1, 2)))


class ResNet18(nnx.Module):
    """A network of a first convolution (stem), eight residual blocks and a linear layer, the `head`.

    Each block has two 3×3 convolutions. The blocks form four stages of two blocks.

    Args:
        outputs: Number of outputs for each example: the number of classes in a task.
        in_channels: Number of channels of an image.
        image_size: Expected `(height, width)` of an image. If set, a call with images of another size raises a
            `ValueError`. Default: any size, because the features are averaged over height and width.
        width: Number of channels of the first stage; each later stage doubles the number of channels.
        stem: `"small"` is a 3×3 convolution of stride 1, for images of about 32 pixels (CIFAR). `"large"` is
            a 7×7 convolution of stride 2 with max-pooling, for images of about 224 pixels (ImageNet).
        norm: `"batch"` normalises by the statistics of the current batch (`BatchNorm`), `"group"` normalises groups of
            channels of each example (`GroupNorm`).
        rngs: Random streams for the initial parameters.

    References:
        He et al., `Deep Residual Learning <https://arxiv.org/abs/1512.03385>`_, 2015. The large stem here uses
        2×2 max-pooling instead of overlapping 3×3 max-pooling.

    >>> import jax, jax.numpy as jnp, metajax as mj
    >>> from flax import nnx
    >>> model = mj.models.ResNet18(5, in_channels=1, width=4, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jnp.ones((2, 28, 28, 1))).shape
    (2, 5)
    """

    def __init__(
        self,
        outputs: int,
        *,
        in_channels: int = 3,
        image_size: tuple[int, int] | None = None,
        width: int = 64,
        stem: str = "small",
        norm: NormKind = "batch",
        rngs: nnx.Rngs,
    ):
        if stem not in ("small", "large"):
            raise ValueError(f"stem must be 'small' or 'large', got {stem!r}")
        self.image_shape = (*_size(image_size), in_channels)
        kernel, stride = (3, 1) if stem == "small" else (7, 2)
        self.stem = Conv(in_channels, width, kernel_size=kernel, stride=stride, rngs=rngs)
        self.stem_norm = make_norm(norm, width, rngs=rngs)
        self.pool = stem == "large"
        blocks, inputs = [], width
        for stage in range(4):
            for i in range(2):
                stride, features = (2 if stage and not i else 1), width * 2**stage
                blocks.append(
                    _Block(inputs, features, convs=2, stride=stride, activation=nnx.relu, norm=norm, rngs=rngs)
                )
                inputs = features
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[examples, height, width, channels]` to `[examples, outputs]`."""
        check_image_shape(x, *self.image_shape)
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = max_pool(x) if self.pool else x
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet12Config:
    """The ResNet-12 of the few-shot learning literature."""

    widths: tuple[int, int, int, int] = (64, 160, 320, 640)
    """Number of channels of each of the four blocks."""
    norm: Literal["batch", "group"] = "batch"
    """Normalise by the statistics of the current batch, or by groups of channels of each example."""

    def __post_init__(self):
        for width in self.widths:
            whole("model", 1, MOST_CHANNELS, widths=width)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the ResNet-12 for examples of shape `shape`; see `ModelConfig.build`."""
        height, width, channels = as_image(shape)
        return ResNet12(
            outputs,
            in_channels=channels,
            image_size=(height, width),
            widths=self.widths,
            norm=self.norm,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet18Config:
    """The ResNet-18, for small or large images."""

    width: int = 64
    """Channels of the first stage; each later stage doubles the channels."""
    stem: Literal["small", "large"] = "small"
    """The first layers: small is for images of about 32×32 pixels, large for about 224×224 pixels."""
    norm: Literal["batch", "group"] = "batch"
    """Normalise by the statistics of the current batch, or by groups of channels of each example."""

    def __post_init__(self):
        whole("model", 1, MOST_CHANNELS // 8, width=self.width)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the ResNet-18 for examples of shape `shape`; see `ModelConfig.build`."""
        height, width, channels = as_image(shape)
        return ResNet18(
            outputs,
            in_channels=channels,
            image_size=(height, width),
            width=self.width,
            stem=self.stem,
            norm=self.norm,
            rngs=rngs,
        )


class _Block(nnx.Module):
    """A residual block: 3×3 convolutions whose output is added to a shortcut.

    The shortcut is the input of the block, or a 1×1 convolution of the input if input and output have different shapes.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        convs: int,
        stride: int = 1,
        activation: Callable[[jax.Array], jax.Array],
        norm: NormKind,
        rngs: nnx.Rngs,
    ):
        strides = [stride] + [1] * (convs - 1)
        widths = [inputs] + [outputs] * (convs - 1)
        self.convs = nnx.List([Conv(w, outputs, stride=s, rngs=rngs) for w, s in zip(widths, strides, strict=True)])
        self.norms = nnx.List([make_norm(norm, outputs, rngs=rngs) for _ in range(convs)])
        changes = stride != 1 or inputs != outputs
        self.shortcut = Conv(inputs, outputs, kernel_size=1, stride=stride, padding=0, rngs=rngs) if changes else None
        self.shortcut_norm = make_norm(norm, outputs, rngs=rngs) if changes else None
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i < len(self.convs) - 1:
                out = self.activation(out)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return self.activation(out + x)


def _size(image_size: tuple[int, int] | None) -> tuple[int | None, int | None]:
    return (None, None) if image_size is None else (image_size[0], image_size[1])


def _leaky_relu(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.1 * x)
