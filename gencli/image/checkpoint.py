"""What a folder in diffusers' layout says of itself, before any weight is read.

A model_index.json names the pipeline and its parts, each in a folder of its own; a pipeline of one network may have it
at the root (google/ddpm-cifar10-32). What there must be is the table in `families`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.families import FAMILIES, Family
from gencli.image.prompts.classes import Classes, classes_of, read_names
from gencli.image.with_vae import Opens, with_vae
from gencli.json_files import read_json
from gencli.models import stands_for

if TYPE_CHECKING:
    from gencli.checkpoints.single_file import SingleFile
    from gencli.checkpoints.tensors import Tensors
    from gencli.tokens import Tokenizer

UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}
KNOWN = {  # what else model_index.json may say
    "id2label",
    "requires_safety_checker",
    "force_zeros_for_empty_prompt",
    "requires_aesthetics_score",
    "add_watermarker",
    "is_cosxl_edit",
}
# generation_config.json beside model_index.json, with the names of diffusers' call → fields of ImageRequest
DEFAULTS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance_rescale",
    "negative_prompt": "negative",
    "eta": "eta",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a folder says, before any weight is read.

    parts: name → folder. configs: all parts but tokenizers → their JSON. defaults: values for `ImageRequest`.
    notes: what in the folder goes unused. allow_pickle: whether tensors may be read from pickles.
    single: the file that all parts are in; `folder` and the models' places are then that file. labels: names of
    classes, by number. files: parts that are in a file of their own, or elsewhere. index: model_index.json.
    """

    name: str
    folder: Path
    family: Family
    parts: Mapping[str, Path]
    configs: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    allow_pickle: bool = False
    single: SingleFile | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    files: Mapping[str, Opens] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """What pictures are asked for with: "text", "class" (a name or number) or "none"."""
        return "class" if self.family.prompt != "text" and self.classes is not None else self.family.prompt

    @cached_property
    def network_classes(self) -> Classes | None:
        """The classes that the network is told of, if any."""
        return classes_of(self.configs[self.family.network], self.labels)

    @cached_property
    def classes(self) -> Classes | None:
        """Those, or the ones that a classifier beside it tells apart."""
        classifier = self.configs.get("classifier")
        return self.network_classes or (None if classifier is None else classes_of(classifier, self.labels))

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """A part's config and weights. Raises GencliError for weights that cannot be opened."""
        from gencli.checkpoints.weights import open_tensors

        if part in self.files:
            return self.files[part].open(part)
        if self.single is not None and part in self.single.configs:
            return self.single.open(part)
        return self.configs[part], open_tensors(self.parts[part], allow_pickle=self.allow_pickle)

    def tokenizer(self, part: str = "tokenizer") -> Tokenizer:
        """A part's tokenizer. Raises GencliError for one that is broken."""
        from gencli.tokens import load_tokenizer

        return load_tokenizer(self.parts[part]) if self.single is None else self.single.tokenizer(part)

    @cached_property
    def also_reads(self) -> Literal["mask", "picture"] | None:
        """What the network reads beside the latents, as further channels: a mask and what it leaves of a picture (to
        paint there), a picture (to edit it), or nothing."""
        if self.family.autoencoder != "vae":
            return None
        channels = self.configs["vae"].get("latent_channels", 4)
        further = self.configs[self.family.network].get("in_channels", channels) - channels
        return "mask" if further == channels + 1 else "picture" if further == channels else None

    @cached_property
    def factor(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(_blocks(self, self.family.autoencoder)) - 1) if self.family.autoencoder else 1

    @cached_property
    def multiple(self) -> int:
        """Width and height are whole multiples of this: a latent's side, for UNets which cannot make a level of an odd
        size what all levels halve, and for a DiT the side of a patch."""
        network = self.family.network
        config = self.configs[network]
        if config.get("_class_name") == "UNetModel":
            return self.factor * 2 ** (len(config["channel_mult"]) - 1)
        halves = config.get("_class_name") == "UNet2DModel"
        return self.factor * (2 ** (len(_blocks(self, network)) - 1) if halves else patch_size(config))

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels that the model was made for, if it says so."""
        config = self.configs[self.family.network]
        sample = config.get("sample_size", config.get("image_size"))
        height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
        if width is None or height is None:
            return None
        if not all(isinstance(side, int) and 1 <= side <= 4096 for side in (width, height)):
            raise GencliError(f"{self.parts[self.family.network]}: sample_size = {sample!r} is no size of a picture")
        return width * self.factor, height * self.factor


def open_checkpoint(
    source: Source,
    *,
    allow_pickle: bool = False,
    prediction: str | None = None,
    betas: str | None = None,
    vae: Source | None = None,
) -> Checkpoint:
    """Read the small files of a checkpoint, or the header of one in a single file.

    prediction, betas: its `prediction_type` and `beta_schedule`, over what it says itself. vae: what holds another
    autoencoder for it.
    Raises GencliError for what is no picture checkpoint or not supported.
    """
    if source.kind == "file":
        checkpoint = _of_class_file(source, allow_pickle) or _of_file(
            source, allow_pickle=allow_pickle, prediction=prediction, betas=betas, other_vae=vae is not None
        )
    else:
        checkpoint = _of_folder(source, allow_pickle)
    if checkpoint.single is None:
        said = {"prediction_type": prediction, "beta_schedule": betas}
        over = {key: value for key, value in said.items() if value is not None}
        if over:
            scheduler = {**checkpoint.configs["scheduler"], **over}
            checkpoint = dataclasses.replace(checkpoint, configs={**checkpoint.configs, "scheduler": scheduler})
    if vae is not None:
        checkpoint = with_vae(checkpoint, vae, allow_pickle=allow_pickle)
    checkpoint.family.check(checkpoint)
    return checkpoint


def _of_class_file(source: Source, allow_pickle: bool) -> Checkpoint | None:
    """A DiT or a UNet of guided-diffusion in its own file; None for what is neither. Raises GencliError."""
    from gencli.checkpoints.class_file import open_class_file

    path = source.path
    found = open_class_file(path, allow_pickle=allow_pickle)
    if found is None:
        return None
    if not found.pipeline:
        raise GencliError(f"{path} is a {found.title}, which draws nothing by itself", "--classifier guides by it")
    files, parts = dict.fromkeys(found.parts, found), dict.fromkeys(found.configs, path)
    labels, family = _labels(found.labels, path.with_suffix(".json")), FAMILIES[found.pipeline]
    return Checkpoint(source.name, path, family, parts, found.configs, {}, found.notes, labels=labels, files=files)


def _of_file(source: Source, **said: Any) -> Checkpoint:
    """All parts in one file; `said` as `open_single_file`'s. Raises GencliError."""
    from gencli.checkpoints.single_file import open_single_file

    path = source.path
    single = open_single_file(path, **said)
    family = FAMILIES.get(single.pipeline)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise GencliError(f"{path}: it is a {single.pipeline}, which is not supported", f"gencli knows {known}")
    parts = dict.fromkeys([*single.configs, *single.tokenizers], path)
    return Checkpoint(source.name, path, family, parts, single.configs, {}, single.notes, single=single)


def _of_folder(source: Source, allow_pickle: bool) -> Checkpoint:
    folder = source.path
    index = _index(folder)
    kind = str(index.get("_class_name"))
    family = FAMILIES.get(kind)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise GencliError(f"{folder / 'model_index.json'}: pipeline {kind!r} is not supported", f"gencli knows {known}")
    here = _parts(index)
    if unknown := [name for name in here if name not in [*family.parts, *UNUSED]]:
        raise GencliError(f"{folder / 'model_index.json'}: {kind} with {', '.join(unknown)} is not supported")
    parts, configs = {}, {}
    for name in family.parts:
        if name not in here:
            if name in family.optional:
                continue
            raise GencliError(f"{folder / 'model_index.json'}: {kind} without {name}")
        # Only a pipeline of one network can keep it at the root: two would clash over config.json.
        alone = set(family.parts) == {family.network, "scheduler"}
        parts[name] = folder if alone and not (folder / name).is_dir() else folder / name
        if not name.startswith("tokenizer"):
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            configs[name] = read_json(parts[name] / file)
    _check_architectures(folder, family, configs)
    labels = _labels(index.get("id2label"), folder / "model_index.json")
    notes = _notes(index)
    more: dict[str, Any] = {"allow_pickle": allow_pickle, "labels": labels, "index": index}
    return Checkpoint(source.name, folder, family, parts, configs, _defaults(folder), notes, **more)


def _index(folder: Path) -> Mapping[str, Any]:
    """model_index.json, or what stands for it: a UNet alone with its scheduler."""
    if (folder / "model_index.json").is_file():
        return read_json(folder / "model_index.json")
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name") == "UNet2DModel" and (folder / "scheduler_config.json").is_file():
        return {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", ""]}
    if kind := config.get("model_type") or config.get("_class_name"):
        hint = "text models are for `gencli text`" if "model_type" in config else "it is one part of a checkpoint"
        hint = "`gencli codes` turns pictures into its codes, and back" if kind == "VQModel" else hint
        raise GencliError(f"{folder} holds a {kind!s:.40}, no model for pictures", hint)
    raise GencliError(f"{folder} has no model_index.json", "is it the folder of a checkpoint for pictures?")


def _parts(index: Mapping[str, Any]) -> list[str]:
    """Names of the parts that are there: entries that are pairs, and not [null, null]."""
    return [
        name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1] is not None
    ]


def _notes(index: Mapping[str, Any]) -> tuple[str, ...]:
    notes = ["its safety checker is not loaded"] if "safety_checker" in _parts(index) else []
    odd = [name for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)]
    if odd := [name for name in odd if name not in KNOWN]:
        notes.append(f"model_index.json: {', '.join(odd)[:80]} is not known and goes unused")
    return tuple(notes)


def _labels(raw: Any, file: Path) -> dict[int, str]:
    try:
        return read_names(raw)
    except GencliError as error:
        raise GencliError(f"{file}: {error.message}") from None


def _check_architectures(folder: Path, family: Family, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Each part's config is of a kind that fits its place. Raises GencliError."""
    for name, known in family.parts.items():
        if known is not None and name in configs:
            found = configs[name].get("_class_name") or configs[name].get("model_type")
            if not stands_for(found, known):
                raise GencliError(f"{folder}: {name} is a {found!r}", f"gencli knows {', '.join(sorted(known))}")


def _blocks(checkpoint: Checkpoint, part: str) -> list[int]:
    # Defaults as in diffusers' classes.
    default = {"UNet2DConditionModel": 4, "UNet2DModel": 4, "AutoencoderKL": 1, "VQModel": 1}
    config = checkpoint.configs[part]
    blocks = config.get("block_out_channels", [0] * default.get(str(config.get("_class_name")), 1))
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16:
        raise GencliError(f"{checkpoint.parts[part]}: block_out_channels = {blocks!r} is not supported")
    return blocks


def patch_size(config: Mapping[str, Any]) -> int:
    """Latents a side of a transformer's patch; 1 for other networks. Raises GencliError."""
    size = config.get("patch_size", 2 if "Transformer2DModel" in str(config.get("_class_name")) else 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 64:
        raise GencliError(f"patch_size = {size!r:.80} is not supported")
    return size


def _defaults(folder: Path) -> dict[str, Any]:
    """The checkpoint's own settings for a request; keys that are none of DEFAULTS are for other programs."""
    file = folder / "generation_config.json"
    raw = read_json(file) if file.is_file() else {}
    return {DEFAULTS[key]: value for key, value in raw.items() if key in DEFAULTS and value is not None}
