"""The recipe behind `weights/stories`: texts, a byte-level BPE, and a new GPT-2; or any decoder's weights, trained on.

Every batch follows from (seed, step) alone, so a run that was killed and resumed sees what an unbroken one sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.atomic import replace_folder
from gencli.models.gpt2 import GPT2Config
from gencli.models.module import LanguageModel
from gencli.tokens import Tokenizer
from gencli.train import state
from gencli.train.curve import Curve
from gencli.train.language import CONTEXT, Learner, new_gpt2, open_language_model
from gencli.train.lora import LoraLinear, add_adapters, save_adapter
from gencli.train.precision import Precision, pick_precision
from gencli.train.recipe import TextRecipe
from gencli.train.texts import Documents, Text, end_id, hold_out, note_lead, own_tokenizer, read_texts
from gencli.train.trainer import Progress, Trainer, ahead

EVALUATED = 40  # texts of each kind that a run is scored by, the same at every evaluation; `score` takes all
WINDOW = 2048  # tokens that are scored at once, at most
EMBEDDINGS = ("wte", "wpe", "embed_tokens", "lm_head")  # AdamW's, whatever the optimizer of the others
# what may change when a run continues
FREE = ("out", "device", "save_every", "evaluate_every", "data", "validation", "allow_changes")
LORA = ("lora_rank", "lora_alpha", "lora_targets")
NEW_SIZES = ("vocab_size", "n_embd", "n_layer", "n_head")


def train(recipe: TextRecipe, note: Callable[[str], None] = lambda text: None) -> Generator[Progress, None, None]:
    """Train, or continue from `out`/state.pt; yield after every step.

    The checkpoint ends up in `out`/checkpoint, adapters in `out`/adapter, the curve in `out`/loss.csv and loss.png.
    note: gets what is worth knowing, in words.
    """
    texts = read_texts(recipe.data)
    single = len(texts) == 1 and not recipe.validation
    texts, validation = (texts, read_texts(recipe.validation)) if recipe.validation else hold_out(texts)
    if single:
        note(f"the last {len(validation[0][1])} characters are held out: they are scored, and not trained on")
    note_lead(texts, recipe.lead, note)
    with state.only_run(Path(recipe.out)):
        yield from _train(recipe, texts, validation)


def _train(recipe: TextRecipe, texts: list[Text], validation: list[Text]) -> Generator[Progress, None, None]:
    out = Path(recipe.out)
    precision = pick_precision(recipe.device, recipe.dtype)
    language = _language_model(recipe, texts, precision)
    model, tokenizer = language.module, language.tokenizer
    documents = Documents(
        texts,
        tokenizer,
        lead=recipe.lead,
        lead_share=recipe.lead_share,
        length=language.context + 1,
        seed=recipe.seed,
    )
    trainer = Trainer(
        "text",
        recipe,
        "state.pt",
        _identity(recipe, texts, validation, language, precision),
        model,
        Curve(out / "loss", "tokens", list(_groups(validation, recipe.lead)), "loss, nats per token", "bits per byte"),
        precision,
        names_for_adam=EMBEDDINGS,
    )

    batches = ahead(partial(documents.batch, rows=recipe.batch), recipe.steps, precision)

    def update(step: int) -> tuple[Tensor, int]:
        ids = batches(step).to(precision.device)
        with precision.autocast():
            logits = model(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()), ids[:, 1:].numel()

    def validate(done: int) -> dict[str, float] | None:
        if done != recipe.steps and done % recipe.evaluate_every:
            return None
        with precision.autocast():
            return evaluate(model, tokenizer, validation, recipe.lead, EVALUATED, language.context)

    yield from trainer.run(update, validate)
    adapters = recipe.adapters
    with replace_folder(out / ("adapter" if adapters else "checkpoint")) as folder:
        if adapters:
            save_adapter(language, adapters, folder)
        else:
            language.save(folder)


def _identity(
    recipe: TextRecipe, texts: list[Text], validation: list[Text], language: Learner, precision: Precision
) -> dict[str, object]:
    """Return what must stay the same when a run continues: see `state.check_recipe`."""
    sizes = {"init": recipe.init, "optimizer": recipe.optimizer, "parameters": _count(language.module)}
    loose = {name: value for name, value in asdict(recipe).items() if name not in (*FREE, *LORA, *NEW_SIZES, *sizes)}
    if not recipe.init:
        sizes |= {name: getattr(recipe, name) for name in NEW_SIZES}
    if adapters := recipe.adapters:
        sizes |= {"lora_rank": adapters.rank, "lora_targets": " ".join(adapters.targets)}
        loose["lora_alpha"] = adapters.alpha
    loose |= {"dtype": precision.name, "n_positions": language.context}
    return {**loose, "data": _digest(texts), "validation": _digest(validation), state.SIZES: sizes}


def _language_model(recipe: TextRecipe, texts: list[Text], precision: Precision) -> Learner:
    """Return what is trained: a checkpoint's model, its adapters, or a new model."""
    if not recipe.init:
        tokenizer = own_tokenizer(Path(recipe.out) / "tokenizer.json", texts, recipe.lead, recipe.vocab_size)
        shape = (recipe.n_positions or CONTEXT, recipe.n_embd, recipe.n_layer, recipe.n_head)
        language = new_gpt2(tokenizer, GPT2Config(tokenizer.vocab_size, *shape), recipe.seed, precision)
    else:
        frozen = recipe.adapters is not None
        language = open_language_model(recipe.init, precision, recipe.n_positions, frozen=frozen)
    if recipe.adapters is not None:
        add_adapters(language, recipe.adapters, recipe.seed)
    elif recipe.dropout:
        add_dropout(language.module, recipe.dropout)
    return language


def add_dropout(model: nn.Module, fraction: float) -> None:
    """Apply dropout to the output of every attention, feed-forward and embedding, as GPT-2's recipe does."""

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return F.dropout(output, fraction, model.training)

    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("attn", "self_attn", "mlp") or isinstance(module, nn.Embedding):
            module.register_forward_hook(drop)


@torch.no_grad()
def evaluate(
    model: LanguageModel, tokenizer: Tokenizer, texts: list[Text], lead: str, most: int | None, window: int = WINDOW
) -> dict[str, float]:
    """Return bits per byte of the texts of each kind (see `_groups`), for the first `most` of each."""
    training = model.training
    model.eval()
    window = min(window, model.max_length)
    groups = _groups(texts, lead)
    scores = {name: bits_per_byte(model, tokenizer, group[:most], window) for name, group in groups.items()}
    model.train(training)
    return scores


def bits_per_byte(model: LanguageModel, tokenizer: Tokenizer, texts: list[str], window: int) -> float:
    """Return mean negative log2-likelihood per UTF-8 byte. Each text follows a begin token, and is read in windows."""
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else end_id(tokenizer)
    device = next(model.parameters()).device
    bits, size = 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text)
        ids = ids if ids[:1] == [begin] else [begin, *ids]
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([ids[start : start + window + 1]], device=device)
            logits = model(piece[:, :-1])
            bits += float(F.cross_entropy(logits[0].float(), piece[0, 1:], reduction="sum")) / math.log(2)
        size += len(text.encode())
    return bits / max(size, 1)


def _groups(texts: list[Text], lead: str) -> dict[str, list[str]]:
    """Return leading and other texts if there are both, else all."""
    leading = [text for source, text in texts if source.startswith(lead)]
    others = [text for source, text in texts if not source.startswith(lead)]
    return {"lead": leading, "others": others} if leading and others else {"all": leading or others}


def _digest(texts: list[Text]) -> str:
    return state.digest(part.encode() for text in texts for part in text)


def _count(module: nn.Module) -> int:
    """Return the number of trained parameters."""
    parts = [part for part in module.modules() if isinstance(part, LoraLinear)]
    if parts:
        return sum(part.lora_A.numel() + part.lora_B.numel() for part in parts)
    return sum(param.numel() for param in module.parameters())
