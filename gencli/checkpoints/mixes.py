"""Which type each tensor of a model gets: mixes by llama.cpp's names, with its choices. No torch.

In a mix the tensors that the output depends on most get more bits: the head, values, and what leads back from the
feed-forward network, there in the first and last eighth of the layers and in every third one between. Names are GGUF's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from gencli.errors import UsageError, did_you_mean


class Mix(NamedTuple):
    """kind: the type of most tensors. file_type: llama.cpp's number of the mix."""

    kind: str
    file_type: int


MIXES = {
    "f32": Mix("F32", 0), "f16": Mix("F16", 1), "bf16": Mix("BF16", 32), "q8_0": Mix("Q8_0", 7),
    "q4_0": Mix("Q4_0", 2), "q4_1": Mix("Q4_1", 3), "q5_0": Mix("Q5_0", 8), "q5_1": Mix("Q5_1", 9),
    "q2_k": Mix("Q2_K", 10), "q3_k_s": Mix("Q3_K", 11), "q3_k_m": Mix("Q3_K", 12), "q3_k_l": Mix("Q3_K", 13),
    "q4_k_s": Mix("Q4_K", 14), "q4_k_m": Mix("Q4_K", 15), "q5_k_s": Mix("Q5_K", 16), "q5_k_m": Mix("Q5_K", 17),
    "q6_k": Mix("Q6_K", 18),
}  # fmt: skip
PACKING = tuple(MIXES)[3:]  # those that pack
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "fp16": "f16", "fp32": "f32"}
NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # rows in no blocks of 256
OUTSIDE = "Q8_0"  # of what is packed and in no layer, where a network has its own names
LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)\.weight")  # what stands before a layer's number, the number, and what is in it
PARTS = (  # layers of networks by their last name → what llama.cpp calls them, where a mix has a type for that
    (re.compile(r".*\b(to_v|add_v_proj|v_proj|v)"), "attn_v"),
    (re.compile(r".*\b(to_qkv\w*|qkv)"), "attn_qkv"),
    (re.compile(r".*\b(w2|linear_out|down_proj|wo|net\.2)"), "ffn_down"),
)
MORE = {  # mix → part of a layer → its type, where that is not the mix's own
    "q2_k": {"attn_v": "Q3_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"},
    "q3_k_m": {"attn_v": "Q4_K", "attn_output": "Q4_K", "attn_qkv": "Q4_K", "ffn_down": "Q4_K"},
    "q3_k_l": {"attn_v": "Q5_K", "attn_output": "Q5_K", "attn_qkv": "Q4_K", "ffn_down": "Q5_K"},
    "q4_k_m": {"attn_qkv": "Q5_K"},
    "q5_k_m": {"attn_qkv": "Q6_K"},
}


def check_mix(option: str, name: str, known: Sequence[str] = tuple(MIXES)) -> str:
    """Return the name of a mix in full. Raise UsageError for an unknown one."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in known:
        hint = did_you_mean(found, known) or ", ".join(known)
        raise UsageError(f"{option} {name[:40]!r}: no such type of weights", hint)
    return found


def kind_of(mix: str, name: str, shape: Sequence[int], layers: int, groups: int, *, tied: bool) -> str:
    """Return the type of a tensor.

    groups: query heads of each key/value head. tied: whether the head is the embedding.
    """
    from gencli.kernels import TYPES  # help pages do without

    matrices = len(shape) == (3 if name.endswith("_exps.weight") else 2)
    if not matrices or not name.endswith(".weight") or name.startswith("position_embd") or "norm" in name:
        return "F32"
    if name.endswith(("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")):  # which choose experts
        return "F32"
    kind = MIXES[mix].kind
    if TYPES[kind][1] == 1:
        return kind
    part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if name == ("token_embd.weight" if tied else "output.weight"):
        wide = shape[-1] % TYPES[kind][1] == 0
        kind = "Q8_0" if kind == "Q8_0" or not wide else "Q6_K"
    elif part is not None:
        kind = _of_layer(mix, part[2].removesuffix("_exps"), int(part[1]), layers, groups)
    if shape[-1] % TYPES[kind][1]:
        kind = NARROW.get(kind, "F16")
    return kind if shape[-1] % TYPES[kind][1] == 0 else "F16"


def kind_in_network(mix: str, name: str, columns: int, layers: int) -> str | None:
    """Return the type of a matrix that has its network's own name; None where its rows are in no whole blocks.

    layers: how many there are where it is. Matrices in no layer, such as an embedding, are few and get OUTSIDE.
    """
    from gencli.kernels import TYPES

    kind = OUTSIDE
    if (found := LAYER.fullmatch(name)) is not None:
        part = next((part for pattern, part in PARTS if pattern.fullmatch(found[3])), "")
        kind = _of_layer(mix, part, int(found[2]), layers, 1)
    kinds = (kind, NARROW.get(kind, kind))
    return next((one for one in kinds if columns % TYPES[one][1] == 0), None)


def _of_layer(mix: str, part: str, layer: int, layers: int, groups: int) -> str:
    kind, first = MIXES[mix].kind, layer < layers // 8
    often = first or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if part in ("attn_v", "ffn_down") and mix in ("q4_k_m", "q5_k_m"):
        return "Q6_K" if often else kind
    if mix == "q4_k_s" and (layer < 4 if part == "attn_v" else part == "ffn_down" and first):
        return "Q5_K"
    if mix == "q3_k_m" and (layer < 2 if part == "attn_v" else part == "ffn_down" and layer < layers // 16):
        return "Q5_K"
    if mix == "q2_k" and part == "attn_v" and groups >= 4:
        return "Q4_K"
    return MORE.get(mix, {}).get(part, kind)
