"""The recipe behind `weights/stories`: texts → byte-level BPE → GPT-2, trained from nothing.

Every batch follows from (seed, step) alone, so a run that was killed and resumed sees what an unbroken one sees.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.models.gpt2 import GPT2, GPT2Config
from gencli.text.load import open_model
from gencli.train.optim import Optimizers, learning_rate_factor

END = "<|endoftext|>"


@dataclass(frozen=True)
class TextRecipe:
    """What makes a run; lengths in tokens. `lead`: the source prefix that gets `lead_share` of the documents seen."""

    data: str
    validation: str
    out: str  # folder for state and the finished checkpoint
    init: str = ""  # folder of a GPT-2 checkpoint to go on from; its tokenizer and sizes hold instead of these
    vocab_size: int = 4096
    n_positions: int = 512
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 8
    batch: int = 8
    steps: int = 2000
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    cooldown: float = 0.5
    lead: str = "tinystories:"
    lead_share: float = 0.85
    seed: int = 0
    save_every: float = 180.0  # seconds
    evaluate_every: int = 200  # steps


@dataclass(frozen=True)
class Progress:
    """One step as told to whoever watches: loss in nats a token, or a validation result in bits a byte by group."""

    step: int
    loss: float
    tokens_per_second: float
    validation: dict[str, float] | None = None


def read_texts(path: str | Path) -> list[tuple[str, str]]:
    """(source, text) of each record of a JSONL file, gzipped or not. Raises GencliError for any other line."""
    opener = gzip.open if str(path).endswith(".gz") else open
    texts = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                texts.append((str(record.get("source", "")), str(record["text"])))
            except (ValueError, KeyError, AttributeError):
                raise GencliError(f"{path}, line {number}: no JSON object with a key 'text'") from None
    return texts


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE as GPT-2's, with an end-of-text token as id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Documents:
    """Tokenised documents in two piles; a row is a run of whole documents from a pile, cut at the context's length."""

    def __init__(self, texts: list[tuple[str, str]], tokenizer: Tokenizer, recipe: TextRecipe, positions: int):
        encoded = tokenizer.encode_batch([text for _, text in texts])
        lead: list[Tensor] = []
        rest: list[Tensor] = []
        end = tokenizer.token_to_id(END)
        for (source, _), item in zip(texts, encoded, strict=True):
            pile = lead if source.startswith(recipe.lead) else rest
            pile.append(torch.tensor([*item.ids, end], dtype=torch.int32))
        self.piles = [lead, rest] if lead and rest else [lead or rest] * 2
        self.recipe, self.positions = recipe, positions

    def batch(self, step: int) -> Tensor:
        """(batch, n_positions + 1) ids for a step."""
        rng = random.Random(f"{self.recipe.seed}/{step}")
        return torch.stack([self._row(rng) for _ in range(self.recipe.batch)]).long()

    def _row(self, rng: random.Random) -> Tensor:
        length = self.positions + 1
        pile = self.piles[0 if rng.random() < self.recipe.lead_share else 1]
        parts: list[Tensor] = []
        total = 0
        while total < length:
            document = rng.choice(pile)
            if not parts and len(document) > length:  # long chapters are entered anywhere, stories at their start
                start = rng.randrange(0, len(document) - length)
                document = document[start:]
            parts.append(document)
            total += len(document)
        return torch.cat(parts)[:length]


def initialise(model: GPT2, seed: int) -> None:
    """GPT-2's initialisation: normal 0.02, residual projections divided by √(2·layers), zero biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if param.ndim < 2:
            torch.nn.init.ones_(param) if ".ln_" in name and name.endswith("weight") else torch.nn.init.zeros_(param)
        else:
            deep = 1 / math.sqrt(2 * model.config.n_layer) if "c_proj" in name else 1.0
            torch.nn.init.normal_(param, std=0.02 * deep, generator=generator)


@torch.no_grad()
def bits_per_byte(model: GPT2, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Mean negative log2-likelihood a byte of UTF-8; each text is read after an end-of-text token, in windows."""
    end = tokenizer.token_to_id(END)
    bits, size = 0.0, 0
    window = model.config.n_positions
    for text in texts:
        ids = [end, *tokenizer.encode(text).ids]
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([ids[start : start + window + 1]])
            logits = model(piece[:, :-1])
            bits += float(F.cross_entropy(logits[0].float(), piece[0, 1:], reduction="sum")) / math.log(2)
        size += len(text.encode())
    return bits / size


def train(recipe: TextRecipe) -> Iterator[Progress]:
    """Train, or go on from `out`/state.pt; yields after every step. The checkpoint ends up in `out`/checkpoint."""
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    texts = read_texts(recipe.data)
    model, tokenizer = _begin(recipe, texts)
    documents = Documents(texts, tokenizer, recipe, model.config.n_positions)
    validation = read_texts(recipe.validation)
    optimizers = Optimizers(model, lr=recipe.lr, weight_decay=recipe.weight_decay, names_for_adam=("wte", "wpe"))
    first = _resume(out / "state.pt", model, optimizers)
    saved = begun = time.monotonic()
    for step in range(first, recipe.steps):
        ids = documents.batch(step)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizers.step(learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown))
        done = step + 1
        scores = None
        if done % recipe.evaluate_every == 0 or done == recipe.steps:
            scores = evaluate(model, tokenizer, validation, recipe.lead, None if done == recipe.steps else 40)
        if done == recipe.steps or time.monotonic() - saved > recipe.save_every:
            _save_state(out / "state.pt", model, optimizers, done)
            saved = time.monotonic()
        rate = (done - first) * ids[:, 1:].numel() / (time.monotonic() - begun)
        yield Progress(done, loss.item(), rate, scores)
    save_checkpoint(model, tokenizer, out / "checkpoint")


def _begin(recipe: TextRecipe, texts: list[tuple[str, str]]) -> tuple[GPT2, Tokenizer]:
    """A model and tokenizer to start with: those of the checkpoint `init`, else new ones."""
    if recipe.init:
        opened = open_model(Source(recipe.init, Path(recipe.init), "folder"), dtype="float32")
        if not isinstance(opened.module, GPT2):
            raise GencliError(f"{recipe.init} is no GPT-2 checkpoint", "this recipe trains GPT-2's architecture")
        return opened.module.train().requires_grad_(True), opened.tokenizer.backend
    tokenizer = _tokenizer(Path(recipe.out) / "tokenizer.json", texts, recipe)
    sizes = (recipe.n_positions, recipe.n_embd, recipe.n_layer, recipe.n_head)
    model = GPT2(GPT2Config(tokenizer.get_vocab_size(), *sizes))
    initialise(model, recipe.seed)
    return model, tokenizer


def evaluate(
    model: GPT2, tokenizer: Tokenizer, texts: list[tuple[str, str]], lead: str, most: int | None
) -> dict[str, float]:
    """Bits per byte of the lead texts and of the others apart, over the first `most` of each."""
    groups = {
        "lead": [text for source, text in texts if source.startswith(lead)],
        "others": [text for source, text in texts if not source.startswith(lead)],
    }
    return {name: bits_per_byte(model, tokenizer, group[:most]) for name, group in groups.items() if group}


def save_checkpoint(model: GPT2, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the hub's GPT-2 layout: config.json, model.safetensors (fp16), tokenizer files, generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    tensors = {
        name.removeprefix("transformer."): param.detach().half().contiguous()
        for name, param in model.named_parameters()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **asdict(model.config),
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float16",
    }
    _write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}
    _write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end, **sampling})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": model.config.n_positions,
            "bos_token": END,
            "eos_token": END,
            "unk_token": END,
            "add_prefix_space": False,
        },
    )


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _tokenizer(path: Path, texts: list[tuple[str, str]], recipe: TextRecipe) -> Tokenizer:
    if not path.exists():
        lead = [text for source, text in texts if source.startswith(recipe.lead)]
        rest = [text for source, text in texts if not source.startswith(recipe.lead)]
        train_tokenizer([*lead, *rest[::4]], recipe.vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def _save_state(path: Path, model: GPT2, optimizers: Optimizers, step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizers": optimizers.state_dict(), "step": step}, partial)
    os.replace(partial, path)


def _resume(path: Path, model: GPT2, optimizers: Optimizers) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    return int(state["step"])
