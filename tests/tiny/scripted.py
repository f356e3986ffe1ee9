"""A GPT-2 that says given tokens whatever it is told: its position embeddings hold the script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gencli.text.chat_template_worker import to_json
from tests.oracles.libraries import transformers
from tests.tiny.text import write_json

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Added = str | AddedToken


def bytes_tokenizer(*added: Added) -> Tokenizer:
    """A token for each byte, and the added ones from 256 on; those given as text are special."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    for token in added:
        plain = isinstance(token, AddedToken) and not token.special
        (made.add_tokens if plain else made.add_special_tokens)([token])
    return made


def plain(*texts: str) -> tuple[AddedToken, ...]:
    """Added tokens that are not special."""
    return tuple(AddedToken(text, special=False, normalized=False) for text in texts)


def pieces_tokenizer(kind: str) -> Tokenizer:
    """SentencePiece's kind: ▁ stands for a space. kind: llama (Strip), metaspace (first) or never (no cut)."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    words = ["▁Once", "▁time"]
    merges = [(word[:at], word[at]) for word in words for at in range(1, len(word))]
    for piece in ["▁", *"Onctimeupa.", *(left + right for left, right in merges)]:
        vocab.setdefault(piece, len(vocab))
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(steps)
    else:
        scheme = "first" if kind == "metaspace" else "never"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme), decoders.Fuse()]
        made.decoder = decoders.Sequence(steps)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def make_scripted(
    folder: Path,
    tokenizer: Tokenizer,
    ids: list[int],
    start: int,
    *,
    generation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    positions: int = 256,
) -> Path:
    """Write a checkpoint whose likeliest tokens after a prompt of `start` tokens are `ids`, one after the other."""
    size = tokenizer.get_vocab_size()
    shape = {"n_positions": positions, "n_embd": 32, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=size, **shape)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln_" in path and path.endswith("weight") else 0.0)
        codes = torch.randn(size, 32, generator=torch.Generator().manual_seed(1))
        codes = torch.nn.functional.normalize(codes, dim=-1)
        codes -= codes.mean(-1, keepdim=True)
        model.lm_head.weight.copy_(codes)
        for i, token in enumerate(ids):
            model.transformer.wpe.weight[start - 1 + i] = codes[token] * 50
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in ("bos_token_id", "eos_token_id")} | (config or {})
    write_json(folder / "config.json", raw)
    write_json(folder / "generation_config.json", generation or {})
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"} | (tokenizer_config or {})
    write_json(folder / "tokenizer_config.json", named)
    return folder


def make_scripted_chat(
    folder: Path,
    said: str | list[int],
    *added: Added,
    template: str = CHATML,
    special: bool = True,
    messages: list[dict[str, str]] | None = None,
    generation: dict[str, Any] | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    positions: int = 256,
    tools: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a chat model that answers "Hi" with `said`. <|endoftext|> is 256, <|im_start|> 257, <|im_end|> 258."""
    turns = (TURN, TURN_END) if special else plain(TURN, TURN_END)
    tokenizer = bytes_tokenizer(END, *turns, *added)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda message: ""
    environment.filters["tojson"] = to_json
    asked = messages or [{"role": "user", "content": "Hi"}]
    prompt = environment.from_string(template).render(messages=asked, tools=tools, add_generation_prompt=True)
    ids = tokenizer.encode(said).ids if isinstance(said, str) else said
    named = {"chat_template": template, "eos_token": END} | (tokenizer_config or {})
    start = len(tokenizer.encode(prompt).ids)
    generation = {"eos_token_id": 256} if generation is None else generation
    more = {"generation": generation, "tokenizer_config": named, "positions": positions}
    return make_scripted(folder, tokenizer, ids, start, **more)
