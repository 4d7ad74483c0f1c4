"""Settings of models: multi-layer perceptron, Conv4, ResNets and vision Transformer."""

import dataclasses
import math
from typing import Literal, Protocol, runtime_checkable

from flax import nnx

from metajax import models
from metajax.errors import UserError
from metajax.experiment.checks import LARGEST_IMAGE, MOST_CHANNELS, MOST_FEATURES, positive, whole


@runtime_checkable
class ModelSpec(Protocol):
    """Settings of a model; a config file may define its own class."""

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the model for examples of shape `shape`, with `outputs` outputs and initial parameters from `rngs`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLP:
    """A multi-layer perceptron."""

    hidden: tuple[int, ...] = (40, 40)
    """Number of features of each hidden layer."""
    normalise: bool = False
    """Whether to use batch normalisation before each ReLU."""

    def __post_init__(self):
        for width in self.hidden:
            whole("model", 1, MOST_FEATURES, hidden=width)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the perceptron for examples of shape `shape`; see `ModelSpec.build`."""
        return models.MLP(math.prod(shape), outputs, hidden=self.hidden, normalise=self.normalise, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv4:
    """Four blocks of convolution, normalisation and ReLU."""

    channels: int = 64
    """Number of channels of each block."""
    pool: bool = False
    """True: each block ends in 2×2 max-pooling, and the last features are flattened (mini-ImageNet). False: the
    convolutions have stride 2, and the last features are averaged over all positions (Omniglot)."""
    norm: Literal["batch", "group"] = "batch"
    """Normalise by the statistics of the current batch, or by groups of channels of each example."""
    use_scale: bool = False
    """Whether batch normalisation learns a scale for each channel, in addition to an offset."""
    init: Literal["he_normal", "glorot_uniform", "uniform_fan_in"] = "he_normal"
    """Distribution of the initial kernels of the convolutions. MAML's code uses glorot_uniform. PyTorch's layers, and
    the code of papers that use PyTorch, have uniform_fan_in: a uniform distribution on ±1/√fan_in, for convolutions and
    head. With he_normal and glorot_uniform, the head has Glorot uniform values."""
    epsilon: float = 1e-3
    """Small constant that normalisation adds to the variance: 1e-3 in MAML's code, 1e-5 in PyTorch."""

    def __post_init__(self):
        whole("model", 1, MOST_CHANNELS, channels=self.channels)
        positive("model", epsilon=self.epsilon)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the Conv4 network for examples of shape `shape`; see `ModelSpec.build`."""
        height, width, depth = _image(shape)
        try:
            return models.Conv4(
                outputs,
                image_shape=(height, width, depth),
                channels=self.channels,
                pool=self.pool,
                norm=self.norm,
                use_scale=self.use_scale,
                kernel_init=_initializer(self.init),
                head_init=_initializer("uniform_fan_in" if self.init == "uniform_fan_in" else "glorot_uniform"),
                epsilon=self.epsilon,
                rngs=rngs,
            )
        except ValueError as error:
            raise UserError(f"model.pool: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet12:
    """The ResNet-12 of the few-shot learning literature."""

    widths: tuple[int, int, int, int] = (64, 160, 320, 640)
    """Number of channels of each of the four blocks."""
    norm: Literal["batch", "group"] = "batch"
    """Normalise by the statistics of the current batch, or by groups of channels of each example."""

    def __post_init__(self):
        for width in self.widths:
            whole("model", 1, MOST_CHANNELS, widths=width)

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the ResNet-12 for examples of shape `shape`; see `ModelSpec.build`."""
        height, width, channels = _image(shape)
        return models.ResNet12(
            outputs,
            in_channels=channels,
            image_size=(height, width),
            widths=self.widths,
            norm=self.norm,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet18:
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
        """Make the ResNet-18 for examples of shape `shape`; see `ModelSpec.build`."""
        height, width, channels = _image(shape)
        return models.ResNet18(
            outputs,
            in_channels=channels,
            image_size=(height, width),
            width=self.width,
            stem=self.stem,
            norm=self.norm,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT:
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
        """Make the vision Transformer for examples of shape `shape`; see `ModelSpec.build`."""
        try:
            return models.ViT(
                outputs,
                image_shape=_image(shape),
                patch=self.patch,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                rngs=rngs,
            )
        except ValueError as error:
            raise UserError(f"model: {error}") from error


def _initializer(name: Literal["he_normal", "glorot_uniform", "uniform_fan_in"]) -> nnx.Initializer:
    if name == "uniform_fan_in":  # the variance of a uniform distribution on ±1/√fan_in is 1/(3 fan_in)
        return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.initializers.he_normal() if name == "he_normal" else nnx.initializers.glorot_uniform()


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"model takes images (height, width, channels), but the task's examples have shape {shape}")
    return shape  # type: ignore[return-value]
