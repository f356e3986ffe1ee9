"""Janus's folders: transformers' layout (model_type janus), and DeepSeek's own (multi_modality) under its older names.

One set of tensors holds three models: a language model with what makes image tokens, their VQ autoencoder, and a tower
that reads images, which is left where it is. No torch before a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.formats.renaming import Renamed
from gencli.checkpoints.formats.vq import VQ_PART, read_vq
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import Piece, RenamedTensors
from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig

FAMILIES = ("janus", "multi_modality")
VQ = "model.vqmodel."
UNUSED = re.compile(
    r"model\.(vision_model|aligner)\..*|lm_head\.weight|vision_model\..*|aligner\..*|language_model\.lm_head\.weight"
    r"|model\.vqmodel\.quantize\.codebook_used"
)
# DeepSeek's names → transformers', tried in order; each may be followed by others
OLD_NAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^gen_vision_model\.", VQ),
        (r"^gen_embed\.", "model.generation_embeddings."),
        (r"^gen_aligner\.layers\.0\.", "model.generation_aligner.fc1."),
        (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
        (r"^gen_head\.vision_head\.", "model.generation_head.vision_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"(vqmodel\.encoder)\.conv_blocks\.", r"\1.down."),
        (r"(vqmodel\.decoder)\.conv_blocks\.", r"\1.up."),
        (r"\.res\.", ".block."),
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
    )
)
LATER_LAYER = re.compile(r"gen_aligner\.layers\.(\d+)\.(weight|bias)")  # every other one is an activation


@dataclass(frozen=True)
class VQConfig(BaseConfig):
    """vq_config of transformers' config.json; the shapes of its tensors say the rest."""

    INERT = TRANSFORMERS_INERT
    ONLY: ClassVar = {"double_latent": (False,), "hidden_act": ("gelu",)}

    projection_dim: int = 2048
    image_token_embed_dim: int = 2048
    num_hidden_layers: int = 2
    num_patches: int = 0
    embed_dim: int = 8
    num_embeddings: int = 16384
    latent_channels: int = 256
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2

    def check(self) -> None:
        """Sizes are held against the tensors when they are assigned."""


def is_janus(contents: Contents) -> bool:
    """Return whether a folder's config names one of the two."""
    try:
        return (
            not contents.is_file
            and contents.has("config.json")
            and contents.read_json("config.json").get("model_type") in FAMILIES
        )
    except GencliError:
        return False


def read_janus(contents: Contents, hints: Hints) -> Checkpoint:
    """Read what draws. Configs and tensors are read when they are used."""
    raw, found = contents.read_json("config.json"), _Parts(contents)
    path = contents.path
    parts = {
        "language_model": Part("language_model", "model", path, lambda: found.language_config, lambda: found.language),
        VQ_PART: Part(VQ_PART, "model", path, lambda: found.vq.config, lambda: found.vq_tensors),
    }
    notes = ("its side that reads images and answers is not supported",)
    return Checkpoint(contents, "image", str(raw["model_type"]), parts, own_folder=True, notes=notes)


class _Parts:
    """The parts of a folder, each read when it is first asked for."""

    def __init__(self, contents: Contents):
        self.contents, self.raw = contents, contents.read_json("config.json")

    @cached_property
    def names(self) -> dict[str, str]:
        """Return the names of transformers → those in the files, without what goes unused."""
        return {new: name for name in self._tensors if not UNUSED.fullmatch(new := new_name(name))}

    @cached_property
    def _tensors(self) -> Any:
        return self.contents.open_tensors(self.contents.path)

    @cached_property
    def language(self) -> RenamedTensors:
        return RenamedTensors(
            self._tensors, {new: Piece(name) for new, name in self.names.items() if not new.startswith(VQ)}
        )

    @cached_property
    def vq(self) -> Renamed:
        shapes = {
            new.removeprefix(VQ): self._tensors.shape(name) for new, name in self.names.items() if new.startswith(VQ)
        }
        found, unknown = read_vq(shapes, from_latents=True, unit_codebook=True)
        if unknown:
            raise GencliError(f"{self.contents.path}: its vqmodel has tensors that none has: {some(sorted(unknown))}")
        return found

    @cached_property
    def vq_tensors(self) -> RenamedTensors:
        pieces = self.vq.pieces
        return RenamedTensors(
            self._tensors, {new: Piece(self.names[VQ + one.source], one.transform) for new, one in pieces.items()}
        )

    @cached_property
    def language_config(self) -> dict[str, Any]:
        """Return the config of the language model with its image tokens. Raise GencliError for what is at odds."""
        where = self.contents.path / "config.json"
        try:
            text, vq = _from_old(self.raw) if self.raw["model_type"] == "multi_modality" else _from_new(self.raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise GencliError(f"{where} is none of a Janus: {str(error)[:80]}") from None
        if text.get("model_type", "llama") != "llama":
            raise GencliError(f"{where}: a language model {text['model_type']!r:.40} is not supported")
        width = text.get("hidden_size", 4096)
        if not vq.projection_dim == vq.image_token_embed_dim == width:
            raise GencliError(
                f"{where}: projection_dim = {vq.projection_dim!r:.40}, image_token_embed_dim = "
                f"{vq.image_token_embed_dim!r:.40} and hidden_size = {width!r:.40} must be equal"
            )
        own = {"num_embeddings": vq.num_embeddings, "embed_dim": vq.embed_dim, "aligner_layers": vq.num_hidden_layers}
        # the head over words draws nothing, and whether it is tied to them neither
        return {**text, **own, "model_type": "janus", "tie_word_embeddings": False}


def new_name(name: str) -> str:
    """Return transformers' name of a tensor."""
    if (found := LATER_LAYER.fullmatch(name)) and (number := int(found[1])):
        return f"model.generation_aligner.hidden_layers.{number // 2 - 1}.{found[2]}"
    for pattern, new in OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def image_size(raw: Mapping[str, Any]) -> Any:
    """Return how many pixels a side the images have that a config is of, whatever it says."""
    vision = raw.get("vision_config")
    vision = vision if isinstance(vision, Mapping) else {}
    params = vision.get("params")
    return (params if isinstance(params, Mapping) else vision).get("image_size", 384)


def _from_new(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], VQConfig]:
    return raw["text_config"], VQConfig.from_dict(raw.get("vq_config") or {})


def _from_old(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], VQConfig]:
    """Take from DeepSeek's config what is said there in other words. Raise GencliError for other wiring."""
    aligner, head, vision = (raw[f"gen_{name}_config"]["params"] for name in ("aligner", "head", "vision"))
    for name, known in (("aligner", "MlpProjector"), ("head", "vision_head"), ("vision", "VQ-16")):
        if (kind := raw[f"gen_{name}_config"].get("cls")) != known:
            raise GencliError(f"config.json: gen_{name}_config: cls = {kind!r:.40} is not supported", f"{known} is")
    if (kind := aligner.get("projector_type")) != "mlp_gelu":
        raise GencliError(f"config.json: projector_type = {kind!r:.40} is not supported", "mlp_gelu is")
    return raw["language_config"], VQConfig(
        projection_dim=head["image_token_embed"],
        image_token_embed_dim=head["n_embed"],
        num_hidden_layers=aligner.get("depth", 1),
        embed_dim=vision["n_embed"],
        num_embeddings=vision["image_token_size"],
    )
