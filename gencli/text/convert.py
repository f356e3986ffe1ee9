"""A language model → a GGUF file that other programs open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gencli.atomic import open_over
from gencli.checkpoints.formats.gguf_draft import make_draft
from gencli.checkpoints.gguf_write import write_gguf
from gencli.errors import GencliError
from gencli.models.module import stored_as
from gencli.text.load import TextModel
from gencli.tokens.gguf_metadata import gguf_metadata

PRECISIONS = {"torch.float16": "f16", "torch.bfloat16": "bf16"}  # how weights are stored → a mix


def convert(
    model: TextModel,
    mix: str | None,
    path: Path,
    *,
    licence: str | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, int]:
    """Write a model with its tokenizer, whole or not at all. Return the number of tensors of each type.

    mix: a row of `mixes.MIXES`; None: the precision of most of the weights. progress: see `write_gguf`.
    Raise GencliError for a model or tokenizer that such a file cannot hold, OSError.
    """
    named = {"general.name": Path(model.name).name, "general.license": licence}
    metadata = {key: value for key, value in named.items() if value is not None}
    try:
        metadata |= gguf_metadata(model.tokenizer, model.vocab_size)
        draft = make_draft(model.module, mix or PRECISIONS.get(stored_as(model.module), "f32"), metadata, path)
    except GencliError as error:
        raise GencliError(f"{model.name}: {error.message}", error.hint) from None
    with open_over(path) as file:
        write_gguf(file, draft.metadata, list(draft.tensors.values()), progress)
    kinds = list(draft.dtypes.values())
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
