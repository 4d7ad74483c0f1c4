"""From an encoded image of any kind to `uint8[size, size, channels]`."""

import functools
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metajax.data.disk import one_line

# Never EPS, which Pillow hands to Ghostscript, nor formats that need another program or that hold no 8-bit levels.
# TGA comes last: its files begin with no signature, so that it would take damaged files of other formats.
_FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "DIB", "ICO", "ICNS"),
    *("PCX", "QOI", "SGI", "SUN", "PSD", "DDS", "TGA"),
)
_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".dib"),
    *(".ico", ".icns", ".pcx", ".qoi", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".psd", ".dds", ".tga"),
)
HEIF_SUFFIXES = frozenset([".heic", ".heif", ".hif"])
"""Endings of the photographs of many phones, which Pillow cannot read without another package."""
SUFFIXES = frozenset(_SUFFIXES) | HEIF_SUFFIXES
"""Endings of image files, in lower case."""
HEIF_ADVICE = "a HEIC image: `pip install pillow-heif` to read it"
_HEIF_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"])
_MAX_PIXELS = 2**27
"""A camera's 108 megapixels, in three copies of 4 bytes a pixel, stay below 2 GB."""


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
        with warnings.catch_warnings(), _open(data) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise BadImageError(
                    f"{file.width}×{file.height} pixels are more than the {_MAX_PIXELS:,} that are read"
                )
            # In place and cropped first, to keep few copies of a large image.
            ImageOps.exif_transpose(file, in_place=True)
            image = _to_mode(_square(file), "L" if channels == 1 else "RGB")
        if image.width != size:
            # Pillow silently takes the nearest pixel in modes 1 and P: the image is in L or RGB by now.
            image = image.resize((size, size), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        reason = HEIF_ADVICE if _is_heif(data) else "not an image, or of a kind that is not read"
        raise BadImageError(reason) from None
    # Pillow reports damage through many types: OSError, SyntaxError, struct.error, zlib.error, MemoryError, ...
    except Exception as error:
        raise BadImageError(HEIF_ADVICE if _is_heif(data) and not reads_heif() else one_line(error)) from error
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def looks_like_image(head: bytes) -> bool:
    r"""Tell from its first 16 bytes whether a file without an ending is an image.

    Args:
        head: The first bytes of the file.

    Returns:
        Whether they are the signature of a common format.

    >>> looks_like_image(b"\x89PNG" + bytes(12)), looks_like_image(b"All rights reser")
    (False, False)
    >>> looks_like_image(encode_png(np.zeros((1, 1), np.uint8))[:16])
    True
    """
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
    if head.startswith(signatures) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return True
    return (head[:2] == b"BM" and head[6:10] == bytes(4)) or _is_heif(head) or head[4:12] == b"ftypavif"


def formats() -> tuple[str, ...]:
    """List the formats that `decode` reads here.

    Returns:
        Their names in Pillow. An older Pillow has fewer, and the package pillow-heif adds one.
    """
    _init()
    return tuple(name for name in _FORMATS if name in Image.OPEN) + (("HEIF",) if reads_heif() else ())


@functools.cache
def _init() -> None:
    Image.init()


@functools.cache
def reads_heif() -> bool:
    """Tell whether Pillow reads HEIC images here.

    Returns:
        Whether the package pillow-heif is installed; it is then registered with Pillow.
    """
    if "HEIF" not in Image.OPEN:
        try:
            import pillow_heif  # pyright: ignore[reportMissingImports]
        except ImportError:
            return False
        pillow_heif.register_heif_opener()
    return "HEIF" in Image.OPEN


def _open(data: bytes) -> Image.Image:
    # Of large images, for which `decode` has a limit of its own, and of damage that leaves the image readable.
    warnings.simplefilter("ignore")
    return Image.open(io.BytesIO(data), formats=formats())


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and (head[8:12] in _HEIF_BRANDS or (head[8:12] == b"mif1" and b"avif" not in head[:64]))


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
        grey = Image.new("L", image.size)
        for box in _bands(image):
            levels = np.asarray(image.crop(box)).astype(np.int64)
            grey.paste(Image.fromarray((np.clip(levels, 0, 0xFFFF) >> 8).astype(np.uint8)), box)
        image = grey
    elif image.mode == "F":
        raise BadImageError("floating-point images are not supported: their range is unknown")
    if image.has_transparency_data:
        opaque = Image.new("RGB", image.size)
        for box in _bands(image):
            band = image.crop(box).convert("RGBA")
            opaque.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), box)
        image = opaque
    return image if image.mode == mode else image.convert(mode)


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Cut an image into horizontal bands, to keep few copies of a large one."""
    for top in range(0, image.height, 256):
        yield 0, top, image.width, min(top + 256, image.height)


def _square(image: Image.Image) -> Image.Image:
    """Crop the centre square."""
    side = min(image.size)
    if side == 0:
        raise BadImageError("the image is empty")
    image.load()
    if image.width == image.height:
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
