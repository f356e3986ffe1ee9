"""A whole Stable Diffusion in one file, in the original layout → what a folder in diffusers' layout would hold.

Its keys and shapes say what it is (see `stable_diffusion_keys`), and tables what its tensors are called in a folder.
Nothing is read but the header until a part is opened, and nothing is copied then. No torch before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part, Shapes
from gencli.checkpoints.formats.autoencoder import read_vae
from gencli.checkpoints.formats.clip_text import read_clip, read_open_clip
from gencli.checkpoints.formats.renaming import Renamed
from gencli.checkpoints.formats.stable_diffusion_keys import FAMILIES, PIPELINES, UNET, Family, left_out, recognise
from gencli.checkpoints.formats.stable_diffusion_schedule import SCHEDULES, prediction_of, scheduler_config
from gencli.checkpoints.formats.stable_diffusion_unet import read_unet
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.tokens import Tokenizer

BARE = ("vocab.json", "merges.txt")
NAMING = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # where a padding token may be named
START, END, FIRST = "<|startoftext|>", "<|endoftext|>", "!"
# Family → the padding tokens of its tokenizers: CLIP's own is the end of the text, OpenCLIP pads with id 0.
PADS = {
    "sd1": {"tokenizer": END},
    "sd2": {"tokenizer": FIRST},
    "sdxl": {"tokenizer": END, "tokenizer_2": FIRST},
    "refiner": {"tokenizer_2": FIRST},
}
# Numbers that SDXL reads beside the pooled text: size, crop and target size; the refiner a score instead of the last.
NUMBERS = {"sdxl": 6, "refiner": 5}
Reader = Callable[[Shapes], tuple[Renamed, list[str]]]
# What a file may lack and still be told, and what helps
MISSING = {"vae": ("no autoencoder", "--vae ID|FILE names one"), "text_encoder": ("no first text encoder", None)}


def is_stable_diffusion(contents: Contents) -> bool:
    """Return whether a file has a UNet in the original layout, whatever else is in it."""
    return any(name.startswith(UNET) for name in contents.shapes)


def read_stable_diffusion(contents: Contents, hints: Hints) -> Checkpoint:
    """Read what a file is. Without an autoencoder, where hints.other_vae says that one will come, the part "vae" has
    what is known of its config.

    Raise GencliError, in one line, for keys that fit no family or two, for parts that are missing or do not fit each
    other, for tensors that no table knows, and for SD 2 without a prediction.
    """
    file = contents.tensor_file
    key = recognise(file.shapes)
    family = FAMILIES[key]
    split, unknown, notes = _split(file.shapes, family)
    bare = [name for name in family.parts if not split[name] and not (name == "vae" and hints.other_vae)]
    if bare:
        what, hint = MISSING.get(bare[0], (f"no {bare[0]}", None))
        raise GencliError(f"it is a {family.title} with {what} in it ({family.parts[bare[0]]}*)", hint)
    predicts = prediction_of(file, key, hints.prediction)
    found: dict[str, Renamed] = {}
    for name, read in _readers(key, family, predicts).items():
        if not split[name]:
            found[name] = Renamed(_of_missing_vae(family, found["unet"].size("out_channels")))
            continue
        found[name], left = read(split[name])
        unknown += [family.parts[name] + one for one in left]
    if unknown:
        raise GencliError(f"it has tensors that a {family.title} has not: {some(sorted(unknown))}")
    _check(key, family, file.shapes, found)
    scheduler = _scheduler_beside(contents, hints)
    if scheduler is None:
        scheduler = scheduler_config(file, key, predicts, hints.betas, _alphas_cumprod(file), hints.zero_snr)
    parts = {name: one.part(contents, name, family.parts[name]) for name, one in found.items()}
    parts["scheduler"] = Part("scheduler", "scheduler", contents.path, lambda: scheduler)
    pipeline = family.pipeline + PIPELINES.get(found["unet"].size("in_channels"), "Pipeline")
    tokenizers = {
        name: partial(_tokenizer, contents, name, pad, parts[name.replace("tokenizer", "text_encoder")])
        for name, pad in PADS[key].items()
    }
    return Checkpoint(
        contents,
        "image",
        pipeline,
        parts,
        tokenizers,
        title=family.title,
        notes=tuple(notes),
        licence=licence if isinstance(licence := file.metadata.get("modelspec.license"), str) else None,
        index=family.index,
    )


def _scheduler_beside(contents: Contents, hints: Hints) -> dict[str, object] | None:
    """Return scheduler/scheduler_config.json beside a file, as its tokenizer may lie there, under what a user says."""
    file = "scheduler/scheduler_config.json"
    if not contents.has(file):
        return None
    said: dict[str, object] = {"prediction_type": hints.prediction, "beta_schedule": hints.betas}
    said["rescale_betas_zero_snr"] = hints.zero_snr
    return {**contents.read_json(file), **{key: value for key, value in said.items() if value is not None}}


def _tokenizer(contents: Contents, name: str, pad: str, encoder: Part) -> Tokenizer:
    """Return the tokenizer in a folder of its name beside the file, or bare beside it, else CLIP's own.

    Raise GencliError for a broken one, and for a text encoder that CLIP's own does not fit.
    """
    from gencli.tokens import load_clip_tokenizer, load_tokenizer

    folder = contents.folder / name
    if not folder.is_dir():
        folder = contents.folder
        if not _has_clip_vocabulary(contents):
            found = load_clip_tokenizer(pad)
            words = encoder.config["vocab_size"]
            if not isinstance(words, int) or words < found.vocab_size:
                raise GencliError(
                    f"{contents.path}: its text encoder knows {words} tokens, and CLIP's "
                    f"vocabulary has {found.vocab_size}",
                    f"its own tokenizer can lie beside it, in a folder called {name}",
                )
            return found
    found = load_tokenizer(folder, contents.read_json)
    if any((folder / file).is_file() for file in NAMING):
        return found
    return dataclasses.replace(found, pad_id=found.backend.token_to_id(pad))


def _has_clip_vocabulary(contents: Contents) -> bool:
    """Return whether the files beside a file are CLIP's: GPT-2, RoBERTa and others have files of the same names."""
    if not all(contents.has(file) for file in BARE):
        return False
    vocabulary = contents.read_json(BARE[0])
    return START in vocabulary and any(str(word).endswith("</w>") for word in vocabulary)


def _of_missing_vae(family: Family, channels: int) -> dict[str, object]:
    """Return what is known of an autoencoder that is not there."""
    sizes = {"latent_channels": channels, "norm_num_groups": 32, "scaling_factor": family.scaling_factor}
    return {"_class_name": "AutoencoderKL", **sizes}


def _alphas_cumprod(file: TensorFile) -> Sequence[float] | None:
    """Return the file's own ᾱ, if it has any."""
    name = next((name for name in SCHEDULES if name in file.shapes), None)
    if name is None or len(file.shapes[name]) != 1 or file.shapes[name][0] > 2**16:
        return None
    return file.numbers(name)


def _split(shapes: Shapes, family: Family) -> tuple[dict[str, dict[str, tuple[int, ...]]], list[str], list[str]]:
    """Return the tensors of each part without its prefix, the names that are in none, and notes on what is left out."""
    split: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in family.parts}
    unknown, notes = [], []
    for name, shape in shapes.items():
        part = next((part for part, prefix in family.parts.items() if name.startswith(prefix)), None)
        words = left_out(name)
        if words is None and part is None:
            unknown.append(name)
        elif words is None and part is not None:
            split[part][name.removeprefix(family.parts[part])] = shape
        elif words and words not in notes:
            notes.append(words)
    return split, unknown, notes


def _readers(key: str, family: Family, prediction: str) -> dict[str, Reader]:
    """Return part → the function that reads it from its shapes."""
    size = family.size.get(prediction, family.size["epsilon"])
    told: dict[str, object] = {"sample_size": size}
    if key in NUMBERS:
        told |= {"addition_embed_type": "text_time"}
    vae = partial(read_vae, size=8 * size, scaling_factor=family.scaling_factor)
    readers: dict[str, Reader] = {"unet": partial(read_unet, config=told, head=family.head), "vae": vae}
    if key == "sd2":
        return readers | {"text_encoder": partial(read_open_clip, sd2=True)}
    if key != "refiner":
        readers["text_encoder"] = read_clip
    if key in NUMBERS:
        readers["text_encoder_2"] = partial(read_open_clip, sd2=False)
    return readers


def _check(key: str, family: Family, shapes: Shapes, parts: Mapping[str, Renamed]) -> None:
    """Check that the parts fit, and add to the UNet's config what the text encoders tell. Raise GencliError."""
    unet = parts["unet"].config
    widths = [part.size("hidden_size") for name, part in parts.items() if name.startswith("text_encoder")]
    if unet["cross_attention_dim"] != sum(widths):
        raise GencliError(
            f"its UNet reads texts that are {unet['cross_attention_dim']} wide, "
            f"and its text encoder{'s make' if len(widths) > 1 else ' makes'} {' + '.join(map(str, widths))}"
        )
    label = next((name for name in shapes if name.startswith(f"{family.parts['unet']}label_emb.")), None)
    if (label is not None) != (key in NUMBERS):
        seen = f"label_emb ({label}), which the UNet of a {family.title} has not" if label else "no label_emb"
        raise GencliError(f"it has {seen}", "a model that was made from one for another purpose is not supported")
    if key not in NUMBERS:
        return
    told = shapes.get(f"{family.parts['unet']}label_emb.0.0.weight", ())
    pooled = parts["text_encoder_2"].size("projection_dim")
    # The numbers follow the pooled text, as waves.
    if len(told) != 2 or told[1] <= pooled or (told[1] - pooled) % NUMBERS[key]:
        raise GencliError(f"its label_emb.0.0.weight is {list(told)}, which does not fit a text of {pooled} numbers")
    unet["addition_time_embed_dim"] = (told[1] - pooled) // NUMBERS[key]
    unet["projection_class_embeddings_input_dim"] = told[1]
