"""What a checkpoint is used for, in words, for a command that wants another kind."""

from __future__ import annotations

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.errors import GencliError
from gencli.models import ARCHITECTURES

ENCODER = "a model for images reads its prompts with it; alone it writes and draws nothing"
# Architecture → what such a model is, and a hint.
USES = {
    "clip": ("a CLIP model", "`gencli score -m {name}` compares images with texts"),
    **dict.fromkeys(("clip_text_model", "t5", "ldmbert", "GlideTextModel"), ("a text encoder", ENCODER)),
    "clip_vision_model": ("an encoder of images", ENCODER.replace("prompts", "images")),
    **dict.fromkeys(
        ("AutoencoderKL", "AutoencoderTiny", "AutoencoderKLFlux2", "AutoencoderKLQwenImage"),
        ("an autoencoder", "`gencli image --vae {name}` draws with it in the place of a model's own"),
    ),
    "VQModel": ("an autoencoder", "`gencli codes -m {name}` encodes images into its codes, and decodes them"),
    "ControlNetModel": ("a ControlNet", "`gencli image --control {name}` follows an image with it"),
    "EncoderUNetModel": ("a classifier", "`gencli image --classifier {name}` guides by it"),
    "PriorTransformer": ("a prior", "`gencli image --prior {name}` draws with it"),
}


def wrong_kind(checkpoint: Checkpoint, wanted: str) -> GencliError:
    """Return the error for a checkpoint that is no `wanted` model (text, image, CLIP): what it is, and what runs it."""
    name, family = checkpoint.name, checkpoint.family
    if checkpoint.kind == "other" and family and family not in ARCHITECTURES:
        return GencliError(
            f"{name} is not {_a(wanted)}: unknown architecture {family!r:.60}",
            f"`gencli models available --task {wanted}` lists well-known models",
        )
    what, hint = USES.get(family, ("one part of a model", None))
    if checkpoint.kind == "text":
        what, hint = "a text model", "`gencli text -m {name}` continues texts with it"
    elif checkpoint.kind == "image":
        what, hint = "an image model", "`gencli image -m {name}` draws with it"
    told = f"{name} is {what}{f' ({family:.40})' if family else ''}, not {_a(wanted)}"
    return GencliError(told, "; ".join([*([hint.format(name=name)] if hint else []), *checkpoint.notes]) or None)


def _a(wanted: str) -> str:
    return f"{'an' if wanted == 'image' else 'a'} {wanted} model"
