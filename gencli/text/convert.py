"""A language model → a GGUF file that other programs open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gencli.atomic import open_over
from gencli.checkpoints.formats.gguf_draft import make_draft
from gencli.checkpoints.gguf_write import write_gguf
from gencli.errors import GencliError
from gencli.kernels import PACKED
from gencli.models.module import stored_as
from gencli.text.load import TextModel
from gencli.tokens.gguf_metadata import gguf_metadata

PRECISIONS = {"torch.float32": "f32", "torch.bfloat16": "bf16"}  # how weights are stored → a mix, if it is not f16


def convert(
    model: TextModel,
    mix: str | None,
    path: Path,
    *,
    licence: str | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Write a model with its tokenizer, whole or not at all. Return the number of tensors of each type.

    mix: a row of `mixes.MIXES`; None: the precision of most of the weights, f16 of packed ones. progress: see
    `write_gguf`. note: is told, before anything is written, that weights are packed twice.
    Raise GencliError for a model or tokenizer that such a file cannot hold, OSError.
    """
    named = {"general.name": Path(model.name).name, "general.license": licence}
    metadata: dict[str, object] = {key: value for key, value in named.items() if value is not None}
    try:
        metadata |= gguf_metadata(model.tokenizer, model.vocab_size)
        draft = make_draft(model.module, mix or PRECISIONS.get(stored_as(model.module), "f16"), metadata, path)
    except GencliError as error:
        raise GencliError(f"{model.name}: {error.message}", error.hint) from None
    tensors = list(draft.tensors.values())
    if again := [one for one in tensors if one.packed not in ("", one.kind) and one.kind in PACKED]:
        old, new = (", ".join(sorted(kinds)) for kinds in ({one.packed for one in again}, {one.kind for one in again}))
        note(f"{old} weights are packed again as {new}: this loses more than packing the original model does")
    with open_over(path) as file:
        write_gguf(file, draft.metadata, tensors, progress)
    kinds = list(draft.dtypes.values())
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
