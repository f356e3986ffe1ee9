"""LoRA files of image models, merged into the weights as they are loaded: those of diffusers, kohya's trainer, peft,
LyCORIS and ComfyUI; also LoHa, LoKr and DoRA (see `deltas`).

W becomes W + Σ scale · (alpha / r) · Δ, in float32 and rounded once (see `lora`). For a convolution down and up are
convolutions, (r, in, h, w) and (out, r, 1, 1). Without an alpha in the file, alpha is r.

diffusers names a module by its path (`unet.mid_block.….to_q.lora_A.weight`), and did so differently in older files
(`….attn1.processor.to_q_lora.down.weight`, `….q_proj.lora_linear_layer.up.weight`). kohya's trainer writes the path
with underscores (`lora_unet_mid_block_…_to_q.lora_down.weight`), in diffusers' UNet or, for SDXL, in the original one
(`lora_unet_middle_block_1_…`). A path with underscores cannot be split again, so names are looked up the other way:
every module of the model is listed under all of its names.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from gencli.checkpoints.assets import LORA_STEM, PEFT_CONFIG, PEFT_STEM, LoraRef
from gencli.checkpoints.build import FLOATS
from gencli.checkpoints.deltas import ALPHA, DORA_SCALE, LORA, MAGNITUDE, Delta, Method, method_of
from gencli.checkpoints.formats.stable_diffusion_unet import INSIDE, Level, original_places
from gencli.checkpoints.layout import SAFETENSORS, find_pickles, some
from gencli.checkpoints.lora import (
    PEFT_PREFIX,
    Change,
    apply_changes,
    check_peft_config,
    open_peft_tensors,
    peft_scale,
    read_peft_config,
)
from gencli.checkpoints.tensors import Tensors
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import parse_json
from gencli.models.base import Rename

METADATA = "lora_adapter_metadata"  # the key of the header under which diffusers writes peft's config
# Widths of the texts that a UNet attends to → the models that have them.
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL", 1280: "the XL refiner"}
UNET, TRANSFORMER, TEXT, TEXT_2 = "unet", "transformer", "text_encoder", "text_encoder_2"
# A tensor's name becomes MODULE:SIDE, and MODULE becomes PART:MODULE. The first row that matches counts.
NAMED = r"(?:\.[\w-]+)?"  # the adapter's name in peft: default, default_0, …
SIDES = (
    Rename(rf"(.+?)\.lora_A{NAMED}\.weight", r"\1:down"),
    Rename(rf"(.+?)\.lora_B{NAMED}\.weight", r"\1:up"),
    Rename(r"(.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(down|up|mid)\.weight", r"\1:\2"),
    Rename(rf"(.+?)\.(hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)){NAMED}", r"\1:\2"),
    Rename(rf"(.+?)\.lora_magnitude_vector{NAMED}(?:\.weight)?", rf"\1:{MAGNITUDE}"),
    Rename(r"(.+?)\.(alpha|dora_scale)", r"\1:\2"),
)
PARTS = (
    Rename(r"(?:lora_te1?_|text_encoder\.|text_encoders\.clip_l\.(?:transformer\.)?)(.+)", rf"{TEXT}:\1"),
    Rename(r"(?:lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.(?:transformer\.)?)(.+)", rf"{TEXT_2}:\1"),
    Rename(r"lycoris_(text_model_.+)", rf"{TEXT}:\1"),
    Rename(r"transformer\.(.+)", rf"{TRANSFORMER}:\1"),
    Rename(r"(?:lora_unet_|lycoris_unet_|lycoris_|unet\.|diffusion_model\.)(.+)", rf"{UNET}:\1"),
    # The first files of diffusers, and PEFT folders, have no prefix.
    Rename(r"((?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b.*)", rf"{UNET}:\1"),
    Rename(r"((?:text_model\.)?encoder\b.*)", rf"{TEXT}:\1"),
)
KINDS = ("LORA", "LOHA", "LOKR")  # `peft_type`s
# Other parameter-efficient methods, by a pattern in their tensor names.
OTHERS = (
    (r"[._]b?oft_|\.oft_diag|\.boft", "OFT"),
    (r"\.on_input", "(IA)³"),
    (r"lora_(B|up)(\.default)?\.bias|\.lora\.up\.bias", "a LoRA with biases"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "a file with changes of whole weights"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"bundle_emb", "a LoRA with embeddings in its file"),
)


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
        self.peft_configs: Mapping[str, Mapping[str, Any]] = (
            self._read_peft_configs() if peft_config is None else dict.fromkeys(self.modules, peft_config)
        )

    def _read_peft_configs(self) -> dict[str, Mapping[str, Any]]:
        """Return part → peft's config, for the parts that have one in the file's header."""
        raw = parse_json(self.metadata.get(METADATA, "{}"), f"{self.path}: {METADATA} in its header")
        if not isinstance(raw, dict):
            raise GencliError(f"{self.path}: {METADATA} in its header is not a table in JSON")
        configs: dict[str, Mapping[str, Any]] = {}
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
        names = _names_of_modules(part, model)
        if lost := [module for module in modules if module not in names]:
            count = f"{len(lost)} of {len(modules)} modules" if len(modules) > 1 else "its module"
            raise GencliError(
                f"{self.path} does not fit: {count} for the {part} are none of this model ({lost[0]!r:.120})",
                self.made_for(),
            )
        taken: dict[str, str] = {}
        for module, tensors in modules.items():
            path = names[module]
            if path in taken:
                raise GencliError(f"{self.path}: {taken[path]!r:.120} and {module!r:.120} are one module")
            taken[path] = module
            rank = self._rank(tensors, model.get_submodule(path), f"{part}.{path}")
            scale = self.scale * self._alpha_scale(part, module, tensors, rank)
            changes[f"{path}.weight"].deltas.append(Delta(self.tensors, tensors, scale))

    def _rank(self, tensors: Mapping[str, str], module: nn.Module, where: str) -> int | None:
        """Return r of a module's factors, None if both are whole (LoKr). Raise GencliError if they are missing or do
        not fit."""
        name, method = next(iter(tensors.values())), method_of(tensors)
        if lost := [sides[-1] for sides in method.needs if not set(sides) & tensors.keys()]:
            raise GencliError(f"{self.path}: {name!r:.120} has no {' and no '.join(lost)} beside it")
        for name in (name for side, name in tensors.items() if side != ALPHA):
            if (dtype := self.tensors.dtype(name)) not in FLOATS:
                raise GencliError(f"{self.path}: {name} is stored as {dtype}, not as one of {', '.join(FLOATS)}")
        weight = module.weight
        assert isinstance(weight, Tensor)
        if not self._fits(tensors, method, tuple(weight.shape)):
            sides = [name for side, name in tensors.items() if side != ALPHA]
            partners = " and ".join(str(list(self.tensors.shape(name))) for name in sides[1:])
            raise GencliError(
                f"{self.path} does not fit: {sides[0]!r:.120} is {list(self.tensors.shape(sides[0]))}, its partner "
                f"{partners}, and {where} {list(weight.shape)}",
                self.made_for(),
            )
        return next((self.tensors.shape(tensors[side])[0] for side in method.rank if side in tensors), None)

    def _fits(self, tensors: Mapping[str, str], method: Method, shape: tuple[int, ...]) -> bool:
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
        numbers = {MAGNITUDE: shape[:1], DORA_SCALE: shape[:2]}
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
                return f"it says that it was made for {base[:60]}"
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

    Raise GencliError for a file that does not fit.
    """
    changes: dict[str, Change] = defaultdict(Change)
    for lora in loras:
        lora.plan(part, model, changes)
    apply_changes(model, changes)


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without trailing ones: a 1×1 convolution is a linear layer."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _open(path: Path, allow_pickle: bool) -> tuple[Path, Tensors, Mapping[str, Any] | None]:
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


class Key(NamedTuple):
    """A parsed tensor name. side: down (r, in), up (out, r), alpha, or another of `deltas`."""

    part: str
    module: str
    side: str


def read_key(name: str) -> Key | None:
    """Parse a tensor name; None for an unknown form. Raise GencliError for a method that is not supported."""
    for pattern, what in OTHERS:
        if re.search(pattern, name):
            raise GencliError(f"{what} is not supported ({name!r:.120})", "gencli knows LoRA, LoHa, LoKr and DoRA")
    module, _, side = (_first(SIDES, name) or "").rpartition(":")
    renamed = _first(PARTS, module.replace(PEFT_PREFIX, "", 1).replace(".processor.", "."))
    if renamed is None:
        return None
    part, _, module = renamed.partition(":")
    return Key(part, module, side)


def _first(rows: Iterable[Rename], name: str) -> str | None:
    return next((new for row in rows if (new := row.new_name(name)) is not None), None)


def _names_of_modules(part: str, model: nn.Module) -> dict[str, str]:
    """Return all names that files use for the linear and convolutional modules of a model: name → path."""
    names: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            names[path] = path
            for name in _text_names(path) if part not in (UNET, TRANSFORMER) else ():
                names[name] = path
            if path.endswith(".to_out.0"):
                names[path.removesuffix(".0")] = path
    if part == UNET:
        inside = {new: old for old, new in INSIDE.items()}
        blocks = getattr(model, "down_blocks", ())
        levels = [Level(0, len(block.resnets), int(block.attentions is not None)) for block in blocks]
        for place, target in original_places(levels):
            for path in [path for path in names if path == target or path.startswith(f"{target}.")]:
                rest = path[len(target) + 1 :]
                rest = inside.get(rest, rest) if "downsamplers" in target or "resnets" in target else rest
                names[f"{place}.{rest}" if rest else place] = names[path]
    return {**{name.replace(".", "_"): path for name, path in names.items()}, **names}


def _text_names(path: str) -> Iterator[str]:
    """Yield the names of a text encoder's module: before version 5, transformers had all under `text_model`."""
    for name in (path, f"text_model.{path}"):
        yield name
        stem, _, last = name.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{stem}.to_{last.removesuffix('_proj')}"
