"""LoRA files of image models, merged into the weights as they are loaded: those of diffusers, kohya's trainer, peft,
LyCORIS and ComfyUI; also LoHa, LoKr and DoRA (see `deltas`).

W becomes W + Σ scale · (alpha / r) · Δ, in float32 and rounded once (see `lora`). For a convolution down and up are
convolutions, (r, in, h, w) and (out, r, 1, 1). Without an alpha in the file, alpha is r. `lora_names` reads the names.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import nn

from gencli.checkpoints.assets import LORA_STEM, PEFT_CONFIG, PEFT_STEM, LoraRef
from gencli.checkpoints.build import FLOATS
from gencli.checkpoints.deltas import ALPHA, DORA_SCALE, LORA, MAGNITUDE, Delta, Method, method_of
from gencli.checkpoints.layout import SAFETENSORS, find_pickles, some
from gencli.checkpoints.lora import (
    Change,
    apply_changes,
    check_peft_config,
    open_peft_tensors,
    peft_scale,
    read_peft_config,
)
from gencli.checkpoints.lora_names import TRANSFORMER, UNET, names_of_modules, read_key, targets_of
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import parse_json
from gencli.kernels.packed import Packed
from gencli.models.linear import StoredLinear

METADATA = "lora_adapter_metadata"  # the key of the header under which diffusers writes peft's config
# Widths of the texts that a UNet attends to → the models that have them.
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "the XL refiner"}
KINDS = ("LORA", "LOHA", "LOKR")  # `peft_type`s


class ImageLora:
    """One LoRA file, opened; only its header is read.

    modules: part → module as the file names it → {"down", "up", "alpha"} → name of the tensor.
    Raise GencliError for a file that is broken or of another kind, and for a name of unknown form.
    """

    def __init__(self, adapter: LoraRef, *, allow_pickle: bool = False):
        self.scale = adapter.scale
        self.path, self.tensors, peft_config = _open(adapter.path, allow_pickle)
        self.metadata = self.tensors.metadata
        self.modules: dict[str, dict[str, dict[str, str]]] = {}
        unknown = []
        for name in self.tensors:
            try:
                key = read_key(name)
            except GencliError as error:
                raise GencliError(f"{self.path}: {error.message}", error.hint) from None
            if key is None:
                unknown.append(name)
                continue
            sides = self.modules.setdefault(key.part, {}).setdefault(key.module, {})
            if key.side in sides:
                raise GencliError(f"{self.path}: {sides[key.side]!r} and {name!r} say the same")
            sides[key.side] = name
        if unknown or not self.modules:
            seen = f"no LoRA for images, or of a kind that gencli does not know: {some(sorted(unknown)[:3])}"
            raise GencliError(f"{self.path}: {len(unknown)} of {len(self.tensors)} names are of {seen}")
        self.peft_configs: Mapping[str, Mapping[str, object]] = (
            self._read_peft_configs() if peft_config is None else dict.fromkeys(self.modules, peft_config)
        )

    def _read_peft_configs(self) -> dict[str, Mapping[str, object]]:
        """Return part → peft's config, for the parts that have one in the file's header."""
        raw = parse_json(str(self.metadata.get(METADATA, "{}")), f"{self.path}: {METADATA} in its header")
        if not isinstance(raw, dict):
            raise GencliError(f"{self.path}: {METADATA} in its header is not a table in JSON")
        configs: dict[str, Mapping[str, object]] = {}
        for part in self.modules:
            config = {key.removeprefix(f"{part}."): value for key, value in raw.items() if key.startswith(f"{part}.")}
            if config:
                check_peft_config({"peft_type": "LORA", **config}, f"{self.path}, {METADATA} of {part}", KINDS)
                configs[part] = config
        return configs

    def plan(self, part: str, model: nn.Module, changes: dict[str, Change]) -> None:
        """Add to `changes` what this file does to a part. Raise GencliError if it does not fit the part."""
        if not (modules := self.modules.get(part)):
            return
        names = names_of_modules(part, model)
        targets = {module: targets_of(module, names) for module in modules}
        if lost := [module for module, found in targets.items() if not found]:
            count = f"{len(lost)} of {len(modules)} modules" if len(modules) > 1 else "its module"
            raise GencliError(
                f"{self.path} does not fit: {count} for the {part} are none of this model ({lost[0]!r:.120})",
                self.made_for(),
            )
        taken: dict[str, str] = {}
        for module, tensors in modules.items():
            shapes = [tuple(model.get_parameter(f"{target.path}.weight").shape) for target in targets[module]]
            whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            is_cut = any(target.cut for target in targets[module])
            rank = self._rank(tensors, whole, f"{part}.{targets[module][0].path}", is_cut=is_cut)
            scale = self.scale * self._alpha_scale(part, module, tensors, rank)
            for path, cut in targets[module]:
                if path in taken:
                    raise GencliError(f"{self.path}: {taken[path]!r:.120} and {module!r:.120} are one module")
                taken[path] = module
                changes[f"{path}.weight"].deltas.append(Delta(self.tensors, tensors, scale, cut))

    def _rank(self, tensors: Mapping[str, str], shape: tuple[int, ...], where: str, *, is_cut: bool) -> int | None:
        """Return r of the factors of a weight of this shape, None if both are whole (LoKr). is_cut: the weight is one
        of a file's, and several or others here. Raise GencliError if they are missing or do not fit."""
        name, method = next(iter(tensors.values())), method_of(tensors)
        if lost := [sides[-1] for sides in method.needs if not set(sides) & tensors.keys()]:
            raise GencliError(f"{self.path}: {name!r:.120} has no {' and no '.join(lost)} beside it")
        for name in (name for side, name in tensors.items() if side != ALPHA):
            if (dtype := self.tensors.dtype(name)) not in FLOATS:
                raise GencliError(f"{self.path}: {name} is stored as {dtype}, not as one of {', '.join(FLOATS)}")
        if not self._fits(tensors, method, shape, is_cut=is_cut):
            sides = [name for side, name in tensors.items() if side != ALPHA]
            partners = " and ".join(str(list(self.tensors.shape(name))) for name in sides[1:])
            raise GencliError(
                f"{self.path} does not fit: {sides[0]!r:.120} is {list(self.tensors.shape(sides[0]))}, its partner "
                f"{partners}, and {where} {list(shape)}",
                self.made_for(),
            )
        return next((self.tensors.shape(tensors[side])[0] for side in method.rank if side in tensors), None)

    def _fits(self, tensors: Mapping[str, str], method: Method, shape: tuple[int, ...], *, is_cut: bool) -> bool:
        """Return whether the factors make a weight of this shape, (out, in, …)."""
        ranks = [self.tensors.shape(tensors[side])[:1] for side in method.rank if side in tensors]
        if any(not rank or rank[0] < 1 for rank in ranks):
            return False
        if method is LORA and "mid" not in tensors:
            down, up = (self.tensors.shape(tensors[side]) for side in ("down", "up"))
            fits = len(down) >= 2 and len(up) >= 2 and down[0] == up[1] and len(_squeeze(up)) <= 2
            if not fits or (up[0], *_squeeze(down[1:])) != (shape[0], *_squeeze(shape[1:])):
                return False
        try:
            made = Delta(self.tensors, tensors, 1.0).shape()
        except (RuntimeError, IndexError):
            return False
        numbers = {MAGNITUDE: shape[:1], DORA_SCALE: shape[: 1 if is_cut else 2]}  # norms of inputs are of all outputs
        sizes = {side: math.prod(self.tensors.shape(tensors[side])) for side in numbers if side in tensors}
        if any(size not in numbers[side] for side, size in sizes.items()):
            return False
        return made[0] == shape[0] and math.prod(made) == math.prod(shape)

    def _alpha_scale(self, part: str, module: str, tensors: Mapping[str, str], rank: int | None) -> float:
        """Return alpha / r, from the file's alpha, else peft's config, else 1. Where nothing has a rank, alpha counts
        for nothing, as in LyCORIS."""
        if "alpha" in tensors:
            name = tensors["alpha"]
            if math.prod(self.tensors.shape(name)) != 1:
                raise GencliError(f"{self.path}: {name} is {list(self.tensors.shape(name))}, not one number")
            alpha = float(self.tensors.get(name))
            if not math.isfinite(alpha):
                raise GencliError(f"{self.path}: {name} is {alpha}")
            return 1.0 if rank is None else alpha / rank
        if part in self.peft_configs:
            where = self.path.parent / PEFT_CONFIG if self.path.name.startswith(PEFT_STEM) else self.path
            config = self.peft_configs[part]
            return peft_scale(where, config, module, config.get("r", 8) if rank is None else rank)
        return 1.0

    def made_for(self) -> str | None:
        """Return the base model by the file's metadata, or by the width of the text embeddings; None if unknown."""
        for key in ("modelspec.architecture", "ss_base_model_version"):
            if base := self.metadata.get(key):
                return f"it says that it was made for {str(base)[:60]}"
        for module, tensors in self.modules.get(UNET, {}).items():
            if module.endswith(("attn2_to_k", "attn2.to_k")) and "down" in tensors:
                shape = self.tensors.shape(tensors["down"])
                if (family := WIDTHS.get(shape[1] if len(shape) > 1 else 0)) is not None:
                    return f"it looks as if it was made for {family}"
        return None


def open_loras(
    adapters: Iterable[LoraRef], parts: Collection[str], model: str, *, allow_pickle: bool = False
) -> list[ImageLora]:
    """Open LoRA files for a checkpoint with these parts. Raise GencliError for one that changes other parts."""
    loras = [ImageLora(adapter, allow_pickle=allow_pickle) for adapter in adapters]
    for lora in loras:
        if (
            UNET in lora.modules and UNET not in parts and TRANSFORMER in parts
        ):  # as kohya's and ComfyUI's names have it
            lora.modules[TRANSFORMER] = lora.modules.pop(UNET) | lora.modules.get(TRANSFORMER, {})
        if lost := [part for part in lora.modules if part not in parts]:
            raise GencliError(
                f"{lora.path} does not fit: it changes the {' and the '.join(lost)}, and {model} has none",
                lora.made_for(),
            )
    return loras


def merge(loras: Iterable[ImageLora], part: str, model: nn.Module) -> None:
    """Merge the files' changes into the weights of a part; the tensors it was loaded from are not changed.

    Packed weights stay packed where a change is of low rank, which is then computed beside them. Raise GencliError for
    a file that does not fit.
    """
    changes: dict[str, Change] = defaultdict(Change)
    for lora in loras:
        lora.plan(part, model, changes)
    for name in list(changes):
        module = model.get_submodule(name.removesuffix(".weight"))
        deltas = changes[name].deltas
        pairs = [pair for delta in deltas if (pair := delta.factors()) is not None]
        if isinstance(module, StoredLinear) and isinstance(module.weight.data, Packed) and len(pairs) == len(deltas):
            module.beside = pairs
            del changes[name]
    apply_changes(model, changes)


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without trailing ones: a 1×1 convolution is a linear layer."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _open(path: Path, allow_pickle: bool) -> tuple[Path, Tensors, Mapping[str, object] | None]:
    """Return the file of a LoRA, its tensors, and peft's config if it lies beside it. Raise GencliError."""
    if path.is_file():
        return path, open_tensors(path, allow_pickle=allow_pickle), None
    if not path.is_dir():
        raise GencliError(f"--lora {path}: no such file or folder")
    if (path / PEFT_CONFIG).is_file():
        tensors = open_peft_tensors(path, allow_pickle=allow_pickle)
        return tensors.files[0], tensors, read_peft_config(path, KINDS)
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    safetensors, pickles = [name for name in names if name.endswith(SAFETENSORS)], find_pickles(names)
    files = [name for name in safetensors if name == f"{LORA_STEM}{SAFETENSORS}"] or safetensors
    if not files and allow_pickle:
        files = pickles
    if len(files) > 1:
        raise GencliError(f"{path} has {len(files)} files that may be the LoRA ({some(files)})", "name one of them")
    if not files:
        seen = f" (only {some(pickles)})" if pickles else ""
        hint = "--allow-pickle opens it" if pickles else None
        raise GencliError(f"{path} has no {LORA_STEM}{SAFETENSORS}{seen}", hint)
    return path / files[0], open_tensors(path / files[0], allow_pickle=allow_pickle), None
