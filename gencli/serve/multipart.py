"""Bodies of forms that bring files: multipart/form-data (RFC 7578), whole in memory, as all bodies are. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from email.utils import collapse_rfc2231_value

from gencli.serve.refusal import INVALID, Refusal

MOST_PARTS, HEAD = 64, 8192  # bytes of a part's headers at most


@dataclass(frozen=True)
class Part:
    """One field of a form. filename: what the client calls the file; None for a plain value."""

    name: str
    data: bytes
    filename: str | None = None

    @property
    def text(self) -> str:
        """The value of a plain field. Raise Refusal."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            raise Refusal(INVALID, f"{self.name[:60]} is not UTF-8 text", param=self.name[:60]) from None


def read_parts(data: bytes, content_type: str) -> list[Part]:
    """Return the fields of a form in order. content_type: the header, which names what stands between them.

    Raise Refusal for what is no such form, breaks off, or has more than `MOST_PARTS` fields.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if not boundary:
        raise Refusal(INVALID, "the Content-Type header names no boundary of the form's fields")
    mark = b"\r\n--" + boundary.encode("utf-8", "replace")
    _, *pieces = (b"\r\n" + data).split(mark, MOST_PARTS + 2)
    if len(pieces) > MOST_PARTS + 1:
        raise Refusal(INVALID, f"the form has more than {MOST_PARTS} fields")
    if not pieces or not pieces[-1].startswith(b"--"):
        raise Refusal(INVALID, "the body is no form, or breaks off before the form's end")
    return [_part(piece) for piece in pieces[:-1]]


def _part(piece: bytes) -> Part:
    head, blank, data = piece.partition(b"\r\n\r\n")
    if not blank or len(head) > HEAD:
        raise Refusal(INVALID, "a field of the form has no headers, or no end of them")
    found = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip())
    name = found.get_param("name", header="content-disposition")
    if name is None:
        raise Refusal(INVALID, "a field of the form has no name")
    return Part(collapse_rfc2231_value(name), data, found.get_filename())
