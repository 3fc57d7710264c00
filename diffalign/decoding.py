"""File bytes -> the picture that people see: the one way in which everybody reads pictures."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps

_ORIENTATION = 0x0112
# of TIFF: how many bits a sample has, and what its numbers mean
_BITS, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1
ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, PIL.Image.DecompressionBombError)


def rgb(data: bytes) -> PIL.Image.Image:
    """The picture in RGB, upright by its EXIF orientation, transparency on white, 16 bits brought down to 8.

    Raises one of `ERRORS` where it cannot be decoded, or where its numbers do not say what is white.
    """
    picture = PIL.Image.open(io.BytesIO(data))
    picture.load()
    _require_levels(picture)
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # each conversion copies the picture, needed or not
        picture = PIL.ImageOps.exif_transpose(picture)
    return _flat(picture)


def flat(picture: PIL.Image.Image) -> PIL.Image.Image:
    """An opened picture in RGB as `rgb` makes it, but not turned; itself where it is that already.

    Raises ValueError where its numbers do not say what is white.
    """
    _require_levels(picture)
    return _flat(picture)


def _require_levels(picture: PIL.Image.Image) -> None:
    """Raise ValueError for numbers whose white nobody knows: floats, whole numbers of 32 bits, measurements."""
    mode, kind = picture.mode, picture.format
    if mode == "F":
        raise ValueError("pixels are floats (mode F), which do not say what is white; expected 8 or 16 bits")
    if not mode.startswith("I"):
        return
    # both readers bring what they read to 16 bits
    if kind not in (None, "PNG", "PPM", "TIFF", "JPEG2000") or (mode == "I" and kind not in ("PNG", "PPM")):
        raise ValueError(
            f"pixels are whole numbers (mode {mode}, {kind or 'made here'}), which do not say what is white; "
            "expected 8 or 16 bits"
        )  # fmt: skip
    if kind == "TIFF":
        bits, meaning = picture.tag_v2.get(_BITS, (1,))[0], picture.tag_v2.get(_PHOTOMETRIC)
        if bits != 16 or meaning != _BLACK_IS_ZERO:
            raise ValueError(f"grey of {bits} bits, photometric {meaning}; expected 8 bits, or 16 with black as 0")
    if "transparency" in picture.info:
        raise ValueError("grey of 16 bits with a transparent level; expected an alpha channel")


def _flat(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):  # a plain conversion would clip all but the darkest 1/256 to white
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = PIL.Image.fromarray((wide // 257).astype(np.uint8))
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", clear.size, "white")
        picture = PIL.Image.alpha_composite(ground, clear)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
