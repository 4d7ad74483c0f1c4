"""The interface of models' settings."""

from typing import Protocol, runtime_checkable

from flax import nnx

from metajax.errors import UserError


@runtime_checkable
class ModelConfig(Protocol):
    """Settings of a model; a config file may define its own class."""

    def build(self, shape: tuple[int, ...], outputs: int, rngs: nnx.Rngs) -> nnx.Module:
        """Make the model for examples of shape `shape`, with `outputs` outputs and initial parameters from `rngs`."""
        ...


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape of an example as `(height, width, channels)`.

    Raises:
        UserError: If examples are not images.
    """
    if len(shape) != 3:
        raise UserError(f"model takes images (height, width, channels), but the task's examples have shape {shape}")
    return shape  # type: ignore[return-value]
