"""Write a Stable-Diffusion-shaped checkpoint: each part in the layout in which diffusers and transformers save it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE

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
