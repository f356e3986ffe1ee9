"""LoRA files of picture models, merged into the weights as they are loaded: diffusers', kohya's and peft's.

W becomes W + Σ scale · (alpha / r) · up · down, in float32 and rounded once (see `lora`); a convolution's matrices are
convolutions themselves, down (r, in, h, w) and up (out, r, 1, 1). Where a file names no alpha it is r.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.build import FLOATS
from gencli.checkpoints.layout import find_pickles, some
from gencli.checkpoints.lora import CONFIG, Change, apply, check_settings, open_adapter, read_settings, scale_of
from gencli.checkpoints.lora_names import UNET, known_names, read_key
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError

STEM = "pytorch_lora_weights"
METADATA = "lora_adapter_metadata"  # where diffusers writes peft's settings, in the file's header
# Widths of the texts that a UNet attends to → whose they are.
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "the XL refiner"}


class ImageLora:
    """One file, opened: what it says of each part, told by its header.

    modules: part → module as the file calls it → {"down", "up", "alpha"} → name of the tensor.
    Raises GencliError for a file that is broken or of another kind, and for a name of no known form.
    """

    def __init__(self, adapter: LoraRef, *, allow_pickle: bool = False):
        self.scale = adapter.scale
        self.path, self.tensors, peft = _open(adapter.path, allow_pickle)
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
            found = self.modules.setdefault(key.part, {}).setdefault(key.module, {})
            if key.side in found:
                raise GencliError(f"{self.path}: {found[key.side]!r} and {name!r} say the same")
            found[key.side] = name
        if unknown or not self.modules:
            seen = f"no LoRA for pictures, or of a kind that gencli does not know: {some(sorted(unknown)[:3])}"
            raise GencliError(f"{self.path}: {len(unknown)} of {len(self.tensors)} names are of {seen}")
        self.settings: Mapping[str, Mapping[str, Any]]
        self.settings = self._settings() if peft is None else dict.fromkeys(self.modules, peft)

    def _settings(self) -> dict[str, Mapping[str, Any]]:
        """peft's settings of each part, where the file's header has them."""
        try:
            raw = json.loads(self.metadata.get(METADATA, "{}"))
        except (ValueError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            raise GencliError(f"{self.path}: {METADATA} in its header is no table in JSON")
        found: dict[str, Mapping[str, Any]] = {}
        for part in self.modules:
            own = {key.removeprefix(f"{part}."): value for key, value in raw.items() if key.startswith(f"{part}.")}
            if own:
                check_settings({"peft_type": "LORA", **own}, f"{self.path}, {METADATA} of {part}")
                found[part] = own
        return found

    def plan(self, part: str, model: nn.Module, changes: dict[str, Change]) -> None:
        """Add to `changes` what this file does to a part. Raises GencliError for what does not fit it."""
        if not (modules := self.modules.get(part)):
            return
        names = known_names(part, model)
        if lost := [module for module in modules if module not in names]:
            count = f"{len(lost)} of {len(modules)} modules" if len(modules) > 1 else "its module"
            raise GencliError(
                f"{self.path} does not fit: {count} for the {part} are none of this model ({lost[0]!r:.120})",
                self._made_for(),
            )
        taken: dict[str, str] = {}
        for module, tensors in modules.items():
            path = names[module]
            if path in taken:
                raise GencliError(f"{self.path}: {taken[path]!r:.120} and {module!r:.120} are one module")
            taken[path] = module
            rank = self._rank(tensors, model.get_submodule(path), f"{part}.{path}")
            scale = self.scale * self._strength(part, module, tensors, rank)
            pair = tensors["down"], tensors["up"]
            changes[f"{path}.weight"].added.append((self.tensors, pair, scale))

    def _rank(self, tensors: Mapping[str, str], module: nn.Module, where: str) -> int:
        """r of down (r, in, …) and up (out, r, …). Raises GencliError when they are not there, or do not fit."""
        name = next(iter(tensors.values()))
        if lost := [side for side in ("down", "up") if side not in tensors]:
            raise GencliError(f"{self.path}: {name!r:.120} has no {' and no '.join(lost)} beside it")
        for name in (tensors["down"], tensors["up"]):
            if self.tensors.dtype(name) not in FLOATS:
                kind = self.tensors.dtype(name)
                raise GencliError(f"{self.path}: {name} is stored as {kind}, not as one of {', '.join(FLOATS)}")
        down, up = (self.tensors.shape(tensors[side]) for side in ("down", "up"))
        weight = module.weight
        assert isinstance(weight, Tensor)
        fits = len(down) >= 2 and len(up) >= 2 and down[0] == up[1] > 0
        if not fits or (up[0], *_thin(down[1:])) != (weight.shape[0], *_thin(weight.shape[1:])) or len(_thin(up)) > 2:
            raise GencliError(
                f"{self.path} does not fit: {tensors['down']!r:.120} is {list(down)}, its partner {list(up)}, "
                f"and {where} {list(weight.shape)}",
                self._made_for(),
            )
        return down[0]

    def _strength(self, part: str, module: str, tensors: Mapping[str, str], rank: int) -> float:
        """alpha / r: from the file's own alpha, else peft's settings, else 1."""
        if "alpha" in tensors:
            name = tensors["alpha"]
            if math.prod(self.tensors.shape(name)) != 1:
                raise GencliError(f"{self.path}: {name} is {list(self.tensors.shape(name))}, not one number")
            alpha = float(self.tensors.get(name))
            if not math.isfinite(alpha):
                raise GencliError(f"{self.path}: {name} is {alpha}")
            return alpha / rank
        if part in self.settings:
            where = self.path.parent / CONFIG if self.path.name.startswith("adapter_model") else self.path
            return scale_of(where, self.settings[part], module, rank)
        return 1.0

    def _made_for(self) -> str | None:
        """What the file says it was made for, or what the width of the texts that it reads tells."""
        for key in ("modelspec.architecture", "ss_base_model_version"):
            if said := self.metadata.get(key):
                return f"it says that it was made for {said[:60]}"
        for module, tensors in self.modules.get(UNET, {}).items():
            if module.endswith(("attn2_to_k", "attn2.to_k")) and "down" in tensors:
                shape = self.tensors.shape(tensors["down"])
                if (family := WIDTHS.get(shape[1] if len(shape) > 1 else 0)) is not None:
                    return f"it looks as if it was made for {family}"
        return None


def open_loras(
    adapters: Iterable[LoraRef], parts: Collection[str], model: str, *, allow_pickle: bool = False
) -> list[ImageLora]:
    """Open LoRA files for a checkpoint that has these parts. Raises GencliError for one that wants others."""
    loras = [ImageLora(adapter, allow_pickle=allow_pickle) for adapter in adapters]
    for lora in loras:
        if lost := [part for part in lora.modules if part not in parts]:
            raise GencliError(
                f"{lora.path} does not fit: it changes the {' and the '.join(lost)}, and {model} has none",
                lora._made_for(),
            )
    return loras


def merge(loras: Iterable[ImageLora], part: str, model: nn.Module) -> None:
    """Add to the weights of a part what the files say of it; the tensors that it was loaded from stay as they are.

    Raises GencliError for a file that does not fit.
    """
    changes: dict[str, Change] = defaultdict(Change)
    for lora in loras:
        lora.plan(part, model, changes)
    apply(model, changes)


def _thin(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end: a 1×1 convolution is a linear layer."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _open(path: Path, allow_pickle: bool) -> tuple[Path, Tensors, Mapping[str, Any] | None]:
    """The file of a LoRA, its tensors, and peft's settings if they lie beside it. Raises GencliError."""
    if path.is_file():
        return path, open_tensors(path, allow_pickle=allow_pickle), None
    if not path.is_dir():
        raise GencliError(f"--lora {path}: no such file or folder")
    if (path / CONFIG).is_file():
        tensors = open_adapter(path, allow_pickle=allow_pickle)
        return tensors.files[0], tensors, read_settings(path)
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    safe = [name for name in names if name.endswith(".safetensors")]
    found = [name for name in safe if name == f"{STEM}.safetensors"] or safe
    if not found and allow_pickle:
        found = find_pickles(names)
    if len(found) > 1:
        raise GencliError(f"{path} has {len(found)} files that may be the LoRA ({some(found)})", "name one of them")
    if not found:
        pickles = find_pickles(names)
        seen = f" (only {some(pickles)})" if pickles else ""
        raise GencliError(f"{path} has no {STEM}.safetensors{seen}", "--allow-pickle opens it" if pickles else None)
    return path / found[0], open_tensors(path / found[0], allow_pickle=allow_pickle), None
