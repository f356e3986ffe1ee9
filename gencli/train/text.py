"""The recipe behind `weights/stories`: texts → byte-level BPE → GPT-2 from nothing; or on from any decoder's weights.

Every batch follows from (seed, step) alone, so a run that was killed and resumed sees what an unbroken one sees.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.atomic import replace_folder
from gencli.models.gpt2 import GPT2Config
from gencli.tokens import Tokenizer
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.language import CONTEXT, Language, new_gpt2, open_language
from gencli.train.lora import Adapters, LoraLinear, add_adapters, save_adapter
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.place import Place, pick_place
from gencli.train.texts import Documents, Text, end_id, hold_out, own_tokenizer, read_texts
from gencli.train.trainer import Progress, Trainer

EVALUATED = 40  # texts of each kind that are scored on the way; at the end all are
WINDOW = 2048  # tokens that are scored at once, at most
EMBEDDINGS = ("wte", "wpe", "embed_tokens", "lm_head")  # AdamW's, whatever the optimizer of the others
FREE = ("out", "device", "save_every", "evaluate_every", "data", "validation")  # what may differ when a run goes on


@dataclass(frozen=True)
class TextRecipe:
    """What makes a run; lengths in tokens. `lead`: the source prefix that gets `lead_share` of the documents seen.

    `init`: a checkpoint to go on from, whose tokenizer and sizes hold instead of those here; n_positions is then the
    length of a row, by default 512 or what the model reads. lora: train adapters of `init` and nothing else.
    """

    data: str
    validation: str  # empty: every 50th text of `data` is held out
    out: str  # folder for state, curve and the finished checkpoint
    init: str = ""
    lora: Adapters | None = None
    vocab_size: int = 4096
    n_positions: int | None = None  # 512
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 8
    batch: int = 8
    steps: int = 2000
    lr: float = 2e-3
    optimizer: str = "muon"
    weight_decay: float = 0.05
    dropout: float = 0.0
    warmup: int = 50
    cooldown: float = 0.5
    lead: str = "tinystories:"
    lead_share: float = 0.85
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    save_every: float = 180.0  # seconds
    evaluate_every: int = 200  # steps

    def identity(self, texts: list[Text], held: list[Text], language: Language, place: Place) -> dict[str, Any]:
        """What must be the same when a run goes on: see `state.check_recipe`."""
        sizes = {"init": self.init, "optimizer": self.optimizer, "parameters": _count(language.module)}
        loose = {name: value for name, value in asdict(self).items() if name not in (*FREE, *sizes, "lora")}
        for name in ("vocab_size", "n_embd", "n_layer", "n_head"):
            size = loose.pop(name)
            sizes |= {} if self.init else {name: size}
        if self.lora is not None:
            sizes |= {"lora_rank": self.lora.rank, "lora_targets": " ".join(self.lora.targets)}
            loose["lora_alpha"] = self.lora.alpha
        loose |= {"dtype": str(place.dtype).removeprefix("torch."), "n_positions": language.context}
        data = {"data": _digest(texts), "validation": _digest(held)}
        return {**loose, **data, state.SIZES: sizes}


def train(recipe: TextRecipe, *, changes: bool = False) -> Generator[Progress, None, None]:
    """Train, or go on from `out`/state.pt; yields after every step.

    The checkpoint ends up in `out`/checkpoint, adapters in `out`/adapter, the curve in `out`/loss.csv and loss.png.
    changes: go on although the recipe differs from the one that the run was begun with.
    """
    Path(recipe.out).mkdir(parents=True, exist_ok=True)
    with state.only_run(Path(recipe.out)):
        yield from _train(recipe, changes)


def _train(recipe: TextRecipe, changes: bool) -> Generator[Progress, None, None]:
    out = Path(recipe.out)
    place = pick_place(recipe.device, recipe.dtype)
    texts = read_texts(recipe.data)
    texts, held = (texts, read_texts(recipe.validation)) if recipe.validation else hold_out(texts)
    language = _language(recipe, texts, place)
    model, tokenizer = language.module, language.tokenizer
    documents = Documents(
        texts,
        tokenizer,
        lead=recipe.lead,
        lead_share=recipe.lead_share,
        length=language.context + 1,
        seed=recipe.seed,
    )
    scores = _groups(held, recipe.lead)
    trainer = Trainer(
        stage="text",
        state_file=out / "state.pt",
        recipe=recipe.identity(texts, held, language, place),
        model=model,
        optimizers=Optimizers(
            model,
            recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            names_for_adam=EMBEDDINGS,
            dtype=place.dtype,
        ),
        curve=Curve(out / "loss", "tokens", list(scores), "loss, nats a token", "bits a byte"),
        seed=recipe.seed,
        steps=recipe.steps,
        factor=lambda step: learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown),
        save_every=recipe.save_every,
        changes=changes,
    )

    def update(step: int) -> tuple[Tensor, int]:
        ids = documents.batch(step, recipe.batch).to(place.device)
        with place.autocast():
            logits = model(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()), ids[:, 1:].numel()

    def validate(done: int) -> dict[str, float] | None:
        if done != recipe.steps and done % recipe.evaluate_every:
            return None
        most = None if done == recipe.steps else EVALUATED
        with place.autocast():
            return evaluate(model, tokenizer, held, recipe.lead, most, language.context)

    yield from trainer.run(update, validate)
    with replace_folder(out / ("adapter" if recipe.lora else "checkpoint")) as folder:
        if recipe.lora:
            save_adapter(language, recipe.lora, folder)
        else:
            language.save(folder)


def _language(recipe: TextRecipe, texts: list[Text], place: Place) -> Language:
    """What is trained: a checkpoint that goes on, its adapters, or a new model."""
    if not recipe.init:
        tokenizer = own_tokenizer(Path(recipe.out) / "tokenizer.json", texts, recipe.lead, recipe.vocab_size)
        shape = (recipe.n_positions or CONTEXT, recipe.n_embd, recipe.n_layer, recipe.n_head)
        language = new_gpt2(tokenizer, GPT2Config(tokenizer.vocab_size, *shape), recipe.seed, place)
    else:
        language = open_language(recipe.init, place, recipe.n_positions, frozen=recipe.lora is not None)
    if recipe.lora is not None:
        add_adapters(language.module, recipe.lora, recipe.seed)
    elif recipe.dropout:
        add_dropout(language.module, recipe.dropout)
    return language


def add_dropout(model: nn.Module, share: float) -> None:
    """Drop this share of what every attention and feed-forward adds and of the embeddings, as GPT-2's recipe does."""

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return F.dropout(output, share, model.training)

    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("attn", "self_attn", "mlp") or isinstance(module, nn.Embedding):
            module.register_forward_hook(drop)


@torch.no_grad()
def evaluate(
    model: Any, tokenizer: Tokenizer, texts: list[Text], lead: str, most: int | None, window: int = WINDOW
) -> dict[str, float]:
    """Bits a byte of the texts of each kind (see `_groups`), of the first `most` of each."""
    training = model.training
    model.eval()
    window = min(window, model.max_length)
    groups = _groups(texts, lead)
    scores = {name: bits_per_byte(model, tokenizer, group[:most], window) for name, group in groups.items()}
    model.train(training)
    return scores


def bits_per_byte(model: Any, tokenizer: Tokenizer, texts: list[str], window: int) -> float:
    """Mean negative log2-likelihood a byte of UTF-8; each text is read after a token that begins texts, in windows."""
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else end_id(tokenizer)
    device = next(model.parameters()).device
    bits, size = 0.0, 0
    for text in texts:
        ids = tokenizer.backend.encode(text).ids
        ids = ids if ids[:1] == [begin] else [begin, *ids]
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([ids[start : start + window + 1]], device=device)
            logits = model(piece[:, :-1])
            bits += float(F.cross_entropy(logits[0].float(), piece[0, 1:], reduction="sum")) / math.log(2)
        size += len(text.encode())
    return bits / max(size, 1)


def _groups(texts: list[Text], lead: str) -> dict[str, list[str]]:
    """Leading texts and others, where there are both; else all."""
    leading = [text for source, text in texts if source.startswith(lead)]
    others = [text for source, text in texts if not source.startswith(lead)]
    return {"lead": leading, "others": others} if leading and others else {"all": leading or others}


def _digest(texts: list[Text]) -> str:
    return state.digest(part.encode() for text in texts for part in text)


def _count(module: nn.Module) -> int:
    """Trained numbers."""
    parts = [part for part in module.modules() if isinstance(part, LoraLinear)]
    if parts:
        return sum(part.lora_A.numel() + part.lora_B.numel() for part in parts)
    return sum(param.numel() for param in module.parameters())
