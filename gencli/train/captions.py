"""Which pictures there are and what they show: from JSON lines, from metadata.jsonl, or from texts beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gencli.errors import GencliError, counted
from gencli.json_files import as_unicode, check_ends, check_no_pointer, parse_json
from gencli.train.pictures import Caption, ImageFiles

KEYS = (("file", "file_name"), ("label", "text"))
METADATA = "metadata.jsonl"  # of an image folder, as the datasets library lays it out
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
HINT = (
    f"captions are JSON lines (--captions), a {METADATA} among the images, or a .txt beside each image: "
    "cat.png, cat.txt"
)

NamedCaption = tuple[str, Caption]
"""A picture's name in its zip or folder, and its caption."""


def find_captions(
    pictures: Path, captions: Sequence[Path], note: Callable[[str], None] = lambda text: None
) -> list[NamedCaption]:
    """Return the captions of a zip or folder, in the order of the first file of captions, or else of the names.

    captions: JSON lines {"file" or "file_name", "label" or "text", "tags", "group"}, of which the last two may be
    missing. None given: a metadata.jsonl of that kind among the pictures, or a .txt beside each. Further files add
    names (their labels) and tags. note: told of pictures that a file leaves without a caption. Raise GencliError for
    broken lines, for pictures without a .txt, and for captions of no picture.
    """
    files = ImageFiles(pictures)
    names, read = files.names, files.read
    if captions:
        found = _parse_file(captions[0])
    elif file := next((name for name in names if PurePosixPath(name).name == METADATA), None):
        folder = str(PurePosixPath(file).parent)
        rows = parse(_text(read(file), f"{pictures}/{file}"), f"{pictures}/{file}")
        found = [(name if folder == "." else f"{folder}/{name}", caption) for name, caption in rows]
    else:
        found = _beside(pictures, names, read)
    if not found:
        raise GencliError(f"{captions[0] if captions else pictures} holds no captions", HINT)
    known = set(names)
    if lost := [name for name, _ in found if name not in known]:
        raise GencliError(f"{pictures} has no {lost[0]}" + (f" and {len(lost) - 1} more" if lost[1:] else ""))
    shown = {name for name in names if name.lower().endswith(KINDS)}
    if lacking := shown - {name for name, _ in found}:
        count = len(shown) - len(lacking)
        has = "has" if count == 1 else "have"
        note(f"{count} of {counted(len(shown), 'image')} {has} a caption: the others are left out")
    for more in captions[1:]:
        found = _with_words(found, _parse_file(more), more)
    return found


def _parse_file(path: Path) -> list[NamedCaption]:
    check_ends(path)
    return parse(_text(path.read_bytes(), str(path)), str(path))


def _with_words(captions: list[NamedCaption], words: list[NamedCaption], where: Path) -> list[NamedCaption]:
    """Add the labels of `words` as names, and its tags. Raise GencliError for a picture that has no caption."""
    names: dict[str, list[str]] = {name: [] for name, _ in captions}
    tags: dict[str, list[str]] = {name: [] for name, _ in captions}
    for name, caption in words:
        if name not in names:
            raise GencliError(f"{where} tells of {name}, which has no caption")
        names[name].append(caption.label)
        tags[name] += caption.tags
    return [
        (name, replace(caption, tags=(*caption.tags, *tags[name]), names=(*caption.names, *names[name])))
        for name, caption in captions
    ]


def parse(text: str, where: str) -> list[NamedCaption]:
    """Return the captions of JSON lines. Raise GencliError for a line that is none."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{where}, line {number}")
        keys = [next((key for key in pair if isinstance(row, dict) and key in row), "") for pair in KEYS]
        if not isinstance(row, dict) or not all(keys):
            raise GencliError(
                f"{where}, line {number}: no JSON object with keys 'file' and 'label', or 'file_name' and 'text'"
            )
        if wrong := next((key for key in keys if not isinstance(row[key], str)), None):
            raise GencliError(f"{where}, line {number}: {wrong!r} is not a text in quotes")
        tags = row.get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise GencliError(f"{where}, line {number}: 'tags' is not a list of texts")
        name, label = row[keys[0]], as_unicode(row[keys[1]], f"{where}, line {number}")
        rows.append((name, Caption(label, tuple(tags), str(row.get("group") or ""))))
    return rows


def _beside(pictures: Path, names: list[str], read: Callable[[str], bytes]) -> list[NamedCaption]:
    """Return each picture's caption from the text file of its name."""
    shown = [name for name in names if name.lower().endswith(KINDS)]
    texts = {name: str(PurePosixPath(name).with_suffix(".txt")) for name in shown}
    known = set(names)
    if lost := [name for name in shown if texts[name] not in known]:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise GencliError(f"{pictures}: no caption for {lost[0]}{more}", HINT)
    return [
        (name, Caption(" ".join(_text(read(file), f"{pictures}/{file}").split()), (), ""))
        for name, file in texts.items()
    ]


def _text(content: bytes, where: str) -> str:
    check_no_pointer(content, where)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GencliError(f"{where} is not UTF-8 at byte {error.start}") from None
