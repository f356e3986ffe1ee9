"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) in PEFT's folders, merged into the weights when they are opened.

W becomes W + Σ scale_i · s_i · B_i A_i, summed in float32 and rounded once, with s = alpha / r, or alpha / √r where the
adapter is rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732). Weights that no adapter touches stay mapped.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.build import FLOATS
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models.base import Layout
from gencli.models.gpt2 import Conv1D

CONFIG, STEM = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."  # before the names of all tensors
# Keys that do not change what a finished adapter computes; where it sits is told by its tensors.
INERT = frozenset(
    """auto_mapping peft_version task_type revision inference_mode lora_dropout target_modules exclude_modules
    layers_to_transform layers_pattern fan_in_fan_out megatron_core qalora_group_size eva_config runtime_config
    inject_adapter peft_type base_model_name_or_path r lora_alpha use_rslora rank_pattern alpha_pattern
    modules_to_save bias init_lora_weights""".split()  # noqa: SIM905
)
# Other ways to begin leave the base weights changed, and the adapter is the distance from those.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass
class Change:
    """What happens to one parameter: a tensor that takes its place, if any, and products that are added."""

    whole: tuple[Tensors, str] | None = None
    added: list[tuple[Tensors, tuple[str, str], float]] = field(default_factory=list)  # (A, B), scale

    def apply(self, old: Tensor, fan_in_fan_out: bool) -> Tensor:
        """The new value, computed in float32; `fan_in_fan_out`: the weight is stored (in, out)."""
        new = old.float() if self.whole is None else self.whole[0].get(self.whole[1]).to(old.device, torch.float32)
        for tensors, pair, scale in self.added:
            a, b = (tensors.get(name).to(old.device, torch.float32) for name in pair)  # (r, in, …), (out, r, …)
            product = (b.flatten(1) @ a.flatten(1)).mul_(scale)  # of a convolution: (r, in, h, w), (out, r, 1, 1)
            new = new + (product.T if fan_in_fan_out else product.view_as(new))
        return new.to(old.dtype).contiguous()


def merge(model: nn.Module, layout: Layout, adapters: Iterable[LoraRef], *, allow_pickle: bool = False) -> list[str]:
    """Add adapters to the weights of a model; returns the names of the models they were made for, as they say.

    A weight that two modules share (a tied head) becomes the touched module's own, as it acts in peft.
    Raises GencliError for an adapter that is broken, does not fit, or asks for mathematics that gencli does not have.
    """
    changes: dict[str, Change] = defaultdict(Change)
    bases = []
    for adapter in adapters:
        settings = read_settings(adapter.path)
        bases.append(str(settings.get("base_model_name_or_path") or ""))
        _plan(model, layout, adapter, settings, open_adapter(adapter.path, allow_pickle=allow_pickle), changes)
    apply(model, changes)
    return bases


def apply(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Give the parameters named in `changes` their new values."""
    for name, change in changes.items():  # one at a time: float32 is needed of one weight only
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        new = change.apply(model.get_parameter(name), transposed(module))
        setattr(module, attribute, nn.Parameter(new, requires_grad=False))


def transposed(module: nn.Module) -> bool:
    """Whether a module's weight is stored (in, out)."""
    return isinstance(module, nn.Embedding | Conv1D)


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises GencliError for any key that changes the numbers and is not supported."""
    file = folder / CONFIG
    if not file.is_file():
        raise GencliError(f"{folder} has no {CONFIG}", "--lora takes a folder that peft's save_pretrained wrote")
    raw = read_json(file)
    check_settings(raw, file)
    return raw


def check_settings(raw: Mapping[str, Any], file: Path | str) -> None:
    """Raises GencliError for any key of peft's that changes the numbers and is not supported."""
    if raw.get("peft_type") != "LORA":
        raise GencliError(f"{file}: peft_type = {raw.get('peft_type')!r:.60} is not supported", "gencli knows LORA")
    if raw.get("use_dora"):
        raise GencliError(f"{file}: use_dora = true (DoRA) is not supported")
    if raw.get("bias", "none") != "none":
        raise GencliError(f"{file}: bias = {raw['bias']!r:.60} is not supported", "gencli knows bias = 'none'")
    beginning = raw.get("init_lora_weights", True)
    if not any(beginning is known or beginning == known for known in BEGINNINGS):
        raise GencliError(
            f"{file}: init_lora_weights = {beginning!r:.60} is not supported",
            "such an adapter also changes its base; peft can save it as a plain one",
        )
    if unknown := sorted(key for key, value in raw.items() if key not in INERT and value):
        raise GencliError(
            f"{file}: not supported: {', '.join(f'{key} = {raw[key]!r}'[:80] for key in unknown[:6])}",
            "these keys may change the numbers, so gencli does not guess",
        )
    for key, kind in (("rank_pattern", dict), ("alpha_pattern", dict), ("modules_to_save", list)):
        if not isinstance(raw.get(key) or kind(), kind):
            raise GencliError(f"{file}: {key} = {raw[key]!r:.60} is no {'list' if kind is list else 'table'} of names")


def open_adapter(folder: Path, *, allow_pickle: bool) -> Tensors:
    """The tensors of a PEFT folder. Raises GencliError when there are none, or none safe to open."""
    file = folder / f"{STEM}.safetensors"
    if not file.is_file() and (folder / f"{STEM}.bin").is_file():
        file = folder / f"{STEM}.bin"
    if not file.is_file():
        raise GencliError(f"{folder} has no {STEM}.safetensors")
    return open_tensors(file, allow_pickle=allow_pickle)


def _plan(
    model: nn.Module,
    layout: Layout,
    adapter: LoraRef,
    settings: Mapping[str, Any],
    tensors: Tensors,
    changes: dict[str, Change],
) -> None:
    """Add to `changes` what one adapter does; told by headers, before anything is read."""
    where, modules = adapter.path, dict(model.named_modules())
    for name in tensors:
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name)
        path = found[1] if found else re.sub(r"(\.base_layer|\.modules_to_save)?\.(weight|bias)$", "", name)
        path = path.removeprefix(PREFIX)
        renamed = layout.rename(f"{path}.weight")
        target = renamed[0] if renamed and renamed[1] is None else ""
        module = modules.get(target.removesuffix(".weight"))
        if not name.startswith(PREFIX) or module is None:
            raise GencliError(f"{where}: {name!r} fits no module of the model")
        if tensors.dtype(name) not in FLOATS:
            raise GencliError(f"{where}: {name} is stored as {tensors.dtype(name)}, not as one of {', '.join(FLOATS)}")
        if found is None:
            _plan_whole(model, adapter, settings, tensors, name, target, changes)
            continue
        other = re.sub(r"\.lora_(embedding_)?[AB]", rf".lora_\1{'B' if found[3] == 'A' else 'A'}", name)
        if other not in tensors:
            raise GencliError(f"{where}: {name!r} has no {other.rpartition('.lora_')[2]!r} beside it")
        if found[3] == "A":
            rank = _rank(where, tensors, (name, other), module, embedding=bool(found[2]))
            scale = adapter.scale * scale_of(where / CONFIG, settings, path, rank)
            changes[target].added.append((tensors, (name, other), scale))


def _rank(where: Path, tensors: Tensors, pair: tuple[str, str], module: nn.Module, *, embedding: bool) -> int:
    """The rank r of A (r, in) and B (out, r). Raises GencliError when they do not fit the module's weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or embedding != isinstance(module, nn.Embedding):
        raise GencliError(f"{where}: {pair[0]!r} fits no module of the model")
    a, b = (tensors.shape(name) for name in pair)
    wanted = tuple(reversed(weight.shape)) if transposed(module) else tuple(weight.shape)  # (out, in)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != wanted:
        raise GencliError(
            f"{where}: {pair[0]!r} is {list(a)}, its B {list(b)}: no fit for a weight of {list(weight.shape)}"
        )
    return a[0]


def scale_of(file: Path | str, settings: Mapping[str, Any], path: str, rank: int) -> float:
    """alpha / r, or alpha / √r, of a module. Raises GencliError when its tensors' rank is not what the settings say."""
    r = _pattern(settings.get("rank_pattern"), path, settings.get("r", 8))
    alpha = _pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise GencliError(f"{file}: lora_alpha = {alpha!r:.60} is no number")
    if r != rank or rank == 0:
        raise GencliError(f"{file}: the rank of {path} is {r!r:.60} here and {rank} in its tensors")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _pattern(table: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value for a module in `rank_pattern` or `alpha_pattern`: that of the first key that its name ends in."""
    for key, value in (table or {}).items():
        try:
            if len(key) > 400 or re.search(r"\)[*+?{]", key) or len(re.findall(r"[*+?{]", key)) > 8:
                raise re.error("a pattern that could take for ever")
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except (re.error, RecursionError, OverflowError):
            raise GencliError(f"{CONFIG}: {key[:60]!r} is no pattern of names that gencli reads") from None
    return default


def _plan_whole(
    model: nn.Module,
    adapter: LoraRef,
    settings: Mapping[str, Any],
    tensors: Tensors,
    name: str,
    target: str,
    changes: dict[str, Change],
) -> None:
    """A tensor that was trained whole: of `modules_to_save`, or an embedding or head, which peft saves unasked."""
    where = adapter.path
    module, _, attribute = target.rpartition(".")
    attribute = name.rpartition(".")[2]
    target = f"{module}.{attribute}"
    chosen = any(f".{module}".endswith(f".{one}") for one in settings.get("modules_to_save") or ())
    known = dict(model.named_parameters(remove_duplicate=False))
    if not chosen and not isinstance(model.get_submodule(module), nn.Embedding) and module != "lm_head":
        raise GencliError(f"{where}: {name!r} fits no module of the model")
    if target not in known or tensors.shape(name) != tuple(known[target].shape):
        raise GencliError(f"{where}: {name!r} is {list(tensors.shape(name))}, which does not fit {module} of the model")
    if chosen and adapter.scale != 1:
        raise GencliError(f"{where} replaces {module}, which a scale of {adapter.scale:g} cannot do")
    # A copy that modules_to_save made is the module's own; else the one that a tied head shares was changed.
    for one in [target] if chosen else [one for one in known if known[one] is known[target]]:
        if changes[one].whole is not None:
            raise GencliError(f"{where} replaces {module}, as another adapter does")
        changes[one].whole = tensors, name
