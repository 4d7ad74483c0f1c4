"""Decode images of many file formats to square arrays `uint8[size, size, channels]`."""

import functools
import io
import warnings
from collections.abc import Iterator

import numpy as np

from metajax.errors import needs

with needs("data"):
    from PIL import Image, ImageOps, UnidentifiedImageError

from metajax.data.disk import one_line

# EPS is left out because Pillow passes EPS files to Ghostscript, an external program. Formats without 8-bit levels are
# left out, too. TGA is tried last: TGA files have no signature, so the TGA decoder accepts damaged PNG files.
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
"""File suffixes of photographs of many phones. Pillow needs another package to read these files."""
SUFFIXES = frozenset(_SUFFIXES) | HEIF_SUFFIXES
"""Suffixes of image files, in lower case."""
HEIF_ADVICE = "a HEIC image: `pip install pillow-heif` to read it"
_HEIF_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"])
_MAX_PIXELS = 2**27
"""Largest number of pixels of an image file. Three copies of a photograph of 108 megapixels fit in 2 GB of memory."""


class BadImageError(ValueError):
    """Pillow cannot decode some bytes as an image. The message has the reason, but not the name of the file."""


def decode(data: bytes, size: int, channels: int) -> np.ndarray:
    """Decode the content of an image file, crop its centre square and resize the square.

    Greyscale levels and colours are not inverted: dark ink stays dark. Transparent pixels are blended with white,
    16-bit levels are reduced to their upper byte, and the image is rotated by the camera's orientation flag.

    Args:
        data: The content of the image file.
        size: Side of the result in pixels.
        channels: 1 for greyscale, 3 for colour.

    Returns:
        `uint8[size, size, channels]`. An image that already has the right size is not resampled.

    Raises:
        BadImageError: If `data` is not a complete image in a supported format, or if the image has too many pixels.

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
            # A large image needs much memory. Rotate it in place, and crop it before the conversion.
            ImageOps.exif_transpose(file, in_place=True)
            image = _to_mode(_square(file), "L" if channels == 1 else "RGB")
        if image.width != size:
            # Pillow resizes one-bit and palette images by nearest neighbour, without a warning. `_to_mode` has
            # converted the image to L or RGB, so the Lanczos filter is used.
            image = image.resize((size, size), Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        reason = HEIF_ADVICE if _is_heif(data) else "not an image, or of a kind that is not read"
        raise BadImageError(reason) from None
    # For a damaged image Pillow raises many exception types: OSError, SyntaxError, struct.error, MemoryError, ...
    except Exception as error:
        raise BadImageError(HEIF_ADVICE if _is_heif(data) and not reads_heif() else one_line(error)) from error
    return np.asarray(image, dtype=np.uint8).reshape(size, size, channels)


def looks_like_image(head: bytes) -> bool:
    r"""Return whether the first 16 bytes of a file are the signature of an image format.

    Args:
        head: The first bytes of the file.

    Returns:
        Whether the bytes are the signature of a common image format.

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
    """Return the file formats that `decode` supports with the installed versions of Pillow and pillow-heif.

    Returns:
        Pillow's names of the formats, such as "PNG". "HEIF" is included only if the package pillow-heif is installed.
    """
    _init()
    return tuple(name for name in _FORMATS if name in Image.OPEN) + (("HEIF",) if reads_heif() else ())


@functools.cache
def _init() -> None:
    Image.init()


@functools.cache
def reads_heif() -> bool:
    """Return whether Pillow can read HEIC images.

    Returns:
        Whether the package pillow-heif is installed. If it is, the function registers it with Pillow.
    """
    if "HEIF" not in Image.OPEN:
        try:
            import pillow_heif  # pyright: ignore[reportMissingImports]
        except ImportError:
            return False
        pillow_heif.register_heif_opener()
    return "HEIF" in Image.OPEN


def _open(data: bytes) -> Image.Image:
    # Pillow warns about large images, but `decode` has its own limit. It also warns about damage that leaves the image
    # readable.
    warnings.simplefilter("ignore")
    return Image.open(io.BytesIO(data), formats=formats())


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and (head[8:12] in _HEIF_BRANDS or (head[8:12] == b"mif1" and b"avif" not in head[:64]))


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an image as PNG. The compression is lossless, and fast rather than strong.

    Args:
        pixels: `uint8[height, width]` or `uint8[height, width, 3]`.

    Returns:
        The content of the PNG file.

    >>> decode(encode_png(np.full((2, 2), 7, np.uint8)), 2, 1).ravel().tolist()
    [7, 7, 7, 7]
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to Pillow's mode `L` (8-bit greyscale) or `RGB` (8-bit colour)."""
    if image.mode.startswith("I"):  # I;16 with any byte order, or 16-bit levels stored in 32 bits
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
    """Yield boxes that divide an image into horizontal bands of 256 rows.

    Processing one band at a time needs less memory than processing a large image at once.
    """
    for top in range(0, image.height, 256):
        yield 0, top, image.width, min(top + 256, image.height)


def _square(image: Image.Image) -> Image.Image:
    """Crop the largest square at the centre of an image."""
    side = min(image.size)
    if side == 0:
        raise BadImageError("the image is empty")
    image.load()
    if image.width == image.height:
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
