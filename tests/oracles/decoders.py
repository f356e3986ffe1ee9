"""Decoders by transformers: logits, and greedy text token by token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gencli.checkpoints.build import load
from tests.tiny.decoders import Case, Form, make_decoder

PROMPT, NEW = 9, 26  # tokens: together more than four windows, twice the original RoPE range
BY_LENGTH = ("dynamic", "longrope")  # RoPE that turns a token by how long the text was when it came


@dataclass(frozen=True)
class Measured:
    """How far a checkpoint's logits are from the reference's, and how many greedy tokens are the same."""

    difference: float
    tokens: int
    equal: int


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in transformers, which must use every tensor of the file and miss none."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # eager: the only attention of transformers that caps scores (Gemma 2)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype, output_loading_info=True
    )
    assert not any(info.values()), info
    model.generation_config.eos_token_id = None  # never stops early
    return model


def token_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))


def continue_greedily(model: nn.Module, ids: Tensor, new: int, *, cached: bool) -> Tensor:
    """ids (B, T) → (B, T + new), by the argmax of our logits."""
    cache: Any = model.new_cache(len(ids), ids.shape[1] + new) if cached else None  # type: ignore[operator]
    seen = 0
    for _ in range(new):
        logits = model(ids[:, seen:], cache, last_only=True)[:, -1]
        seen = ids.shape[1] if cached else 0
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids


def greedy_logits(theirs: Any, ids: Tensor, prompt: int, *, cached: bool = True) -> Tensor:
    """The reference's logits (B, new, V) for the new tokens of `ids` (B, prompt + new), if all of these are greedy.

    One pass over a greedy text gives what as many steps give, and the first token of it that is not greedy is not the
    best there. Where RoPE follows the length, the reference takes the steps, and the tokens are its own. cached: with a
    cache, whose keys keep the rotation that they came with.
    """
    new = ids.shape[1] - prompt
    if not any(kind in str(theirs.config.to_dict()) for kind in BY_LENGTH):
        return theirs(ids[:, :-1], use_cache=False).logits[:, prompt - 1 :]
    begun = ids[:, :prompt]
    whole = theirs.generate(
        begun, attention_mask=torch.ones_like(begun), max_new_tokens=new, do_sample=False, eos_token_id=None,
        use_cache=cached, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return torch.stack(whole.logits, dim=1)


@torch.inference_mode()
def measure(case: Case, folder: Path, form: Form = "old") -> Measured:
    """Compare a checkpoint: logits of 3 x 40 tokens, greedy text of 3 and of the first alone, cached and not."""
    make_decoder(folder, case, form)
    ours, theirs = load(folder), reference(folder)
    ids = token_ids(3, 40)
    difference = (ours(ids) - theirs(ids, use_cache=False).logits).abs().max().item()
    prompt, tokens, equal = token_ids(3, PROMPT, seed=3), 0, 0
    for batch, cached in ((3, True), (1, True), (3, False)):
        got = continue_greedily(ours, prompt[:batch], NEW, cached=cached)
        wanted = greedy_logits(theirs, got, PROMPT, cached=cached).argmax(-1)
        tokens += batch * NEW
        equal += int((got[:, PROMPT:] == wanted).sum())
    return Measured(difference, tokens, equal)
