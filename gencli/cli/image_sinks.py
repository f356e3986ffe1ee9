"""Write images to stdout, or to files named by a template, and print their paths or JSON."""

from __future__ import annotations

import dataclasses
import os
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gencli.atomic import check_folder, check_target, is_stream, open_stream, write_new, write_over
from gencli.cli.console import is_terminal
from gencli.cli.sinks import stdout_bytes, write, write_json
from gencli.errors import GencliError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from gencli.image.request import ImageRequest

DEFAULT_NAME = "gencli-{seed}"
FIELDS = ("seed", "index", "prompt")
EXTENSIONS = ("png", "jpg", "jpeg", "webp")
SLUG_LENGTH = 60  # characters of a prompt in a file name
STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # files that stand for it
NO_FILES: Mapping[str, Path | Sequence[Path]] = {}
CHECKED = 1000  # paths of one request that are looked at before the work


@dataclasses.dataclass(frozen=True)
class Template:
    """A path with {seed}, {index} and {prompt} in it; numbers take a width, as in {index:03}.

    new: never over an old file, but beside it under another name. stream: a pipe or device at this path, opened.
    """

    text: str
    new: bool = False
    stream: BinaryIO | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.text))
            for _, name, spec, conversion in parts:
                if name is not None and (name not in FIELDS or conversion or not _fits(name, spec or "")):
                    raise ValueError
            self.path(seed=0, index=0, prompt="")
        except (ValueError, IndexError, KeyError):
            hint = "known: {seed}, {index}, {prompt}, with a width as in {index:03}; write {{ for a literal brace"
            text = self.text.replace("{{", "").replace("}}", "")
            wrong = "unknown placeholder" if text.count("{") == text.count("}") else "a brace without its other half"
            raise UsageError(f"{self.text}: {wrong}", hint) from None

    @property
    def fields(self) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(self.text) if name}

    def path(self, *, seed: int, index: int, prompt: str) -> Path:
        return Path(self.text.format(seed=seed, index=index, prompt=slug(prompt)))

    def check(self, what: str, *, many: bool, prompts: bool = False) -> None:
        """Raise UsageError if several images would go to one file, GencliError if their folder does not exist.

        prompts: each image has a prompt of its own.
        """
        if many and not self.fields & {"seed", "index", *(["prompt"] if prompts else [])}:
            path = Path(self.text)
            hint = f"{what} '{path.with_stem(path.stem + '-{seed}')}'"
            hint += ", or --grid" if what == "-o" else ""  # of a grid each picture has its own animation
            raise UsageError(f"{what} {self.text}: several images would overwrite one file", hint)
        if not self.fields:
            self.check_path(self.path(seed=0, index=0, prompt=""))
        elif not any(field in str(Path(self.text).parent) for field in ("{seed", "{index", "{prompt")):
            check_folder(self.path(seed=0, index=0, prompt="").parent)

    def check_path(self, path: Path) -> None:
        """Raise GencliError unless a file can be written there."""
        if self.stream is None:
            check_folder(path.parent) if self.new and len(path.name) < 200 else check_target(path)

    def check_paths(self, request: ImageRequest, first: int = 0) -> None:
        """Raise GencliError unless the files of a request with its prompt can be written. first: see `ImageSink`."""
        for i in range(min(request.count, CHECKED)):
            index = first + i
            self.check_path(self.path(seed=(request.seed or 0) + index, index=index, prompt=request.prompt))

    def opened(self, note: Callable[[str], None]) -> Template:
        """Return the template with the pipe or device that it names opened: one that nothing reads is told now.

        Raise GencliError."""
        path = Path(self.text)
        if self.fields or not is_stream(path):
            return self
        try:
            waiting = partial(note, f"{path} is a pipe that nothing reads yet: waiting for a reader")
            return dataclasses.replace(self, stream=open_stream(path, waiting))
        except OSError as error:
            raise GencliError(f"cannot write {path}: {error.strerror}") from None

    def write(self, data: bytes, request: ImageRequest, index: int) -> Path:
        """Write one file and return its path. Raise GencliError."""
        path = self.path(seed=request.seed or 0, index=index, prompt=request.prompt)
        try:
            if self.stream is not None:
                self.stream.write(data)
                self.stream.flush()
                return path
            self.check_path(path)
            if self.new:
                return write_new(path, data)
            write_over(path, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise GencliError(f"cannot write {path}: {error.strerror}") from None
        return path


def _fits(name: str, spec: str) -> bool:
    """Return whether a field may have this format; a number has at most two digits of width."""
    return not spec or (name != "prompt" and re.fullmatch(r"0?[0-9]{1,2}d?", spec, re.ASCII) is not None)


def slug(prompt: str) -> str:
    """Return a prompt as part of a file name: letters, marks and digits of any script, joined by dashes."""
    known = (c if unicodedata.category(c)[0] in "LMN" else " " for c in prompt[: 4 * SLUG_LENGTH])
    words = "".join(known).split()
    text = "-".join(words)[:SLUG_LENGTH].strip("-")
    return text.encode()[:160].decode(errors="ignore") or "untitled"


@dataclasses.dataclass(frozen=True)
class ImageSink:
    """Where images go. template: None for stdout. kind: the format, named by its extension."""

    template: Template | None
    kind: str
    json: bool
    metadata: bool

    def without_metadata(self) -> ImageSink:
        return dataclasses.replace(self, metadata=False)

    def check(self, request: ImageRequest, first: int = 0) -> None:
        """Raise GencliError for what could not be written after the work: size, texts or path of the images that a
        resolved request makes. first: the index of its first image."""
        from gencli.image.files.pictures import check_size, check_texts, describe, sheet_size

        kept, size = request.best or request.count, (request.width or 1, request.height or 1)
        check_size(self.kind, *(sheet_size(first // request.count * kept + kept, *size) if request.grid else size))
        if self.metadata:
            last = request.count - 1
            check_texts(self.kind, describe(request.item(last, dtype=request.dtype or "bfloat16")))
        if self.template is not None:
            self.template.check_paths(request, first)

    def encoded(self, image: Image.Image, request: ImageRequest) -> bytes:
        """Return an image as the bytes of its file. Raise GencliError."""
        from gencli.image.files.pictures import describe, encode

        return encode(image, self.kind, describe(request) if self.metadata else None)

    def save(self, image: Image.Image, request: ImageRequest, index: int) -> Path | None:
        """Write one image; return its path, or None for stdout. Raise GencliError."""
        return self.write(self.encoded(image, request), request, index)

    def write(self, data: bytes, request: ImageRequest, index: int) -> Path | None:
        """Write the bytes of one image; return its path, or None for stdout. Raise GencliError."""
        if self.template is None:
            write(data)
            return None
        return self.template.write(data, request, index)

    def report(
        self,
        path: Path | None,
        request: ImageRequest,
        index: int,
        beside: Mapping[str, Path | Sequence[Path]],
        more: Mapping[str, object],
    ) -> None:
        """Print the path of an image and those of the files in `beside`; `more` is added to its JSON."""
        if path is None:
            return
        if self.json:
            write_json({**record(path, request, index, beside), **more})
            return
        print_path(path)
        for one in beside.values():
            for saved in [one] if isinstance(one, Path) else one:
                print_path(saved)

    def report_beside(self, name: str, path: Path) -> None:
        """Print the path of a file that is of all images."""
        if self.json:
            write_json({name: _text(path)})
        elif self.template is not None:
            print_path(path)


def record(
    path: Path, request: ImageRequest, index: int, beside: Mapping[str, Path | Sequence[Path]] = NO_FILES
) -> dict[str, object]:
    """Return what JSON says of an image: its number, its path and those of the files in `beside`, and its request."""
    from gencli.image.files.metadata import to_dict

    files = {name: _text(one) if isinstance(one, Path) else [*map(_text, one)] for name, one in beside.items()}
    return {"index": index, "path": _text(path), **files, **to_dict(request)}


class FilesOfLines:
    """The files that the images of lines will go to, none of which may be that of two lines."""

    def __init__(self, sink: ImageSink, animation: Template | None = None):
        self.sink, self.animation = sink, animation
        self.taken: dict[Path, int] = {}  # line whose image a file will hold

    def check(self, request: ImageRequest, number: int) -> None:
        """Raise GencliError if the images of a line, counted from 0, cannot be written. request: with its prompt."""
        first = number * request.count
        self.sink.check(request, first)
        if self.animation is not None:
            self.animation.check_paths(request, first)
        for template in (self.sink.template, self.animation):
            if template is not None and not request.grid and not template.fields & {"seed", "index"}:
                path = template.path(seed=0, index=0, prompt=request.prompt)
                if (line := self.taken.setdefault(path, number)) != number and template.stream is None:
                    raise GencliError(
                        f"{path} holds the image of line {line + 1}", "{index} in the name tells them apart"
                    )


def _text(path: Path) -> str:
    """Return a path as text for JSON, which is UTF-8 whatever the file system uses."""
    return _as_typed(path).decode("utf-8", "replace")


def print_path(path: Path) -> None:
    """Print a path on a line, in the bytes of the file system."""
    write(_as_typed(path) + b"\n")


def _as_typed(path: Path) -> bytes:
    """Return a path in the bytes of the file system; one that begins with a dash is not to be taken for an option."""
    name = os.fsencode(path)
    return b"./" + name if name.startswith(b"-") else name


def plan(
    output: str | None,
    kind: str | None,
    *,
    many: bool,
    json: bool,
    metadata: bool,
    prompts: bool = False,
    sweep: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> ImageSink:
    """Return where images go, by -o, --format and what stdout is. Raise UsageError for an impossible combination.

    sweep: --sweep makes several images of one seed. A pipe is opened, which waits for its reader and tells `note` so.
    Raise GencliError when stdout is closed.
    """
    stdout_bytes()  # fails now rather than after the work
    terminal = is_terminal(sys.stdout)
    output = "-" if output in STDOUT else output
    if output == "-" or (output is None and not terminal and not json):
        if json:
            raise UsageError("--json prints on stdout and does not go with -o -", "name a file with -o")
        if terminal:
            raise UsageError("-o -: a terminal cannot display raw image data", "redirect stdout, or use --preview")
        if many:
            raise UsageError(
                "stdout can hold one image only", "-o 'NAME-{seed}.png' saves files, --grid makes one image"
            )
        return ImageSink(None, _kind(None, kind), json, metadata)
    kind = _kind(output, kind)
    template = _template(output, kind)
    if many and sweep and not template.new and "index" not in template.fields:
        hint = "{index} in the name tells them apart; --grid makes one sheet"
        raise UsageError(f"-o {output}: images of --sweep may have the same seed", hint)
    template.check("-o", many=many, prompts=prompts)
    return ImageSink(template.opened(note), kind, json, metadata)


def _kind(output: str | None, kind: str | None) -> str:
    """Return the format: --format, else by the extension, else PNG."""
    found = "" if output is None or output.endswith("/") else Path(output).suffix.removeprefix(".").lower()
    if kind is not None and kind not in EXTENSIONS:
        raise UsageError(f"--format {kind}: unknown kind of image", f"gencli writes {', '.join(EXTENSIONS)}")
    if found not in EXTENSIONS:
        if found and kind is None and not Path(output or "").is_dir():
            raise UsageError(f"-o {output}: unknown kind of image .{found}", f"gencli writes {', '.join(EXTENSIONS)}")
        return kind or "png"
    if kind is not None and kind.replace("jpeg", "jpg") != found.replace("jpeg", "jpg"):
        raise UsageError(f"--format {kind} does not fit -o {output}")
    return found


def _template(output: str | None, kind: str) -> Template:
    name = f"{DEFAULT_NAME}.{kind}"
    if output is None:
        return Template(name, new=True)
    if output.endswith("/") or Path(output).is_dir():
        folder = output.replace("{", "{{").replace("}", "}}")
        return Template(str(Path(folder) / name), new=True)
    return Template(output)


def animation(path: str | None, note: Callable[[str], None] = lambda text: None) -> Template | None:
    """Return where --gif goes. Raise UsageError unless it is a .gif or .webp file."""
    if path is None:
        return None
    if not path.lower().endswith((".gif", ".webp")):
        raise UsageError(f"--gif {path}: expected a name that ends in .gif or .webp")
    template = Template(path)
    template.check("--gif", many=False)
    return template.opened(note)


def check_animation(template: Template, *, many: bool, walks: bool, prompts: bool = False) -> None:
    """Raise UsageError unless each image has a file for its animation; of a model that walks, unless there are two."""
    if not walks:
        template.check("--gif", many=many, prompts=prompts)
    elif not many:
        raise UsageError(f"--gif {template.text}: leads from image to image, and there is one", "--count 2 makes two")
