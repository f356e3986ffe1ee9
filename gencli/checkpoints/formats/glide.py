"""Files of openai/glide-text2im: a UNet of guided-diffusion's with its own text transformer, base or upsampler, each
also in a form that paints by a mask.

Shapes tell all but the size of images, which is the published one, and the heads, which are 64 wide. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gencli.checkpoints import hub_cache
from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints
from gencli.checkpoints.formats.guided_diffusion import encoder_config, scheduler_config
from gencli.checkpoints.formats.renaming import Renamed, numbered, one_network, sizes
from gencli.checkpoints.tensors import Piece
from gencli.errors import GencliError
from gencli.json_files import read_json

if TYPE_CHECKING:
    from gencli.tokens import Tokenizer

TEXT = (
    "token_embedding.", "positional_embedding", "padding_embedding", "transformer.", "final_ln.", "transformer_proj.",
)  # fmt: skip
MARKS = {"token_embedding.weight", "padding_embedding", "input_blocks.0.0.weight", "transformer_proj.weight"}
VOCABULARY, SIZE = "openai-community/gpt2", 50257
FILES = ("tokenizer.json", "merges.txt")
SAMPLE, SAMPLE_IDS = "hello world", [31373, 995]  # by that vocabulary, and hardly any other of its size


class Kind(NamedTuple):
    title: str
    pipeline: str  # our own name: these files have no model_index.json
    image_size: int
    noise_schedule: str
    spacing: str


KINDS = {  # channels that the UNet reads → what it is
    3: Kind("base model of GLIDE", "GlidePipeline", 64, "cosine", "linspace"),
    7: Kind("inpainting model of GLIDE", "GlideInpaintPipeline", 64, "cosine", "linspace"),
    6: Kind("upsampler of GLIDE", "GlideUpsamplePipeline", 256, "linear", "fast27"),
    10: Kind("inpainting upsampler of GLIDE", "GlideInpaintUpsamplePipeline", 256, "linear", "fast27"),
}


def is_glide(contents: Contents) -> bool:
    """Return whether the names are those of a UNet of guided-diffusion and GLIDE's text transformer."""
    return contents.shapes.keys() >= MARKS


def read_glide(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a file of GLIDE; its words are GPT-2's, beside it or in the hub's cache.

    Raise GencliError for tensors that are missing or misshapen.
    """
    shapes = contents.shapes
    channels = sizes(shapes, "input_blocks.0.0.weight", 4)[1]
    if (kind := KINDS.get(channels)) is None:
        raise GencliError(f"its UNet reads {channels} channels, and GLIDE's read {', '.join(map(str, KINDS))}")
    vocabulary, width = sizes(shapes, "token_embedding.weight", 2)
    text: dict[str, object] = {
        "_class_name": "GlideTextModel",
        "num_layers": numbered(shapes, "transformer.resblocks"),
        "projection_dim": sizes(shapes, "transformer_proj.weight", 2)[0],
        "text_ctx": sizes(shapes, "padding_embedding", 2)[0],
        "vocab_size": vocabulary,
        "width": width,
    }
    flags = {"image_size": kind.image_size, "num_head_channels": 64, "noise_schedule": kind.noise_schedule}
    unet = encoder_config(shapes, flags) | {
        "_class_name": "UNetModel",
        "encoder_channels": width,
        "out_channels": sizes(shapes, "out.2.weight", 4)[0],
    }
    if unet["out_channels"] != 6:
        raise GencliError(f"its UNet makes {unet['out_channels']} channels, and GLIDE's make 6")
    pieces = {name: Piece(name) for name in shapes}
    texts = {name: piece for name, piece in pieces.items() if name.startswith(TEXT)}
    rest = {name: piece for name, piece in pieces.items() if name not in texts}
    parts = {
        "unet": Renamed(unet, rest).part(contents, "unet"),
        "text_encoder": Renamed(text, texts).part(contents, "text_encoder"),
    }
    scheduler = scheduler_config(unet, flags) | {"timestep_spacing": kind.spacing, "variance_type": "learned_range"}
    found = one_network(contents, kind.title, kind.pipeline, parts, scheduler)
    return dataclasses.replace(found, tokenizers={"tokenizer": partial(_tokenizer, contents)})


def _tokenizer(contents: Contents) -> Tokenizer:
    """GPT-2's tokenizer, beside the file or of any model in the hub's cache that has it. Raises GencliError when it is
    nowhere on this machine."""
    from gencli.tokens import load_tokenizer

    known = [hub_cache.snapshot(hub_cache.HubId(name)) for name in (VOCABULARY, "gpt2")]
    for folder in (contents.folder, *(one for one in known if one is not None)):
        if any((folder / file).is_file() for file in FILES):
            return load_tokenizer(folder, contents.read_json)
    for found in hub_cache.snapshots():  # GPT-2 medium, DistilGPT-2, GPT-Neo and others have the same one
        if any((found.folder / file).is_file() for file in FILES) and _says(found.folder, "vocab_size") == SIZE:
            with contextlib.suppress(GencliError):
                tokenizer = load_tokenizer(found.folder, contents.read_json)
                if tokenizer.encode(SAMPLE, add_special_tokens=False) == SAMPLE_IDS:
                    return tokenizer
    raise GencliError(
        f"{contents.path} has no vocabulary, which is GPT-2's",
        f"`gencli models pull {VOCABULARY}` fetches it; or put vocab.json and merges.txt of any GPT-2 beside the file",
    )


def _says(folder: Path, key: str) -> object:
    """What the config.json of a folder has under a key; None where there is none that can be read."""
    with contextlib.suppress(GencliError):
        return read_json(folder / "config.json").get(key)
    return None
