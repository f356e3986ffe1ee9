"""A whole Stable Diffusion in one .safetensors file → what a folder in diffusers' layout would hold.

Its header says what it is (see `original.families`), and tables say what its tensors are called in a folder. Nothing
is read but the header until a part is opened, and nothing is copied then. No torch before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli.checkpoints.layout import PICKLE_HINT, SAFETENSORS, find_pickles, some
from gencli.checkpoints.original.families import FAMILIES, PIPELINES, UNET, Family, left_out, recognise
from gencli.checkpoints.original.rows import Part, Shapes
from gencli.checkpoints.original.schedule import SCHEDULES, prediction_of, scheduler_config
from gencli.checkpoints.original.text import read_clip, read_open_clip
from gencli.checkpoints.original.unet import read_unet
from gencli.checkpoints.original.vae import read_vae
from gencli.checkpoints.tensors import Piece, RenamedTensors, TensorFile, Tensors
from gencli.checkpoints.weights import open_file
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.tokens import Tokenizer

BARE = ("vocab.json", "merges.txt")
NAMING = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # where a padding token may be named
# What a file may lack and still be told, and what helps
MISSING = {
    "vae": ("no autoencoder", "--vae ID|FILE names one"),
    "text_encoder": ("no first text encoder", None),
}


@dataclass(frozen=True)
class SingleFile:
    """What a file holds. family: a key of FAMILIES. pipeline: what model_index.json would name. parts: its models, by
    the names of their folders. scheduler: scheduler_config.json. notes: what in the file goes unused."""

    file: TensorFile
    family: str
    pipeline: str
    parts: Mapping[str, Part]
    scheduler: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return FAMILIES[self.family].title

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """Part → its config.json, and the scheduler's."""
        return {**{name: part.config for name, part in self.parts.items()}, "scheduler": self.scheduler}

    @property
    def tokenizers(self) -> dict[str, str]:
        """Part → its padding token: CLIP's own is the end of the text, OpenCLIP pads with id 0."""
        pads = {"sd1": ["<|endoftext|>"], "sd2": ["!"], "sdxl": ["<|endoftext|>", "!"]}[self.family]
        return dict(zip(("tokenizer", "tokenizer_2"), pads, strict=False))

    def tokenizer_folder(self, part: str) -> Path | None:
        """Where a tokenizer lies beside the file: in a folder called as the part is, or its two files bare."""
        beside = self.file.path.parent
        if (beside / part).is_dir():
            return beside / part
        return beside if all((beside / name).is_file() for name in BARE) else None

    def tokenizer(self, part: str = "tokenizer") -> Tokenizer:
        """The tokenizer beside the file, else CLIP's own. Raises GencliError for a broken one, or of another size."""
        from gencli.tokens import load_clip_tokenizer, load_tokenizer

        pad = self.tokenizers[part]
        folder = self.tokenizer_folder(part)
        if folder is None:
            encoder = self.parts[part.replace("tokenizer", "text_encoder")]
            found = load_clip_tokenizer(pad)
            if encoder.config["vocab_size"] < found.vocab_size:
                raise GencliError(
                    f"{self.file.path}: its text encoder knows {encoder.config['vocab_size']} tokens, and CLIP's "
                    f"vocabulary has {found.vocab_size}",
                    f"its own tokenizer can lie beside it, in a folder called {part}",
                )
            return found
        found = load_tokenizer(folder)
        if any((folder / name).is_file() for name in NAMING):
            return found
        return dataclasses.replace(found, pad_id=found.backend.token_to_id(pad))

    def sources(self, part: str) -> set[str]:
        """Names in the file of the tensors that make up a part."""
        prefix = FAMILIES[self.family].parts[part]
        return {prefix + piece.source for piece in self.parts[part].pieces.values()}

    def open(self, part: str) -> tuple[Mapping[str, Any], Tensors]:
        """A part's config, and its tensors by their names in a folder, memory-mapped. Raises GencliError."""
        found = self.parts[part]
        prefix = FAMILIES[self.family].parts[part]
        pieces = {name: Piece(prefix + piece.source, piece.transform) for name, piece in found.pieces.items()}
        return found.config, RenamedTensors(self.file, pieces)


def is_original(path: Path, *, allow_pickle: bool = False) -> bool:
    """Whether a file has a UNet in the original layout, whatever else is in it. Raises GencliError for a broken one."""
    if find_pickles([path.name]):
        return allow_pickle and any(name.startswith(UNET) for name in open_file(path).shapes)
    return path.suffix == SAFETENSORS and any(name.startswith(UNET) for name in open_file(path).shapes)


def open_single_file(
    path: Path,
    *,
    allow_pickle: bool = False,
    prediction: str | None = None,
    betas: str | None = None,
    other_vae: bool = False,
) -> SingleFile:
    """Read what a file is. prediction, betas: what the user says of it (`prediction_type`, `beta_schedule`).
    allow_pickle: a `.ckpt` is opened for its tensors, and for nothing else. other_vae: another autoencoder will take
    the place of its own, which need not be there; of one that is not, `parts` has the config alone.

    Raises GencliError, in one line, for a broken file, for one whose keys fit no family or two, for parts that are
    missing or do not fit each other, for tensors that no table knows, and for SD 2 without a `prediction`.
    """
    if find_pickles([path.name]) and not allow_pickle:
        raise GencliError(f"{path} is a pickle, not a .safetensors file", PICKLE_HINT)
    file = open_file(path)
    try:
        return _read(file, prediction, betas, other_vae)
    except GencliError as error:
        raise GencliError(f"{path}: {error.message}", error.hint) from None


def _read(file: TensorFile, prediction: str | None, betas: str | None, other_vae: bool) -> SingleFile:
    key = recognise(file.shapes)
    family = FAMILIES[key]
    split, unknown, notes = _split(file.shapes, family)
    bare = [name for name in family.parts if not split[name] and not (name == "vae" and other_vae)]
    if bare:
        what, hint = MISSING.get(bare[0], (f"no {bare[0]}", None))
        raise GencliError(f"it is a {family.title} with {what} in it ({family.parts[bare[0]]}*)", hint)
    predicts = prediction_of(file, key, prediction)
    parts: dict[str, Part] = {}
    for name, read in _readers(key, family, predicts).items():
        if not split[name]:
            parts[name] = Part(_of_missing_vae(family, parts["unet"].config["out_channels"]))
            continue
        parts[name], left = read(split[name])
        unknown += [family.parts[name] + one for one in left]
    if unknown:
        raise GencliError(f"it has tensors that a {family.title} has not: {some(sorted(unknown))}")
    _check(key, family, file.shapes, parts)
    scheduler = scheduler_config(file, key, predicts, betas, _alphas_cumprod(file))
    channels = parts["unet"].config["in_channels"]
    pipeline = family.pipeline + PIPELINES.get(channels, "Pipeline")
    return SingleFile(file, key, pipeline, parts, scheduler, tuple(notes))


def _of_missing_vae(family: Family, channels: int) -> dict[str, Any]:
    """What is known of an autoencoder that is not there."""
    sizes = {"latent_channels": channels, "norm_num_groups": 32, "scaling_factor": family.scaling_factor}
    return {"_class_name": "AutoencoderKL", **sizes}


def _alphas_cumprod(file: TensorFile) -> Sequence[float] | None:
    """The file's own ᾱ, where it has any."""
    name = next((name for name in SCHEDULES if name in file.shapes), None)
    if name is None or len(file.shapes[name]) != 1 or file.shapes[name][0] > 2**16:
        return None
    return file.numbers(name)


def _split(shapes: Shapes, family: Family) -> tuple[dict[str, dict[str, tuple[int, ...]]], list[str], list[str]]:
    """Tensors of each part without its prefix; names that are in none; and notes on what is left out."""
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


def _readers(key: str, family: Family, prediction: str) -> dict[str, Any]:
    """Part → what reads it from its shapes."""
    size = family.size.get(prediction, family.size["epsilon"])
    told: dict[str, Any] = {"sample_size": size}
    if key == "sdxl":
        told |= {"addition_embed_type": "text_time"}
    vae = partial(read_vae, size=8 * size, scaling_factor=family.scaling_factor)
    readers: dict[str, Any] = {"unet": partial(read_unet, config=told, head=family.head), "vae": vae}
    if key == "sd2":
        return readers | {"text_encoder": partial(read_open_clip, sd2=True)}
    readers["text_encoder"] = read_clip
    return readers | ({"text_encoder_2": partial(read_open_clip, sd2=False)} if key == "sdxl" else {})


def _check(key: str, family: Family, shapes: Shapes, parts: Mapping[str, Part]) -> None:
    """The parts fit each other. Fills in what the UNet's config says of the text encoders. Raises GencliError."""
    unet = parts["unet"].config
    widths = [part.config["hidden_size"] for name, part in parts.items() if name.startswith("text_encoder")]
    if unet["cross_attention_dim"] != sum(widths):
        raise GencliError(
            f"its UNet reads texts that are {unet['cross_attention_dim']} wide, "
            f"and its text encoder{'s make' if len(widths) > 1 else ' makes'} {' + '.join(map(str, widths))}"
        )
    label = next((name for name in shapes if name.startswith(f"{family.parts['unet']}label_emb.")), None)
    if (label is not None) != (key == "sdxl"):
        seen = f"label_emb ({label}), which the UNet of a {family.title} has not" if label else "no label_emb"
        raise GencliError(f"it has {seen}", "a model that was made from one for another purpose is not supported")
    if key != "sdxl":
        return
    told = shapes.get(f"{family.parts['unet']}label_emb.0.0.weight", ())
    pooled = parts["text_encoder_2"].config["projection_dim"]
    # Six numbers (size, crop, target size) as waves, after the pooled text.
    if len(told) != 2 or told[1] <= pooled or (told[1] - pooled) % 6:
        raise GencliError(f"its label_emb.0.0.weight is {list(told)}, which does not fit a text of {pooled} numbers")
    unet["addition_time_embed_dim"] = (told[1] - pooled) // 6
    unet["projection_class_embeddings_input_dim"] = told[1]
