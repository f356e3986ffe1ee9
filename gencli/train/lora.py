"""Training LoRA adapters (Hu et al. 2021, arXiv 2106.09685) on a frozen model, and writing them as PEFT does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.checkpoints.save import save_tensors, write_json
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models import architecture, architecture_name
from gencli.models.base import Layout
from gencli.models.linear import Conv1D
from gencli.train.language import Learner
from gencli.train.recipe import Adapters


class LoraLinear(nn.Module):
    """A frozen linear layer W with a trained update: x Wᵀ + scale · x Aᵀ Bᵀ. A is random at first, B zero."""

    def __init__(self, base: nn.Linear | Conv1D, adapters: Adapters, generator: torch.Generator):
        super().__init__()
        size_out, size_in = reversed(base.weight.shape) if isinstance(base, Conv1D) else base.weight.shape
        self.base = base
        self.scale, self.dropout = adapters.alpha / adapters.rank, adapters.dropout
        self.lora_A = nn.Parameter(torch.empty(adapters.rank, size_in))
        self.lora_B = nn.Parameter(torch.zeros(size_out, adapters.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=generator)  # as in the paper's code
        self.to(base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        small = F.linear(F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype), self.lora_A)
        return self.base(x) + self.scale * F.linear(small, self.lora_B)


def add_adapters(language: Learner, adapters: Adapters, seed: int) -> None:
    """Give the chosen layers of a frozen model their adapters, in place: not experts that are one tensor in files, and
    no layers for PEFT.

    Raise GencliError for a target that is no linear layer's name.
    """
    model, stacked = language.module, _stacked(language)
    linear = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | Conv1D)
        and not any(f".{one}." in name for one in stacked)
        and not (stacked and name.endswith(".gate"))  # of experts, which is no linear layer in transformers
    }
    for target in adapters.targets:
        if not any(_is_called(name, target) for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise GencliError(f"--lora-targets {target}: no linear layer is called so", f"there are {known}")
    generator = torch.Generator().manual_seed(seed)
    for name, part in linear.items():
        if any(_is_called(name, target) for target in adapters.targets or _all_but_head(linear)):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, LoraLinear(part, adapters, generator))


def _stacked(language: Learner) -> set[str]:
    """Return what experts are called in a layer whose checkpoint has them in one tensor."""
    if language.folder is None:
        return set()
    file = language.folder / "config.json"
    layout: Layout = architecture(architecture_name(read_json(file), file)).LAYOUT
    return {end.rpartition(".")[0] for end in layout.stacked}


def _is_called(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _all_but_head(names: Iterable[str]) -> list[str]:
    return sorted({last for name in names if (last := name.rpartition(".")[2]) != "lm_head"})


def _names_in_files(raw: Mapping[str, object], folder: Path) -> dict[str, str]:
    """Return what layers are called in a checkpoint's files, where they lie as deep there: PEFT has those names, such
    as Mixtral's and GPT-NeoX's."""
    layout, found = architecture(architecture_name(raw, folder / "config.json")).LAYOUT, {}
    for name in open_tensors(folder):
        renamed = layout.rename(name)
        if renamed is not None and (renamed[0].count(".") == name.count(".") or _begin_alike(renamed[0], name)):
            found[renamed[0].removesuffix(".weight")] = name.removesuffix(".weight")
    return found


def _begin_alike(name: str, other: str) -> bool:
    return name.partition(".")[0] == other.partition(".")[0]


def save_adapter(language: Learner, adapters: Adapters, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT's save_pretrained does."""
    assert language.folder is not None
    # In transformers the text model of a checkpoint with a vision tower lies one level deeper.
    raw = read_json(language.folder / "config.json")
    towers, called = "text_config" in raw, _names_in_files(raw, language.folder)
    tensors, names, fan_in_fan_out, renamed = {}, set(), False, False
    for name, part in language.module.named_modules():
        if isinstance(part, LoraLinear):
            path = name.replace("model.", "model.language_model.", 1) if towers else called.get(name, name)
            tensors[f"base_model.model.{path}.lora_A.weight"] = part.lora_A
            tensors[f"base_model.model.{path}.lora_B.weight"] = part.lora_B
            names.add(path.rpartition(".")[2])
            renamed = renamed or path.rpartition(".")[2] != name.rpartition(".")[2]
            fan_in_fan_out = fan_in_fan_out or isinstance(part.base, Conv1D)
    save_tensors(tensors, folder / "adapter_model.safetensors")
    alpha = int(adapters.alpha) if float(adapters.alpha).is_integer() else adapters.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": language.name,
        "r": adapters.rank,
        "lora_alpha": alpha,
        "lora_dropout": adapters.dropout,
        "target_modules": sorted((not renamed and adapters.targets) or names),
        "fan_in_fan_out": fan_in_fan_out,  # GPT-2's layers hold their weights (in, out)
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)
