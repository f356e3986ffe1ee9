"""Opening a language model, and what makes it quicker: texts at once, guessed tokens, prompts that were read before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gencli import devices, signals
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.cli.console import Console
from gencli.cli.download import memory_note
from gencli.errors import GencliError, about
from gencli.options import RUN, check, file, integer, string
from gencli.spec import ModelSpec, TextSpec, completing
from gencli.text.events import GenerationStats

if TYPE_CHECKING:
    from gencli.serve.client import RemoteText
    from gencli.serve.wire import Link
    from gencli.text.generate import How
    from gencli.text.load import TextModel
    from gencli.text.speculation import Guesser

LOOKUP = "lookup"


@dataclass(eq=False, repr=False)
class Speed:
    """How the work is done. The text is the same where it is greedy, and else as likely as without."""

    # fmt: off
    batch: int = integer(16, "--batch N",
        "Generate N lines or samples at a time (default: 16).", RUN,
        within=(1, 1024), also=("-np", "--parallel"))
    draft: str | None = string(None, "--draft MODEL",
        "Speculative decoding: a smaller model with the same vocabulary, or `lookup`, which repeats what followed "
        "earlier in the text. At temperature 0 the text stays the same; else it is as likely, but another for a seed.",
        RUN, also=("-md", "--model-draft"), complete=completing("text"))
    prompt_cache: Path | None = file("--prompt-cache FILE",
        "Keep the processed prompt in FILE; the next run processes only what differs.", RUN)
    # fmt: on

    def __post_init__(self) -> None:
        check(self)

    @property
    def is_usual(self) -> bool:
        """Whether the model is all that is needed: no draft, and no file of a prompt."""
        return self.draft is None and self.prompt_cache is None

    def fetch(self, fetch: Callable[[str], Source]) -> None:
        """Find the draft, so that it is on this machine. Raise GencliError."""
        if self.draft is not None and self.draft != LOOKUP:
            _find(fetch, self.draft)

    def ways(
        self,
        console: Console,
        fetch: Callable[[str], Source],
        model: TextModel | RemoteText,
        spec: TextSpec,
        stats: GenerationStats,
    ) -> How:
        """Return the arguments of `generate_all` that follow from it. fetch: finds a model by its name. model: a
        TextModel, or where it `is_usual` one in a server.

        Raise GencliError for a draft that cannot be opened or has another vocabulary, and for a file that is no prompt
        cache.
        """
        how: How = {"batch": 1 if self.draft else self.batch}
        if self.is_usual:
            return how
        from gencli.text.load import TextModel

        assert isinstance(model, TextModel)
        if self.draft:
            how["guesser"] = _guesser(console, fetch, self.draft, model, spec, stats)
        if self.prompt_cache is not None:
            from gencli.text.prompt_file import PromptFile

            how["prompt_cache"] = kept = PromptFile(self.prompt_cache, model.module)
            if kept.note:
                console.note(kept.note)
        return how


def _find(fetch: Callable[[str], Source], draft: str) -> Source:
    with about("--draft"):
        return fetch(draft)


def _guesser(
    console: Console,
    fetch: Callable[[str], Source],
    name: str,
    model: TextModel,
    spec: TextSpec,
    stats: GenerationStats,
) -> Guesser:
    from gencli.text.speculation import Draft, Lookup, price

    _check_cuts_back(model)
    if name == LOOKUP:
        return Lookup(stats, price(model.module))
    draft = open_text_model(
        console, _find(fetch, name), dataclasses.replace(spec, model=name, lora=(), quantize=None), []
    )
    if draft.tokenizer.backend.get_vocab() != model.tokenizer.backend.get_vocab():
        hint = "a draft is a smaller model with the same tokenizer; `--draft lookup` needs none"
        raise GencliError(f"--draft {name}: its vocabulary is not that of {model.name}", hint)
    _check_cuts_back(draft)
    return Draft(draft.module, model.vocab_size, stats, price(model.module, draft.module))


def _check_cuts_back(model: TextModel) -> None:
    """Raise GencliError for a model that cannot forget a token that was guessed wrong."""
    if not model.module.cuts_back:
        raise GencliError(
            f"--draft cannot be used with {model.name}, which keeps states that no token can be taken out of",
            "leave --draft out",
        )


def open_text_model(console: Console, source: Source, spec: ModelSpec, adapters: Sequence[LoraRef]) -> TextModel:
    """Open the model that was found, with progress and its notes on stderr. Raise GencliError."""
    _announce(console, source, spec)
    model = _open(console, source, spec, adapters)
    _note(console, model)
    return model


def open_warm_text_model(
    console: Console, source: Source, spec: ModelSpec, adapters: Sequence[LoraRef], link: Link | None
) -> TextModel | RemoteText:
    """As `open_text_model`, but in the server that `link` leads to, if it can."""
    if link is None:
        return open_text_model(console, source, spec, adapters)
    from gencli.serve.client import open_text

    _announce(console, source, spec)
    model = open_text(link, source, spec, adapters) or _open(console, source, spec, adapters)
    _note(console, model)
    return model


def _announce(console: Console, source: Source, spec: ModelSpec) -> None:
    if getattr(spec, "quantize", None) is None and (note := memory_note(source, devices.memory(), text=True)):
        console.note(note)
    console.progress(f"loading {source.name}")


def _note(console: Console, model: TextModel | RemoteText) -> None:
    console.clear()
    for note in model.notes:
        console.note(note)


def _open(console: Console, source: Source, spec: ModelSpec, adapters: Sequence[LoraRef]) -> TextModel:
    with signals.raise_pending_signals():
        from gencli.text.load import open_model

    def show(_: str, done: int, total: int) -> None:
        console.progress(f"packing {source.name}", done // 10**6, total // 10**6, "million weights")

    return open_model(source, spec, adapters=adapters, quantize=getattr(spec, "quantize", None), progress=show)


def note_no_conversation(console: Console, model: TextModel | RemoteText) -> None:
    """Say of a model that was never taught to converse that it cannot, and how to get one that can."""
    if not model.converses:
        from gencli.checkpoints.catalogue import SUGGESTED, find_entry
        from gencli.cli.download import in_words

        entry = find_entry(SUGGESTED)
        size = f" ({in_words(entry.download)})" if entry else ""
        console.note(
            f"{model.name} only continues texts: it has no chat template and cannot converse. For one that can: "
            f"`gencli models pull {SUGGESTED}`{size}, then `gencli chat -m {SUGGESTED}`"
        )
