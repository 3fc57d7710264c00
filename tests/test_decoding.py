"""A file's numbers become the picture that people see, or are refused where nobody knows what is white."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

from diffalign import decoding, scorers

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, format=kind, **options)
    return sink.getvalue()


def levels(data: bytes) -> np.ndarray:
    found = np.asarray(decoding.rgb(data))
    assert (found == found[..., :1]).all()
    return found[..., 0]


def tiff(array: np.ndarray, bits: int = 16, meaning: int = 1, signed: bool = False) -> bytes:
    """A grey TIFF, little-endian, by hand: the library writes none of what is to be refused."""
    height, width = array.shape
    data = array.tobytes()
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, meaning), (273, 4, 8), (277, 3, 1),
        (278, 4, height), (279, 4, len(data)), (339, 3, 2 if signed else 1),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_brought_down_to_eight(kind: str) -> None:
    wide = PIL.Image.fromarray(GREY.astype(np.uint16) * 257)
    assert (levels(encoded(wide, kind)) == GREY).all()
    assert (np.asarray(decoding.flat(wide))[..., 0] == GREY).all()


def test_sixteen_bits_are_turned_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    wide = PIL.Image.fromarray(GREY.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        assert (levels(encoded(wide, kind, exif=exif)) == np.rot90(GREY, -1)).all()


def test_tiffs_by_hand_are_read_as_the_librarys() -> None:
    assert (levels(tiff(GREY.astype(np.uint16) * 257)) == GREY).all()
    assert (levels(tiff(GREY, 8)) == GREY).all()
    assert (levels(tiff(255 - GREY, 8, meaning=0)) == GREY).all()


UNKNOWN = {
    "floats to 1": (encoded(PIL.Image.fromarray(GREY / np.float32(255)), "TIFF"), "floats"),
    "floats to 255": (encoded(PIL.Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floats"),
    "32 bits": (tiff(GREY.astype(np.uint32) << 24, 32), "mode I, TIFF"),
    "32 bits with a sign": (encoded(PIL.Image.fromarray(GREY.astype(np.int32)), "TIFF"), "mode I, TIFF"),
    "16 bits with a sign": (tiff(GREY.astype(np.int16), signed=True), "mode I, TIFF"),
    "12 bits": (tiff(GREY.astype(np.uint16) * 16, 12), "grey of 12 bits"),
    "white as 0": (tiff(GREY.astype(np.uint16) * 257, meaning=0), "photometric 0"),
    "a transparent level": (encoded(PIL.Image.new("I;16", (4, 4)), "PNG", transparency=7), "a transparent level"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNKNOWN)
def test_numbers_without_a_white_are_refused(what: str) -> None:
    data, said = UNKNOWN[what]
    assert PIL.Image.open(io.BytesIO(data)).mode in ("F", "I", "I;16")
    with pytest.raises(ValueError, match=said) as caught:
        decoding.rgb(data)
    assert isinstance(caught.value, decoding.ERRORS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_judges_refuse_them_too(mode: str) -> None:
    with pytest.raises(scorers.UNREADABLE, match=rf"\(mode {mode}"):
        scorers.load("shapes_clip")([PIL.Image.new(mode, (64, 64), 1)], ["a red circle"])


def test_what_is_transparent_lies_on_white() -> None:
    assert np.asarray(decoding.flat(PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 0)))).min() == 255
    assert np.asarray(decoding.flat(PIL.Image.new("LA", (4, 4), (0, 128))))[0, 0].tolist() == [127, 127, 127]
    plain = PIL.Image.fromarray(np.stack([GREY] * 3, -1))
    assert decoding.flat(plain) is plain
