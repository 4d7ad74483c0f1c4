"""From an encoded image of any kind to `uint8[size, size, channels]`."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metajax.data.disk import one_line


class BadImageError(ValueError):
    """Bytes that are no image Pillow can decode; the message says why, the caller knows which file."""


def decode(data: bytes, size: int, channels: int) -> np.ndarray:
    """Decodes an image, crops its centre to a square and resizes that.

    Greyscale levels and colours stay as they are in the file: dark ink stays dark. Transparency is laid
    on white, 16-bit levels keep their upper byte, a camera's rotation flag is obeyed.

    Args:
        data: The encoded file.
        size: Side of the result in pixels.
        channels: 1 for greyscale, 3 for colour.

    Returns:
        `uint8[size, size, channels]`. An image that already has the right size is not resampled.

    Raises:
        BadImageError: The bytes are not a whole image.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (6, 4), "red").save(file, "PNG")
    >>> decode(file.getvalue(), 2, 3).tolist()
    [[[255, 0, 0], [255, 0, 0]], [[255, 0, 0], [255, 0, 0]]]
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file)
            image = _to_mode(image, "L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise BadImageError("not an image, or of a kind that Pillow cannot read") from None
    # Pillow reports damage through many types: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise BadImageError(one_line(error)) from error
    image = _fit(image, size)
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes an image without loss, fast rather than small.

    Args:
        pixels: `uint8[height, width]` or `uint8[height, width, 3]`.

    Returns:
        The file.

    >>> decode(encode_png(np.full((2, 2), 7, np.uint8)), 2, 1).ravel().tolist()
    [7, 7, 7, 7]
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to 8-bit greyscale or colour."""
    if image.mode.startswith("I"):  # I;16 and its byte orders, or 16-bit levels held in 32 bits
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(levels, 0, 0xFFFF) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise BadImageError("floating-point images are not supported: their range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Crops the centre square and resamples it with Lanczos' filter, which does not alias."""
    side = min(image.size)
    if side == 0:
        raise BadImageError("the image is empty")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    # Pillow silently takes the nearest pixel in modes 1 and P: the image is in L or RGB by now.
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)
