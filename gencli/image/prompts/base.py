"""What every family's module gives, and how prompts become the token ids of a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from gencli.errors import GencliError
from gencli.image.conditioning import Conditioning
from gencli.image.prompts.classes import HasClasses
from gencli.image.request import ImageRequest
from gencli.models.module import BaseModel
from gencli.tokens import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

Loader = Callable[[str], BaseModel]
"""loader(part) → that part's module with its weights, on the device and in the precision of the checkpoint."""


class PromptParts(HasClasses, Protocol):
    """What a checkpoint says of its conditioner. parts: those that it has. configs: theirs. index: model_index.json."""

    @property
    def parts(self) -> Mapping[str, object]: ...
    @property
    def configs(self) -> Mapping[str, Mapping[str, object]]: ...
    @property
    def index(self) -> Mapping[str, object]: ...
    def tokenizer(self, part: str = "tokenizer") -> Tokenizer: ...


class Conditioner(Protocol):
    """Turns prompts into the network's conditioning. A family's module makes one in `load(checkpoint, loader)`, or
    None for a network that takes no prompt."""

    @property
    def text_encoders(self) -> Sequence[tuple[Tokenizer, BaseModel]]:
        """Its text encoders, each with its tokenizer."""
        ...

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Encode B prompts. Raises GencliError for one that is too long."""
        ...

    def negative(self, request: ImageRequest) -> Conditioning:
        """Encode the negative prompt, or none; every tensor is (1, …). Guidance leads away from it."""
        ...


@runtime_checkable
class SeesImages(Conditioner, Protocol):
    """One whose text encoder sees the images that the network looks at."""

    def seeing(self, images: Sequence[Image.Image]) -> Conditioner:
        """Return the same for prompts about these images, in their order."""
        ...


def pad_prompt(
    tokenizer: Tokenizer, prompt: str, positions: int, vocab_size: int, truncate: str | None, *, chunks: bool = True
) -> list[int]:
    """Token ids of a prompt between begin and end, padded to the length that the model was trained with.

    positions, vocab_size: the text encoder's. truncate: the side that may be cut away. chunks: whether --weighted reads
    longer prompts. Raises GencliError with both lengths when truncate is None and something must be cut.
    """
    limit = max_prompt_tokens(tokenizer, positions)
    ids = prompt_ids(tokenizer, prompt, limit, truncate, chunks=chunks)
    return add_special_tokens(tokenizer, ids, limit, vocab_size)


def prompt_ids(
    tokenizer: Tokenizer, prompt: str, limit: int, truncate: str | None, *, chunks: bool = False
) -> list[int]:
    """Token ids of a prompt, `limit` at most, without begin and end; see `pad_prompt`."""
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if len(ids) > limit and truncate is None:
        raise GencliError(
            f"the prompt has {len(ids)} tokens, and this model reads at most {limit}: {prompt[:40]!r}…",
            f"{'--weighted reads all of it, in chunks; ' if chunks else ''}"
            "--truncate right leaves out its end, --truncate left its beginning",
        )
    return ids[-limit:] if truncate == "left" else ids[:limit]


def max_prompt_tokens(tokenizer: Tokenizer, positions: int) -> int:
    """The most tokens that fit between begin and end."""
    return min(tokenizer.max_length or positions, positions) - 2


def add_special_tokens(tokenizer: Tokenizer, ids: list[int], limit: int, vocab_size: int) -> list[int]:
    """At most `limit` ids between begin and end, padded. Raises GencliError for a tokenizer that does not fit."""
    begin, end = tokenizer.bos_id, next(iter(tokenizer.eos_ids), None)
    if begin is None or end is None:
        raise GencliError(f"{tokenizer.folder}: the tokenizer names no begin and end token")
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else end
    padded = [begin, *ids, end, *[pad] * (limit - len(ids))]
    if max(padded) >= vocab_size:
        raise GencliError(f"{tokenizer.folder}: the tokenizer knows more tokens than the text encoder")
    return padded
