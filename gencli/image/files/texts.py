"""The texts that an image carries, in all the places and codings in which tools put them.

PNG has text chunks; JPEG, WebP and PNG have EXIF, whose user comment begins with eight bytes that name its coding; some
tools write into the lowest bits of the pixels ("stealth"). What does not decode is not there.
"""

from __future__ import annotations

import codecs
import contextlib
import struct
import warnings
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, PngImagePlugin

EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
# EXIF's tags that hold text → our name for them
TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software", USER_COMMENT: "UserComment"}
OWN_NOTE = b"gencli\0"  # how gencli's own JSON begins as EXIF's maker note
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The eight bytes that begin a user comment → the codings to try.
CODES: dict[bytes, tuple[str, ...]] = {
    b"ASCII\0\0\0": ("utf-8", "latin-1"),
    b"JIS\0\0\0\0\0": ("iso2022_jp", "utf-8", "shift_jis"),
    b"UNICODE\0": (),  # told by its zero bytes
    b"\0" * 8: ("utf-8", "latin-1"),
}
STEALTH_LIMIT = 2**20  # bytes of a text hidden in the pixels, unpacked
SIGNATURES = {  # of hidden texts → the channels that they are in, and whether they are packed
    b"stealth_pnginfo": ("A", False), b"stealth_pngcomp": ("A", True),
    b"stealth_rgbinfo": ("RGB", False), b"stealth_rgbcomp": ("RGB", True),
}  # fmt: skip
SIGNATURE_LENGTH = 15
# What Pillow raises for broken files, beside the errors of reading them.
BROKEN = (
    ValueError, SyntaxError, OverflowError, MemoryError, EOFError, IndexError, KeyError, TypeError, OSError,
    struct.error, ZeroDivisionError, AttributeError, RuntimeError,
)  # fmt: skip


def read_texts(picture: Image.Image) -> dict[str, str]:
    """Return the texts of an image by name: PNG's own keys, `UserComment` and others of EXIF, `comment`, `stealth`;
    gencli's own JSON is under `gencli` wherever it lies."""
    texts = {str(key): _chunk(value) for key, value in picture.info.items() if isinstance(value, str)}
    if isinstance(comment := picture.info.get("comment"), bytes):
        texts["comment"] = _first_of(comment, ("utf-8", "latin-1"))
    for name, text in _exif(picture).items():
        texts.setdefault(name, text)
    if "gencli" not in texts and (hidden := _hidden(picture)):
        texts["stealth"] = hidden
    return texts


def _chunk(text: str) -> str:
    """Return a PNG's text. Its plain chunks are Latin-1 by the standard and UTF-8 by many writers."""
    if isinstance(text, PngImagePlugin.iTXt) or text.isascii():
        return text.removeprefix("\ufeff")
    try:
        return text.encode("latin-1").decode("utf-8").removeprefix("\ufeff")
    except UnicodeError:
        return text


def _exif(picture: Image.Image) -> dict[str, str]:
    texts: dict[str, str] = {}
    with contextlib.suppress(*BROKEN), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exif = picture.getexif()
        tables: list[Mapping[int, object]] = [
            exif.get_ifd(EXIF_IFD),
            exif,
        ]  # some tools put the comment beside the table
        for table in tables:
            note = table.get(MAKER_NOTE)
            if isinstance(note, bytes) and note.startswith(OWN_NOTE):
                texts.setdefault("gencli", note[len(OWN_NOTE) :].decode("ascii", "replace"))
            for tag, name in TAGS.items():
                if isinstance(value := table.get(tag), bytes | str) and value:
                    texts.setdefault(name, user_comment(value.encode("latin-1") if isinstance(value, str) else value))
    return {name: text for name, text in texts.items() if text}


def user_comment(raw: bytes) -> str:
    """Return EXIF's user comment. A text whose first eight bytes name no coding is all text."""
    code, text = raw[:8], raw[8:]
    if code not in CODES:
        return _first_of(raw, ("utf-8", "latin-1"))
    if code != b"UNICODE\0":
        return _first_of(text, CODES[code])
    # Both byte orders are met, and UTF-8. Settings are in ASCII, so the zero bytes tell.
    even, odd = text[0::2].count(0), text[1::2].count(0)
    order = "utf-16-le" if odd > even else "utf-16-be"
    return _first_of(text, (order,) if even or odd else ("utf-8", "utf-16-be"))


def _first_of(raw: bytes, codings: tuple[str, ...]) -> str:
    """Return bytes in the coding that their byte order mark tells, else the first one that fits."""
    marked = [(coding, len(mark)) for mark, coding in MARKS if raw.startswith(mark)]
    for coding, length in [*marked, *((coding, 0) for coding in codings)]:
        with contextlib.suppress(UnicodeError):
            return raw[length:].decode(coding).strip("\0 ")
    return raw.decode(codings[0], "replace").strip("\0 ")


def _hidden(picture: Image.Image) -> str:
    """Return the text in the lowest bits of an image's pixels, column by column, or ""."""
    if picture.format not in ("PNG", "WEBP") or picture.mode not in ("RGB", "RGBA"):
        return ""
    pixels = np.asarray(picture)
    for signature, (channels, packed) in SIGNATURES.items():
        if channels == "A" and picture.mode != "RGBA":
            continue
        plane = pixels[..., 3] if channels == "A" else pixels[..., :3]
        read = _bits(plane, 8 * (SIGNATURE_LENGTH + 4))
        if not read.startswith(signature):
            continue
        length = SIGNATURE_LENGTH + 4 + int.from_bytes(read[SIGNATURE_LENGTH:], "big") // 8
        if length > min(STEALTH_LIMIT, plane.size // 8):
            return ""
        data = _bits(plane, 8 * length)[SIGNATURE_LENGTH + 4 :]
        with contextlib.suppress(UnicodeError, zlib.error):
            data = zlib.decompressobj(31).decompress(data, STEALTH_LIMIT) if packed else data
            return data.decode("utf-8")
    return ""


def _bits(plane: np.ndarray, count: int) -> bytes:
    """Return the lowest bits of the first values of a plane (H, W) or (H, W, C), column by column, as bytes."""
    columns = -(-count // max(plane[:, 0].size, 1))
    bits = np.swapaxes(plane[:, :columns], 0, 1).reshape(-1)[:count] & 1
    return np.packbits(bits).tobytes()
