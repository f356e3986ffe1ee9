"""DALL·E mini by its formulas, over the tensors of its files: a whole sequence at once, without a cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.checkpoints.formats.vq import CODEBOOK, read_vq
from tests.oracles.libraries import diffusers

HEAD, BEGIN, CODES = 64, 2**14 - 1, 2**14
Tensors = Mapping[str, Tensor]


def norm(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)


def attention(tensors: Tensors, name: str, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """What x (B, T, C) sees of y (B, S, C) where mask (B or 1, T or 1, S) is true."""
    q, k, v = (
        (one @ tensors[f"{name}.{part}_proj.weight"].T).unflatten(-1, (-1, HEAD))
        for part, one in (("q", x), ("k", y), ("v", y))
    )
    scores = torch.einsum("bthd,bshd->bhts", q * HEAD**-0.5, k) - 1e12 * (~mask[:, None]).float()
    mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    return mixed.flatten(2) @ tensors[f"{name}.out_proj.weight"].T


def glu(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    x = norm(tensors, f"{name}.ln0", x)
    gate, value = (x @ tensors[f"{name}.{one}.weight"].T for one in ("fc0", "fc1"))
    return norm(tensors, f"{name}.ln1", F.gelu(gate) * value) @ tensors[f"{name}.fc2.weight"].T


def sublayer(tensors: Tensors, layer: str, name: str, x: Tensor, y: Tensor | None, mask: Tensor) -> Tensor:
    """x and what an attention adds to it, with a norm before and behind."""
    inner = norm(tensors, f"{layer}.pre_{name}_layer_norm", x)
    seen = attention(tensors, f"{layer}.{name}", inner, inner if y is None else y, mask)
    return x + norm(tensors, f"{layer}.{name}_layer_norm", seen)


def embed(tensors: Tensors, ids: Tensor) -> Tensor:
    x = tensors["embed_tokens.weight"][ids] + tensors["embed_positions.weight"][: ids.shape[1]]
    return norm(tensors, "layernorm_embedding", x)


def layers(tensors: Tensors) -> range:
    return range(1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers.")))


def encode(tensors: Tensors, ids: Tensor) -> Tensor:
    """States (B, S, C) of texts (B, S)."""
    x = embed(tensors, ids)
    for i in layers(tensors):
        x = sublayer(tensors, f"layers.{i}", "self_attn", x, None, (ids != 1)[:, None])
        x = x + glu(tensors, f"layers.{i}.glu", x)
    return norm(tensors, "final_ln", x)


def logits(encoder: Tensors, decoder: Tensors, text: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, T + 1, K) before each of T tokens and behind them, of texts (B, S)."""
    states = encode(encoder, text)
    x = embed(decoder, F.pad(tokens, (1, 0), value=BEGIN))
    causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()[None]
    for i in layers(decoder):
        x = sublayer(decoder, f"layers.{i}", "self_attn", x, None, causal)
        x = sublayer(decoder, f"layers.{i}", "encoder_attn", x, states, (text != 1)[:, None])
        x = x + glu(decoder, f"layers.{i}.glu", x)
    return (norm(decoder, "final_ln", x) @ decoder["lm_head.weight"].T)[..., :CODES]


def diffusers_vq(tensors: Tensors) -> diffusers.VQModel:
    """diffusers' VQModel with a detokenizer's tensors."""
    named = {CODEBOOK if name == "embedding.weight" else name: one for name, one in tensors.items()}
    found, unknown = read_vq({name: tuple(one.shape) for name, one in named.items()})
    config = {key: value for key, value in found.config.items() if key not in ("_class_name", "encodes")}
    model = diffusers.VQModel(**config).eval()
    state = {new: piece.transform(named[piece.source]) if piece.transform else named[piece.source]
             for new, piece in found.pieces.items()}  # fmt: skip
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unknown and not unexpected
    assert all(name.startswith(("encoder.", "quant_conv.")) for name in missing)
    return model


def decode(detoker: Tensors, codes: Tensor) -> Tensor:
    """An image (3, 256, 256), about 0..1, of codes (1, 256), by diffusers' autoencoder."""
    entries = detoker["embedding.weight"][codes].view(1, 16, 16, -1).movedim(3, 1)
    return diffusers_vq(detoker).decode(entries, force_not_quantize=True).sample[0]
