"""File bytes -> the picture that people see: the one way in which everybody reads pictures."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps

_ORIENTATION = 0x0112
ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, PIL.Image.DecompressionBombError)


def rgb(data: bytes) -> PIL.Image.Image:
    """The picture in RGB, upright by its EXIF orientation, transparency on white, 16 bits brought down to 8.

    Raises one of `ERRORS` where it cannot be decoded.
    """
    picture = PIL.Image.open(io.BytesIO(data))
    picture.load()
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # each conversion copies the picture, needed or not
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # a plain conversion would clip all but the darkest 1/256 to white
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = PIL.Image.fromarray((wide // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", clear.size, "white")
        picture = PIL.Image.alpha_composite(ground, clear)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
