"""Tiny seeded text checkpoints in the hub's true layouts, written with the reference library or by hand.

`make_gpt2` and `make_tokenizer` need nothing but a folder: the same arguments give the same files every time.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
START = "<|startoftext|>"

SENTENCES = [
    "Once upon a time there was a little girl who liked to play in the garden with her dog.",
    'The dog ran and ran, and the girl laughed. "Come back!" she said, but he didn\'t listen.',
    "In the end they went home together and had soup; it was 7 o'clock, then 8, then 9.",
    "从前有一个小女孩,她喜欢和她的狗在花园里玩。",
    "他们一起回家了。 你好,世界! 你好吗?",
    "Caffè, naïve, crème brûlée, Zürich, \u0928\u092e\u0938\u094d\u0924\u0947, e\u0301a\u0300.",
    "🙂 😀 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ emoji are fun 🙂🙂.",
]

# Texts that tokenizers stumble over: see the names of the tests that use them.
TEXTS = [
    *SENTENCES,
    "",
    " ",
    "  two  spaces\tand\ttabs\n\nand lines\r\n ",
    "trailing space ",
    "don't we'll I'M SHE'S they've it'd",
    "123 4567 3.14 1,000,000",
    "!!! ??? ... #$%^&*() <tag> </w> a</w>b \u0120 \u010a",
    "e\u0301 \u00e9 \ufb01 \u2460 \u1e9e \u0130stanbul STRASSE \uff21\uff22",
    "👩‍👩‍👧‍👦👍🏽🇫🇷",
    "\u0000\u0001\u007f\u200b\u200d\ufeff\ufffd\u2028",
    "混合mixed文字和English単語カタカナ한국어",
    f"one{END}two {END} three{END}",
    f"{START}a{END}",
]


@functools.cache
def byte_bpe(vocab_size: int = 384, clip: bool = False) -> Tokenizer:
    """A byte-level BPE trained on SENTENCES: GPT-2's (end-of-text last), or CLIP's (`</w>`, start and end last)."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>") if clip else models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if clip:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    specials = [START, END] if clip else [END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        **({"end_of_word_suffix": "</w>"} if clip else {}),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(specials)
    tokenizer.decoder = decoders.ByteLevel()
    if not clip:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def bpe_files(clip: bool = False) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary (special tokens included) and merges of `byte_bpe`."""
    tokenizer = byte_bpe(clip=clip)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    if clip:  # every byte must also be able to end a word
        vocab = {piece: i for piece, i in vocab.items() if piece not in (START, END)}
        for char in sorted(pre_tokenizers.ByteLevel.alphabet()):
            vocab.setdefault(f"{char}</w>", len(vocab))
        vocab |= {START: len(vocab), END: len(vocab) + 1}
    return vocab, [tuple(pair) for pair in model["merges"]]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def make_tokenizer(folder: Path, layout: Literal["json", "vocab"] = "json") -> int:
    """Write GPT-2's tokenizer files; returns the vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "json":
        byte_bpe().save(str(folder / "tokenizer.json"))
        names = {"bos_token": END, "eos_token": END, "unk_token": END}
        write_json(folder / "tokenizer_config.json", {**names, "tokenizer_class": "GPT2Tokenizer"})
    else:
        vocab, merges = bpe_files()
        _write_bpe(folder, vocab, merges)
        write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})  # all that the hub's gpt2 has
    return byte_bpe().get_vocab_size()


def make_clip_tokenizer(folder: Path, *, pad: str = END, max_length: int = 77) -> int:
    """Write CLIP's tokenizer files as Stable Diffusion 1 (pad: the end token) and 2 (pad: `!`) have them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = bpe_files(clip=True)
    _write_bpe(folder, vocab, merges)
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    names = {"bos_token": START, "eos_token": END, "unk_token": END}
    write_json(
        folder / "special_tokens_map.json",
        {name: {"content": token, **plain} for name, token in names.items()} | {"pad_token": pad},
    )
    typed = {name: {"__type": "AddedToken", "content": token, **plain} for name, token in names.items()}
    more = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "pad_token": END}
    write_json(
        folder / "tokenizer_config.json",
        {**typed, **more, "model_max_length": max_length, "tokenizer_class": "CLIPTokenizer"},
    )
    return len(vocab)


def _write_bpe(folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def make_gpt2(
    folder: Path,
    *,
    layout: Literal["hub", "saved"] = "hub",
    tokenizer: Literal["json", "vocab"] | None = "json",
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a tiny GPT-2 checkpoint and return its folder.

    layout "hub": keys without `transformer.`, with the mask buffers, no lm_head, as openai-community/gpt2 has them;
    "saved": as transformers' save_pretrained writes. `config`: keys of config.json.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = make_tokenizer(folder, tokenizer) if tokenizer else byte_bpe().get_vocab_size()
    shape = {"vocab_size": size, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    parsed = transformers.GPT2Config(**{**shape, "bos_token_id": size - 1, "eos_token_id": size - 1, **config})
    model = random_model(transformers.GPT2LMHeadModel, parsed, seed).to(dtype)
    if layout == "saved":
        model.save_pretrained(folder, max_shard_size="40KB" if sharded else "5GB")
        return folder
    write_json(folder / "config.json", {**parsed.to_diff_dict(), "architectures": ["GPT2LMHeadModel"], "n_ctx": 1024})
    write_json(folder / "generation_config.json", {"bos_token_id": size - 1, "eos_token_id": size - 1})
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    tied = parsed.tie_word_embeddings
    tensors = {name: tensor.clone() for name, tensor in tensors.items() if not (tied and name == "lm_head.weight")}
    causal = torch.ones(parsed.n_positions, parsed.n_positions).tril()[None, None]
    for layer in range(parsed.n_layer):
        tensors[f"h.{layer}.attn.bias"] = causal.clone()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    write_weights(folder, tensors, "model", shards=3 if sharded else 1)
    return folder


def make_templated(folder: Path, template: str, **shape: int) -> Path:
    """A GPT-2 whose tokenizer has this chat template."""
    make_gpt2(folder, layout="saved", **shape)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": template})
    return folder


def random_model(cls: Any, config: Any, seed: int) -> Any:
    """A reference model whose every parameter is drawn anew, biases and norms included, so that none can hide."""
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 0.1 if parameter.dim() < 2 else 0.3 / parameter.shape[-1] ** 0.25
        norm = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        parameter.data = norm + scale * torch.randn(parameter.shape, generator=generator)
    model.tie_weights()
    return model


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], stem: str, shards: int = 1) -> None:
    """Write `stem`.safetensors, or `shards` files with their index as the hub names them."""
    if shards == 1:
        save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
