"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) of language models, merged into the weights as they are loaded.

W becomes W + Σ scale_i · s_i · B_i A_i, summed in float32 and rounded once. s is alpha / r, or alpha / √r if the
adapter is rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732). Weights that no adapter changes stay memory-mapped.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gencli.checkpoints.assets import PEFT_CONFIG, PEFT_STEM, LoraRef
from gencli.checkpoints.build import FLOATS
from gencli.checkpoints.deltas import MAGNITUDE, Delta
from gencli.checkpoints.layout import BIN, SAFETENSORS
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models.base import Layout
from gencli.models.linear import Conv1D

PEFT_PREFIX = "base_model.model."  # of all tensor names
# Keys that do not change what a finished adapter computes. Its tensors say which modules it changes.
INERT = frozenset(
    """auto_mapping peft_version task_type revision inference_mode lora_dropout target_modules exclude_modules
    layers_to_transform layers_pattern fan_in_fan_out megatron_core qalora_group_size eva_config runtime_config
    inject_adapter peft_type base_model_name_or_path r lora_alpha use_rslora rank_pattern alpha_pattern
    modules_to_save bias init_lora_weights use_dora alpha init_weights rank_dropout rank_dropout_scale module_dropout
    use_effective_conv2d decompose_both decompose_factor""".split()
)
# Other initialisations change the base weights, and the adapter is the difference from those.
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass
class Change:
    """The change of one parameter: a tensor that replaces it, if any, and what is then added, one after the other."""

    replacement: tuple[Tensors, str] | None = None
    deltas: list[Delta] = field(default_factory=list)

    def apply(self, old: Tensor, fan_in_fan_out: bool) -> Tensor:
        """Return the new value, computed in float32, and kept as the old one was, but in 16 bits if that had 8.
        fan_in_fan_out: the weight is stored (in, out)."""
        new = old
        if self.replacement is not None:
            tensors, name = self.replacement
            new = tensors.get(name).to(old.device)
        new = new.float()
        for delta in self.deltas:
            new = delta.apply(new.T).T if fan_in_fan_out else delta.apply(new)
        return new.to(old.dtype if old.dtype.itemsize > 1 else torch.bfloat16).contiguous()


def merge(model: nn.Module, layout: Layout, adapters: Iterable[LoraRef], *, allow_pickle: bool = False) -> list[str]:
    """Add PEFT folders to the weights of a model. Return the names of their base models, as the adapters give them.

    A weight shared by two modules (a tied head) is copied for the module that changes, which has the effect it has in
    peft. Raise GencliError for an adapter that is broken, does not fit, or needs mathematics that gencli lacks.
    """
    changes: dict[str, Change] = defaultdict(Change)
    bases = []
    for adapter in adapters:
        config = read_peft_config(adapter.path)
        bases.append(str(config.get("base_model_name_or_path") or ""))
        _plan(model, layout, adapter, config, open_peft_tensors(adapter.path, allow_pickle=allow_pickle), changes)
    apply_changes(model, changes)
    return bases


def apply_changes(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Give the parameters named in `changes` their new values."""
    for name, change in changes.items():  # one at a time, so that only one weight is held in float32
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        new = change.apply(model.get_parameter(name), transposed(module))
        setattr(module, attribute, nn.Parameter(new, requires_grad=False))


def transposed(module: nn.Module) -> bool:
    """Return whether a module's weight is stored (in, out)."""
    return isinstance(module, nn.Embedding | Conv1D)


def read_peft_config(folder: Path, kinds: tuple[str, ...] = ("LORA",)) -> dict[str, object]:
    """Read adapter_config.json, of one of these `peft_type`s. Raise GencliError for any key that changes the numbers
    and is not supported."""
    file = folder / PEFT_CONFIG
    if not file.is_file():
        raise GencliError(f"{folder} has no {PEFT_CONFIG}", "--lora takes a folder that peft's save_pretrained wrote")
    raw = read_json(file)
    check_peft_config(raw, file, kinds)
    return raw


def check_peft_config(raw: Mapping[str, object], file: Path | str, kinds: tuple[str, ...] = ("LORA",)) -> None:
    """Raise GencliError for any key that changes the numbers and is not supported."""
    if (kind := raw.get("peft_type")) not in kinds:
        raise GencliError(f"{file}: peft_type = {kind!r:.60} is not supported", f"gencli knows {', '.join(kinds)}")
    if raw.get("bias", "none") != "none":
        raise GencliError(f"{file}: bias = {raw['bias']!r:.60} is not supported", "gencli knows bias = 'none'")
    initialisation = raw.get("init_lora_weights", True)
    if initialisation not in INITIALISATIONS:
        raise GencliError(
            f"{file}: init_lora_weights = {initialisation!r:.60} is not supported",
            "such an adapter also changes its base; peft can save it as a plain one",
        )
    if unknown := sorted(key for key, value in raw.items() if key not in INERT and value):
        raise GencliError(
            f"{file}: not supported: {', '.join(f'{key} = {raw[key]!r}'[:80] for key in unknown[:6])}",
            "these keys may change the numbers, so gencli does not guess",
        )
    for key, type_ in (("rank_pattern", dict), ("alpha_pattern", dict), ("modules_to_save", list)):
        if not isinstance(raw.get(key) or type_(), type_):
            raise GencliError(
                f"{file}: {key} = {raw[key]!r:.60} is not a {'list' if type_ is list else 'table'} of names"
            )


def open_peft_tensors(folder: Path, *, allow_pickle: bool) -> Tensors:
    """Open the tensors of a PEFT folder. Raise GencliError when there are none, or none safe to open."""
    for suffix in (SAFETENSORS, BIN):
        if (file := folder / f"{PEFT_STEM}{suffix}").is_file():
            return open_tensors(file, allow_pickle=allow_pickle)
    raise GencliError(f"{folder} has no {PEFT_STEM}{SAFETENSORS}")


def _plan(
    model: nn.Module,
    layout: Layout,
    adapter: LoraRef,
    config: Mapping[str, object],
    tensors: Tensors,
    changes: dict[str, Change],
) -> None:
    """Add the changes of one adapter to `changes`, from headers, before any tensor is read."""
    where, modules = adapter.path, dict(model.named_modules())
    for name in tensors:
        if owner := re.fullmatch(r"(.+)\.lora_magnitude_vector(\.weight)?", name):  # taken with its A
            if f"{owner[1]}.lora_A.weight" not in tensors:
                raise GencliError(f"{where}: {name!r} has no lora_A beside it")
            continue
        matrix = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name)
        path = matrix[1] if matrix else re.sub(r"(\.base_layer|\.modules_to_save)?\.(weight|bias)$", "", name)
        path = path.removeprefix(PEFT_PREFIX)
        renamed = layout.rename(f"{path}.weight")
        target = renamed[0] if renamed and renamed[1] is None else ""
        module = modules.get(target.removesuffix(".weight"))
        if not name.startswith(PEFT_PREFIX) or module is None:
            raise GencliError(f"{where}: {name!r} fits no module of the model")
        if tensors.dtype(name) not in FLOATS:
            raise GencliError(f"{where}: {name} is stored as {tensors.dtype(name)}, not as one of {', '.join(FLOATS)}")
        if matrix is None:
            _plan_replacement(model, adapter, config, tensors, name, target, changes)
            continue
        partner = re.sub(r"\.lora_(embedding_)?[AB]", rf".lora_\1{'B' if matrix[3] == 'A' else 'A'}", name)
        if partner not in tensors:
            raise GencliError(f"{where}: {name!r} has no {partner.rpartition('.lora_')[2]!r} beside it")
        if matrix[3] == "A":
            rank = _rank(where, tensors, (name, partner), module, embedding=bool(matrix[2]))
            scale = adapter.scale * peft_scale(where / PEFT_CONFIG, config, path, rank)
            names = {"down": name, "up": partner}
            if magnitude := next((one for one in _magnitudes(matrix[1]) if one in tensors), None):
                _check_magnitude(where, tensors, magnitude, module)
                names[MAGNITUDE] = magnitude
            changes[target].deltas.append(Delta(tensors, names, scale))


def _rank(where: Path, tensors: Tensors, pair: tuple[str, str], module: nn.Module, *, embedding: bool) -> int:
    """Return the rank r of A (r, in) and B (out, r). Raise GencliError if they do not fit the module's weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or embedding != isinstance(module, nn.Embedding):
        raise GencliError(f"{where}: {pair[0]!r} fits no module of the model")
    a, b = (tensors.shape(name) for name in pair)
    out_in = tuple(reversed(weight.shape)) if transposed(module) else tuple(weight.shape)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != out_in:
        raise GencliError(
            f"{where}: {pair[0]!r} is {list(a)}, its B {list(b)}: no fit for a weight of {list(weight.shape)}"
        )
    return a[0]


def _magnitudes(path: str) -> tuple[str, str]:
    """Return the names under which peft keeps DoRA's magnitudes of a module."""
    return f"{path}.lora_magnitude_vector", f"{path}.lora_magnitude_vector.weight"


def _check_magnitude(where: Path, tensors: Tensors, name: str, module: nn.Module) -> None:
    """Raise GencliError unless there is a magnitude for each output of a module."""
    weight = module.get_parameter("weight")
    outputs = weight.shape[1] if transposed(module) else weight.shape[0]
    if tensors.dtype(name) not in FLOATS or math.prod(tensors.shape(name)) != outputs:
        raise GencliError(f"{where}: {name!r} is {list(tensors.shape(name))}, not {outputs} numbers")


def peft_scale(file: Path | str, config: Mapping[str, object], path: str, rank: object) -> float:
    """Return alpha / r, or alpha / √r, of a module. Raise GencliError if its tensors' rank is not the config's."""
    r = _match_pattern(config.get("rank_pattern"), path, config.get("r", 8))
    alpha = _match_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", config.get("alpha", 8)))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise GencliError(f"{file}: lora_alpha = {alpha!r:.60} is not a number")
    if isinstance(rank, bool) or not isinstance(rank, (int, float)) or r != rank or rank <= 0:
        raise GencliError(f"{file}: the rank of {path} is {r!r:.60} here and {rank} in its tensors")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _match_pattern(table: object, path: str, default: object) -> object:
    """Return a module's value in `rank_pattern` or `alpha_pattern`: that of the first key that its name ends in."""
    for key, value in table.items() if isinstance(table, Mapping) else ():
        try:
            if len(key) > 400 or re.search(r"\)[*+?{]", key) or len(re.findall(r"[*+?{]", key)) > 8:
                raise re.error("a pattern that could take for ever")
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except (re.error, RecursionError, OverflowError):
            raise GencliError(f"{PEFT_CONFIG}: {key[:60]!r} is not a pattern of names that gencli reads") from None
    return default


def _plan_replacement(
    model: nn.Module,
    adapter: LoraRef,
    config: Mapping[str, object],
    tensors: Tensors,
    name: str,
    target: str,
    changes: dict[str, Change],
) -> None:
    """Plan for a tensor saved whole: of `modules_to_save`, or an embedding or head, which peft saves by itself."""
    where = adapter.path
    module = target.rpartition(".")[0]
    target = f"{module}.{name.rpartition('.')[2]}"
    saved = config.get("modules_to_save")
    saved = saved if isinstance(saved, list) else []
    chosen = any(one and module.endswith(str(one)) for one in saved)  # as peft matches
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not chosen and not isinstance(model.get_submodule(module), nn.Embedding) and module != "lm_head":
        raise GencliError(f"{where}: {name!r} fits no module of the model")
    if target not in parameters or tensors.shape(name) != tuple(parameters[target].shape):
        raise GencliError(f"{where}: {name!r} is {list(tensors.shape(name))}, which does not fit {module} of the model")
    if chosen and adapter.scale != 1:
        raise GencliError(f"{where} replaces {module}, which a scale of {adapter.scale:g} cannot do")
    # A copy made by modules_to_save belongs to its module; otherwise the weight that a tied head shares was changed.
    shared = [other for other, parameter in parameters.items() if parameter is parameters[target]]
    for parameter_name in [target] if chosen else shared:
        if changes[parameter_name].replacement is not None:
            raise GencliError(f"{where} replaces {module}, as another adapter does")
        changes[parameter_name].replacement = tensors, name
