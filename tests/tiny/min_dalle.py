"""A small seeded DALL·E mini in the layout of min-dalle's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

WIDTH, INNER, LAYERS, WORDS = 128, 48, 2, 300
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MERGES = ["Ġ r", "e d", "Ġr ed", "d o", "do g", "Ġ dog", "c a", "ca t", "Ġ cat", "Ġ a"]
VOCAB = [*SPECIALS, "Ġ", *"abcdefghijklmnopqrstuvwxyz0123456789.,!", *(pair.replace(" ", "") for pair in MERGES)]
CODES, CHANNELS = 2**14, 32


def half(name: str, sizes: tuple[int, int, int, int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of encoder.pt or decoder.pt. sizes: width, inner width, layers, ids, positions."""
    width, inner, layers, ids, positions = sizes
    yield "embed_tokens.weight", (ids, width)
    yield "embed_positions.weight", (positions, width)
    norms = ["layernorm_embedding", "final_ln"]
    for i in range(layers):
        for attention in ("self_attn", "encoder_attn")[: 1 + (name == "decoder")]:
            for part in "kvq":
                yield f"layers.{i}.{attention}.{part}_proj.weight", (width, width)
            yield f"layers.{i}.{attention}.out_proj.weight", (width, width)
            norms += [f"layers.{i}.pre_{attention}_layer_norm", f"layers.{i}.{attention}_layer_norm"]
        norms.append(f"layers.{i}.glu.ln0")
        yield from ((f"layers.{i}.glu.ln1.{kind}", (inner,)) for kind in ("weight", "bias"))
        yield from ((f"layers.{i}.glu.{one}.weight", (inner, width)) for one in ("fc0", "fc1"))
        yield f"layers.{i}.glu.fc2.weight", (width, inner)
    yield from ((f"{norm}.{kind}", (width,)) for norm in norms for kind in ("weight", "bias"))
    if name == "decoder":
        yield "lm_head.weight", (ids, width)


def detoker(channels: int = CHANNELS, latent: int = 16) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of detoker.pt: five levels of 1, 1, 2, 2 and 4 times the channels."""
    widths = [channels * one for one in (1, 1, 2, 2, 4)]
    yield "embedding.weight", (CODES, latent)
    yield from _conv("post_quant_conv", latent, latent, 1)
    yield from _conv("decoder.conv_in", latent, widths[-1], 3)
    for block in ("block_1", "block_2"):
        yield from _resnet(f"decoder.mid.{block}", widths[-1], widths[-1])
    yield from _attention("decoder.mid.attn_1", widths[-1])
    for i, width in enumerate(widths):
        into = widths[min(i + 1, 4)]
        for j in range(3):
            yield from _resnet(f"decoder.up.{i}.block.{j}", width if j else into, width)
            yield from _attention(f"decoder.up.{i}.attn.{j}", width) if i == 4 else ()
        yield from _conv(f"decoder.up.{i}.upsample.conv", width, width, 3) if i else ()
    yield from _norm("decoder.norm_out", widths[0])
    yield from _conv("decoder.conv_out", widths[0], 3, 3)


def _conv(name: str, into: int, out: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into, kernel, kernel)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{kind}", (width,)) for kind in ("weight", "bias"))


def _resnet(name: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", into, out, 3)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out, 3)
    yield from _conv(f"{name}.nin_shortcut", into, out, 1) if into != out else ()


def _attention(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.{part}", width, width, 1)


def filled(shapes: Iterator[tuple[str, tuple[int, ...]]], seed: int, gain: float = 1.0) -> dict[str, Tensor]:
    """Seeded values: matrices that keep the size of what they multiply, norms about 1, biases about 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes:
        one = torch.randn(shape, generator=generator)
        is_table, fan = "embed" in name and one.ndim == 2, one[0].numel()
        tensors[name] = one if is_table else gain * one / fan**0.5 if one.ndim > 1 else 0.2 * one
        if one.ndim == 1 and name.endswith("weight"):
            tensors[name] += 1
    return tensors


def make_min_dalle(folder: Path, *, mini: bool = False, apart: bool = False) -> dict[str, dict[str, Tensor]]:
    """Write all files. mini: with `_mini` in their names. apart: as the package keeps them, in folders of two models.

    Return the tensors of the files. The mini has as many image tokens as there are codes, the mega some more.
    """
    end, home = "_mini" if mini else "", folder / "vqgan" if apart else folder
    folder = folder / ("dalle_bart_mini" if mini else "dalle_bart_mega") if apart else folder
    end = "" if apart else end
    folder.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    ids = CODES + 1 + 31 * (not mini)
    tensors = {
        "encoder": filled(half("encoder", (WIDTH, INNER, LAYERS, WORDS, 64)), 1),
        "decoder": filled(half("decoder", (WIDTH, INNER, LAYERS, ids, 256)), 2, gain=1.5),
        "detoker": filled(detoker(), 3),
    }
    tensors["detoker"]["decoder.conv_out.bias"] += 0.5  # images are within 0..1
    for name in ("encoder", "decoder"):
        torch.save(tensors[name], folder / f"{name}{end}.pt")
    torch.save(tensors["detoker"], home / "detoker.pt")
    (folder / f"vocab{end}.json").write_text(json.dumps({word: i for i, word in enumerate(VOCAB)}), encoding="utf-8")
    (folder / f"merges{end}.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    return tensors
