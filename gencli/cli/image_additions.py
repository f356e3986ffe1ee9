"""`--lora`, `--embedding` and `--weighted`: files that go with the model, and how prompts are read. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import typer

from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.cli import options
from gencli.cli.image_options import INPUT
from gencli.errors import GencliError
from gencli.image.request import ImageRequest

T = TypeVar("T", LoraRef, EmbeddingRef)

Weighted = Annotated[
    bool,
    typer.Option(
        "--weighted/--no-weighted",
        help="Read prompts as the web UI does: (word), ((word)), [word] and (word:1.2) are weights, \\( is a bracket, "
        "BREAK ends a chunk, and prompts may be of any length (default: brackets are text).",
        rich_help_panel=INPUT,
    ),
]
Embedding = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[:WORD]",
        help="Teach the model a word by textual inversion, to be used in prompts: the one that the file names, else "
        "the file's own name, or WORD (repeatable).",
        rich_help_panel=INPUT,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="NAME[:SCALE]",
        help="Merge a LoRA into the weights: a file or folder as diffusers, kohya's trainer or peft writes it, or a "
        "Hugging Face id, with /FILE where there are several (repeatable; default scale: 1).",
        rich_help_panel=options.MODEL,
    ),
]


@dataclass(frozen=True)
class Additions:
    """What a request adds to its model. Raises UsageError for names that are none, before anything is looked for."""

    loras: tuple[LoraRef, ...] = ()
    embeddings: tuple[EmbeddingRef, ...] = ()

    @classmethod
    def of(cls, request: ImageRequest) -> Additions:
        return cls(tuple(map(LoraRef.parse, request.lora)), tuple(map(EmbeddingRef.parse, request.embedding)))

    def find(self, from_file: str | None, given: Collection[str], **fetching: Any) -> Additions:
        """The same with paths that are here. from_file: the picture that names what is not given: of that, nothing is
        fetched. Raises GencliError for what is not there."""
        find_loras, find_embeddings = (
            partial(_find, from_file=None if name in given else from_file, option=f"--{name}", **fetching)
            for name in ("lora", "embedding")
        )
        return Additions(tuple(map(find_loras, self.loras)), tuple(map(find_embeddings, self.embeddings)))


def _find(one: T, *, from_file: str | None, option: str, **fetching: Any) -> T:
    if from_file is None:
        return one.find(**fetching)
    try:
        return one.find(**{**fetching, "offline": True})
    except GencliError:
        raise GencliError(
            f"{from_file} was made with {option} {one.path}, which is not on this machine",
            f"name another with {option}, or get it if you trust where it comes from",
        ) from None


def say_slips(request: ImageRequest, words: Collection[str], note: Callable[[str], None]) -> None:
    """Hints: for the words of embeddings that are in no prompt, and for LoRA files named in one."""
    texts = f"{request.prompt}\n{request.negative or ''}".lower()
    for word in words:
        if word.lower() not in texts:
            note(f"no prompt has the word {word!r}, which stands for its embedding")
    if "<lora:" in texts and not request.weighted:
        note("<lora:…> in a prompt is text; --lora FILE:SCALE loads one")
