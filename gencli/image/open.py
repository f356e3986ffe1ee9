"""Opening an image checkpoint: what lies at a path held against the table of families; another autoencoder for it, and
a classifier beside it. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part, folder_part
from gencli.checkpoints.find import Source, is_whole
from gencli.checkpoints.formats import stable_diffusion_keys
from gencli.checkpoints.formats.autoencoder import read_alone
from gencli.checkpoints.hub_cache import HubId
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.uses import wrong_kind
from gencli.errors import GencliError, UsageError
from gencli.image.checkpoint import ImageCheckpoint, latent_channels
from gencli.image.families import FAMILIES, Family, find_family
from gencli.image.prompts.classes import classes_of, read_names
from gencli.models import stands_for

KNOWN = {  # what else model_index.json may say
    "id2label",
    "requires_safety_checker",
    "force_zeros_for_empty_prompt",
    "requires_aesthetics_score",
    "add_watermarker",
    "is_cosxl_edit",
    "max_noise_level",
    "is_distilled",
}
# generation_config.json beside model_index.json, with the names of diffusers' call → fields of ImageRequest
DEFAULTS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance_rescale",
    "guidance_start": "guidance_start",
    "guidance_end": "guidance_end",
    "negative_prompt": "negative",
    "eta": "eta",
}
FIRST_PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
)  # fmt: skip
SINGLE = "stable diffusion"  # the format whose scheduler is told by what the user says
CLASSIFIER = "EncoderUNetModel"
NETWORKS = ("dit", "ddpm", "guided-diffusion")  # formats of one network


def open_image_checkpoint(
    source: Source | Contents | Checkpoint,
    *,
    allow_pickle: bool = False,
    prediction: str | None = None,
    betas: str | None = None,
    zero_snr: bool | None = None,
    vae: Source | None = None,
    ignore: Collection[str] = (),
) -> ImageCheckpoint:
    """Read the small files of a checkpoint, or the header of one in a single file.

    prediction, betas, zero_snr: its `prediction_type`, `beta_schedule` and `rescale_betas_zero_snr`, over what it says
    itself. vae: what holds another autoencoder for it. ignore: keys of its parts' configs that are taken to change
    nothing.
    Raises GencliError for what is no picture checkpoint or not supported.
    """
    hints = Hints(prediction, betas, zero_snr, other_vae=vae is not None)
    if isinstance(source, Checkpoint):
        opened = source
    else:
        opened = open_checkpoint(source, allow_pickle=allow_pickle, hints=hints)
    checkpoint = _of_file(opened) if opened.contents.is_file else _of_folder(opened)
    said: dict[str, object] = {
        "prediction_type": prediction,
        "beta_schedule": betas,
        "rescale_betas_zero_snr": zero_snr,
    }
    said |= {"timestep_spacing": "trailing"} if zero_snr else {}
    if (over := {key: value for key, value in said.items() if value is not None}) and opened.format != SINGLE:
        name = checkpoint.main.scheduler
        configs = {**checkpoint.configs, name: {**checkpoint.configs[name], **over}}
        checkpoint = dataclasses.replace(checkpoint, configs=configs)
    if vae is not None:
        checkpoint = with_vae(checkpoint, vae, allow_pickle=allow_pickle)
    if unknown := [key for key in ignore if not any(key in config for config in checkpoint.configs.values())]:
        raise GencliError(f"--ignore-config {unknown[0]}: no config of {checkpoint.name} has such a key")
    if ignore:
        kept = {
            part: {key: value for key, value in config.items() if key not in ignore}
            for part, config in checkpoint.configs.items()
        }
        checkpoint = dataclasses.replace(checkpoint, configs=kept)
    checkpoint.family.check(checkpoint)
    return checkpoint


def _of_file(opened: Checkpoint) -> ImageCheckpoint:
    """All parts in one file. Raises GencliError for a file that draws nothing."""
    path = opened.path
    if opened.problem is not None:
        raise opened.problem
    if opened.kind == "text":
        raise wrong_kind(opened, "image")
    if opened.kind != "image":
        if opened.parts.keys() == {"classifier"}:
            raise GencliError(f"{path} is a {opened.title}, which draws nothing by itself", "--classifier guides by it")
        try:
            stable_diffusion_keys.recognise(opened.contents.shapes)  # says what else it is
        except GencliError as error:
            raise GencliError(f"{path}: {error.message}", error.hint) from None
    if opened.rest:
        return _of_folder(_with_rest(opened))
    family = find_family(opened.family, opened.parts)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise GencliError(f"{path}: it is a {opened.family}, which is not supported", f"gencli knows {known}")
    configs = {name: part.config for name, part in opened.parts.items()}
    labels = _labels(opened.labels, opened.labels_file)
    return ImageCheckpoint(opened, family, configs, notes=opened.notes, labels=labels, index=opened.index)


def _with_rest(opened: Checkpoint) -> Checkpoint:
    """A network in a file with the other parts of a folder: the one that it lies in, else of one of its repositories in
    the local cache. What the file is holds over the folder's word. Raises GencliError where there is none, and for one
    with other parts."""
    own = dict(opened.parts)
    if opened.contents.has("model_index.json"):
        folder: Path | None = opened.contents.folder
        own.pop("scheduler", None)
    else:
        cached = {name: there for name in opened.rest if (there := hub_cache.snapshot(HubId(name))) is not None}
        folder = next(iter(cached.values()), None)
        if opened.rest[0] in cached:
            own.pop("scheduler", None)
    if folder is None:
        raise GencliError(
            f"{opened.path} is {opened.title} without the other parts of {opened.family}",
            f"`gencli models pull {opened.rest[0]}` fetches them; or put it into a folder that has them and "
            "model_index.json",
        )
    found = open_checkpoint(Source(opened.name, folder, "folder"), allow_pickle=opened.contents.allow_pickle)
    family = FAMILIES.get(found.family)
    if family is None or family.parts != FAMILIES[opened.family].parts:
        raise GencliError(f"{opened.path} is {opened.title}, and {folder} holds a {found.family:.40}")
    index = {**found.index, "_class_name": opened.family}
    return dataclasses.replace(found, parts={**found.parts, **own}, notes=opened.notes, index=index)


def _of_folder(opened: Checkpoint) -> ImageCheckpoint:
    folder = opened.path
    index = _index(opened)
    kind = str(index.get("_class_name"))
    here = layout.named_parts(index)
    family = find_family(kind, here)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise GencliError(f"{folder / 'model_index.json'}: pipeline {kind!r} is not supported", f"gencli knows {known}")
    if unknown := [name for name in here if name not in [*family.parts, *layout.UNUSED]]:
        raise GencliError(f"{folder / 'model_index.json'}: {kind} with {', '.join(unknown)} is not supported")
    parts, configs = {}, {}
    for name in family.parts:
        if name not in here:
            if name in family.optional:
                continue
            raise GencliError(f"{folder / 'model_index.json'}: {kind} without {name}")
        part = opened.parts.get(name) or opened.parts[""]
        # Only a pipeline of one network can keep it at the root: two would clash over config.json.
        if part.path == folder and set(family.parts) != {family.network, "scheduler"}:
            part = folder_part(opened.contents, name, folder / name, part.kind)
        if not part.path.exists():
            where = f"{folder / 'model_index.json'} names {name}"
            raise GencliError(f"{where}, whose folder is not there", f"fetch {name}/ from where the rest came")
        parts[name] = part
        if "tokenizer" not in name:
            configs[name] = part.config
    if kind in FIRST_PIPELINES:
        configs |= _as_first_pipelines_take(configs)
    _check_architectures(folder, family, configs)
    configs = _as_read(family, configs)
    labels = _labels(index.get("id2label"), folder / "model_index.json")
    opened = dataclasses.replace(opened, parts=parts)
    raw = opened.defaults  # keys that are none of DEFAULTS are for other programs
    defaults = {DEFAULTS[key]: value for key, value in raw.items() if key in DEFAULTS and value is not None}
    return ImageCheckpoint(opened, family, configs, defaults, (*opened.notes, *_notes(index)), labels, opened.index)


def _as_first_pipelines_take(configs: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """Configs as diffusers' Stable Diffusion pipelines correct them: steps are always offset by 1, and a UNet that a
    version before 0.9 wrote draws 64 latents a side at least."""
    unet, found = configs["unet"], {"scheduler": {**configs["scheduler"], "steps_offset": 1}}
    version = re.match(r"0\.(\d+)\.", str(unet.get("_diffusers_version")))
    size = unet.get("sample_size")
    if version is not None and int(version[1]) < 9 and isinstance(size, int) and size < 64:
        found["unet"] = {**unet, "sample_size": 64}
    return dict(found)


def _index(opened: Checkpoint) -> Mapping[str, object]:
    """model_index.json, or what stands for it: a UNet alone with its scheduler."""
    folder, config = opened.path, opened.parts[""].config if "" in opened.parts else {}
    if opened.contents.has("model_index.json"):
        if opened.problem is not None:
            raise opened.problem
        return opened.index
    if config.get("_class_name") == "UNet2DModel" and "scheduler" in opened.parts:
        return {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", ""]}
    if opened.family:
        raise wrong_kind(opened, "image")
    raise GencliError(f"{folder} has no model_index.json", layout.other_hint(opened.contents.files))


def _notes(index: Mapping[str, object]) -> tuple[str, ...]:
    notes = ["its safety checker is not loaded"] if "safety_checker" in layout.named_parts(index) else []
    odd = [name for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)]
    if odd := [name for name in odd if name not in KNOWN]:
        notes.append(f"model_index.json: {', '.join(odd)[:80]} is not known and goes unused")
    return tuple(notes)


def _labels(raw: object, file: Path) -> dict[int, str]:
    try:
        return read_names(raw)
    except GencliError as error:
        raise GencliError(f"{file}: {error.message}") from None


def _as_read(family: Family, configs: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """The configs, in which parts that the family reads by another architecture name that."""
    named = {name: {"model_type": kind} for name, kind in family.reads.items()}
    return {name: {**config, **named.get(name, {})} for name, config in configs.items()}


def _check_architectures(folder: Path, family: Family, configs: Mapping[str, Mapping[str, object]]) -> None:
    """Each part's config is of a kind that fits its place. Raises GencliError."""
    for name, known in family.parts.items():
        if known is not None and name in configs:
            found = configs[name].get("_class_name") or configs[name].get("model_type")
            if not stands_for(found, known):
                raise GencliError(f"{folder}: {name} is a {found!r}", f"gencli knows {', '.join(sorted(known))}")


def with_vae(checkpoint: ImageCheckpoint, source: Source, *, allow_pickle: bool = False) -> ImageCheckpoint:
    """Return the checkpoint with the autoencoder of `source`: a file, a folder with a config.json, or a pipeline's.

    Raise UsageError for a checkpoint without one, GencliError for what is no autoencoder that fits it.
    """
    name = checkpoint.family.autoencoder
    if name is None:
        raise UsageError(f"{checkpoint.name} draws in pixels: --vae would have no effect")
    old: Mapping[str, object] = checkpoint.configs.get(name, {})
    part = _autoencoder(source, old, allow_pickle)
    config = part.config
    kind, kinds = config.get("_class_name"), checkpoint.family.parts[name] or frozenset()
    if not stands_for(kind, kinds):
        found = kind or config.get("model_type")
        raise GencliError(f"--vae {part.path} is a {found!s:.40}", f"{' or '.join(kinds)} fits")
    channels = [latent_channels(one) for one in (config, old)]
    if old and channels[0] != channels[1]:
        makes = f"makes latents of {channels[0]!s:.20} channels"
        raise GencliError(f"--vae {part.path} {makes}, and {checkpoint.name} knows {channels[1]}")
    changed = checkpoint.with_part(name, part, config)
    if "block_out_channels" in old and changed.factor != checkpoint.factor:
        has = f"has {changed.factor} pixels a side of a latent"
        raise GencliError(f"--vae {part.path} {has}, and {checkpoint.name} has {checkpoint.factor}")
    return changed


def _autoencoder(source: Source, old: Mapping[str, object], allow_pickle: bool) -> Part:
    """The autoencoder alone, or a pipeline's. Raises GencliError for what holds none."""
    opened = open_checkpoint(source, allow_pickle=allow_pickle)
    if opened.contents.is_file:
        return read_alone(opened.contents, old)
    if part := opened.find_part("", "vae", "vqvae"):
        return part
    raise GencliError(f"--vae {opened.path} holds no autoencoder: no config.json, and no vae/config.json")


def find_tiny(checkpoint: ImageCheckpoint) -> Part | None:
    """Return the tiny autoencoder that reads the latents of a checkpoint, if a whole one is in the hub's cache."""
    name = checkpoint.family.tiny
    folder = None if name is None else hub_cache.snapshot(hub_cache.HubId(name))
    if name is None or folder is None or not is_whole(folder):
        return None
    return open_checkpoint(Source(name, folder, "hub")).parts.get("")


def with_classifier(checkpoint: ImageCheckpoint, source: Source, *, allow_pickle: bool = False) -> ImageCheckpoint:
    """Return the checkpoint with a part "classifier": a file of guided-diffusion, or a folder with config and weights.

    Raise GencliError for what is no such classifier, and for one that cannot judge this checkpoint's pictures.
    """
    part, labels = _classifier(source, allow_pickle)
    path, names = source.path, read_names(labels)
    config = {key: value for key, value in part.config.items() if key != "id2label"}
    network = checkpoint.configs[checkpoint.family.network]
    if checkpoint.family.autoencoder is not None or network.get("in_channels", 3) != config.get("in_channels", 3):
        raise GencliError(
            f"{path} judges images in pixels, of {config.get('in_channels', 3)} channels, and {checkpoint.name} "
            "draws others",
            "classifiers are for models such as guided-diffusion's",
        )
    known, told = classes_of(config, names), checkpoint.network_classes
    if known is not None and told is not None and known.count != told.count:
        raise GencliError(f"{path} tells {known.count} classes apart, and {checkpoint.name} is told {told.count}")
    return dataclasses.replace(checkpoint.with_part("classifier", part, config), labels=checkpoint.labels or names)


def _classifier(source: Source, allow_pickle: bool) -> tuple[Part, object]:
    """A classifier, and its `id2label`. Raises GencliError for what is none."""
    opened = open_checkpoint(source, allow_pickle=allow_pickle)
    path = opened.path
    if opened.contents.is_file:
        if opened.problem is not None:
            raise opened.problem
        if "classifier" not in opened.parts:
            known = opened.format in NETWORKS
            what = f"it is a {opened.title}" if known else "its tensors are none of guided-diffusion's"
            raise GencliError(f"{path} is not a classifier of noisy images: {what}")
        return opened.parts["classifier"], opened.labels
    part = opened.only_part("a classifier")
    if part.config.get("_class_name") != CLASSIFIER:
        found = part.config.get("_class_name") or part.config.get("model_type")
        raise GencliError(f"{path} is not a classifier of noisy images but a {found!s:.40}")
    return part, part.config.get("id2label")
