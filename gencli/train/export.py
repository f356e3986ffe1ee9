"""Write a Stable-Diffusion-shaped checkpoint: each part in the layout in which diffusers and transformers save it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE
from torch import Tensor, nn

from gencli.checkpoints.save import write_json

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's pieces (Radford et al. 2021)


def write_clip_tokenizer(folder: Path, texts: Iterable[str], vocab_size: int, max_length: int) -> None:
    """Train a lower-casing byte-level BPE whose words end in `</w>`, and write it as CLIP's: vocab.json, merges.txt."""
    bpe = BPE(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(alphabet) - 2,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = json.loads(bpe.to_str())["model"]["merges"]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [merged for merged in dict.fromkeys("".join(pair) for pair in merges) if merged not in set(words)]
    words += [BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)}, indent=None)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, "do_lower_case": True, **special},
    )


@torch.no_grad()
def normalise_latents(vae: nn.Module, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Fold into the 1×1 convolutions around the latents that each channel of `mean` (N, C, h, w) gets mean 0 and std 1.

    Stable Diffusion has one scaling factor for all channels and no shift; after this it needs neither. Returns what
    the encoder gives from now on for the pictures of `mean` and `deviation`.
    """
    mu, sigma = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    channels = len(mu)
    quant, post = vae.get_submodule("quant_conv"), vae.get_submodule("post_quant_conv")
    assert isinstance(quant, nn.Conv2d) and isinstance(post, nn.Conv2d)
    assert quant.bias is not None and post.bias is not None
    quant.bias[:channels] = (quant.bias[:channels] - mu) / sigma  # the first half gives means, the second log variances
    quant.weight[:channels] /= sigma.view(-1, 1, 1, 1)
    quant.bias[channels:] -= 2 * sigma.log()
    post.bias += post.weight.flatten(1) @ mu
    post.weight *= sigma.view(1, -1, 1, 1)
    mu, sigma = mu.view(1, -1, 1, 1), sigma.view(1, -1, 1, 1)
    return (mean - mu) / sigma, deviation / sigma
