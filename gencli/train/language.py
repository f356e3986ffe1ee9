"""The language models that the text recipe trains: a new GPT-2, or any decoder of a checkpoint; and saving."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from gencli.checkpoints.find import find
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.save import copy_files, save_like, save_tensors, write_json
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.kernels import PACKED
from gencli.models import architecture, architecture_name
from gencli.models.gpt2 import GPT2, GPT2Config
from gencli.models.module import LanguageModel, stored_as
from gencli.spec import ModelSpec
from gencli.text.load import open_model
from gencli.tokens import Tokenizer
from gencli.train.precision import Precision, make_trainable
from gencli.train.texts import END, end_id

CONTEXT = 512  # tokens, where nothing else is said
# of text models whose class is not called as their model_type
TEXT_ARCHITECTURES = {"qwen3_5": "Qwen3_5ForCausalLM", "qwen3_5_moe": "Qwen3_5MoeForCausalLM"}
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}


@dataclass(frozen=True)
class Learner:
    """A language model in training.

    context: tokens per row. folder, name: of the checkpoint it was opened from, if any.
    """

    module: LanguageModel
    tokenizer: Tokenizer
    context: int
    folder: Path | None = None
    name: str = ""

    def save(self, folder: Path) -> None:
        """Write a checkpoint in the layout of the one it was opened from, or in the hub's for GPT-2."""
        if self.folder is None:
            assert isinstance(self.module, GPT2)  # as only `new_gpt2` makes one without a folder
            save_gpt2(self.module, self.tokenizer, folder)
        else:
            save_text(self.module, self.folder, folder)


def new_gpt2(tokenizer: Tokenizer, config: GPT2Config, seed: int, precision: Precision) -> Learner:
    """Return a GPT-2 whose initial weights follow from `seed`. Raise GencliError for impossible sizes."""
    config.check()
    module = GPT2(config)
    initialise(module, seed)
    return Learner(module.to(precision.device), tokenizer, config.n_positions)


def initialise(model: GPT2, seed: int) -> None:
    """Initialise as GPT-2: normal 0.02, residual projections divided by √(2·layers), zero biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if param.ndim < 2:
            nn.init.ones_(param) if ".ln_" in name and name.endswith("weight") else nn.init.zeros_(param)
        else:
            deep = 1 / math.sqrt(2 * model.config.n_layer) if "c_proj" in name else 1.0
            nn.init.normal_(param, std=0.02 * deep, generator=generator)


def open_language_model(name: str, precision: Precision, context: int | None, *, frozen: bool = False) -> Learner:
    """Open the checkpoint called `name` to train it, or adapters on it if it is to be `frozen`.

    Raise GencliError if `context` is longer than the model's, and if tokenizer and model do not fit.
    """
    source = find(name)
    folder = source.path.parent if source.path.is_file() else source.path
    if open_checkpoint(source).format == "gguf":
        raise GencliError(f"--init {name}: a GGUF file cannot be trained", "take the model it was made from")
    keep = frozen and precision.dtype is torch.bfloat16  # what is not trained need not be held in float32
    opened = open_model(source, ModelSpec(device=str(precision.device), dtype="bfloat16" if keep else "float32"))
    if opened.tokenizer.vocab_size > opened.vocab_size:
        raise GencliError(
            f"--init {name}: its tokenizer has {opened.tokenizer.vocab_size} tokens, its model {opened.vocab_size}"
        )
    if context is not None and context > opened.max_length:
        raise GencliError(f"--context {context}: {name} reads at most {opened.max_length} tokens")
    if not frozen and (kind := stored_as(opened.module)) in PACKED:
        raise GencliError(f"--init {name}: its weights are packed ({kind})", "--lora trains adapters beside them")
    module = opened.module.train()
    if not frozen:
        make_trainable(module)
    return Learner(module, opened.tokenizer, context or min(CONTEXT, opened.max_length), folder, name)


def save_gpt2(model: GPT2, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the hub's GPT-2 layout: config.json, model.safetensors (fp16), tokenizer files, generation_config.json."""
    end = end_id(tokenizer)
    tensors = {
        name.removeprefix("transformer."): param for name, param in model.named_parameters() if name != "lm_head.weight"
    }
    save_tensors(tensors, folder / "model.safetensors", torch.float16)
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **asdict(model.config),
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float16",
    }
    write_json(folder / "config.json", config)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end, **SAMPLING})
    names = {"bos_token": END, "eos_token": END, "unk_token": END}
    more = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": model.config.n_positions, "add_prefix_space": False}
    write_json(folder / "tokenizer_config.json", {**more, **names})


def save_text(model: nn.Module, source: Path, folder: Path) -> None:
    """Write a checkpoint like that in `source`; of one with a vision tower only the text model."""
    raw = read_json(source / "config.json")
    tower = raw.get("text_config")
    rows = architecture(architecture_name(raw, source / "config.json")).LAYOUT
    save_like(model, rows, open_tensors(source), folder / "model.safetensors", own_names=isinstance(tower, dict))
    if isinstance(tower, dict):
        kind = str(raw["model_type"])
        text: dict[str, object] = {
            "model_type": f"{kind}_text",
            "architectures": [TEXT_ARCHITECTURES.get(kind) or f"{kind.capitalize()}ForCausalLM"],
        }
        if raw.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        ends = ("bos_token_id", "eos_token_id", "pad_token_id")
        raw = {**{key: raw[key] for key in ends if key in raw}, **tower, **text}
    write_json(folder / "config.json", raw)
    copy_files(source, folder)
