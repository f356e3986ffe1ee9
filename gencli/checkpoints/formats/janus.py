"""Janus's folders: transformers' layout (model_type janus), and DeepSeek's own (multi_modality) under its older names.

One set of tensors holds three models: a language model with what makes image tokens, their VQ autoencoder, and the
same language model with a tower that reads images (`reader_of`). No torch before a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar, cast

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.formats.renaming import THIRDS, Renamed, numbered, rename, sizes
from gencli.checkpoints.formats.vq import VQ_PART, read_vq
from gencli.checkpoints.layout import some
from gencli.checkpoints.tensors import Piece, RenamedTensors, Tensors
from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, Rename
from gencli.options import make

V = TypeVar("V")
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
READER = "janus_reader"
KIND, TIMM = r"(weight|bias)", r"vision_model\.vision_tower"
READER_ROWS = (  # of both layouts: names in the files → those of the module
    Rename(r"model\.language_model\.(.*)", r"model.\1"),
    Rename(r"model\.((?:vision_model|aligner)\..*)", r"\1"),
    Rename(r"(lm_head\.weight)", r"\1"),
    Rename(r"language_model\.((?:model|lm_head)\..*)", r"\1"),
    Rename(rf"aligner\.layers\.0\.{KIND}", r"aligner.fc1.\1"),
    *(Rename(rf"aligner\.layers\.{2 * i + 2}\.{KIND}", rf"aligner.hidden_layers.{i}.\1") for i in range(8)),
    Rename(rf"{TIMM}\.patch_embed\.proj\.{KIND}", r"vision_model.embeddings.patch_embedding.\1"),
    Rename(rf"{TIMM}\.pos_embed", "vision_model.embeddings.position_embedding.weight", lambda one: one.flatten(0, 1)),
    Rename(rf"{TIMM}\.norm\.{KIND}", r"vision_model.post_layernorm.\1"),
    *(
        Rename(rf"{TIMM}\.blocks\.(\d+)\.{old}\.{KIND}", rf"vision_model.encoder.layers.\1.{new}.\2", transform)
        for old, new, transform in (
            ("norm1", "layer_norm1", None),
            ("norm2", "layer_norm2", None),
            ("mlp.fc1", "mlp.fc1", None),
            ("mlp.fc2", "mlp.fc2", None),
            ("attn.proj", "self_attn.projection_layer", None),
            *(("attn.qkv", f"self_attn.{x}_proj", THIRDS[x]) for x in "qkv"),
        )
    ),
)
HEADS = {"siglip_large_patch16_384": 16, "siglip_large_patch16_256": 16, "siglip_so400m_patch14_384": 16}
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
    return Checkpoint(contents, "image", str(raw["model_type"]), parts, own_folder=True)


def reader_of(contents: Contents) -> Part:
    """Return what reads images and answers. Its config and tensors are read when they are used."""
    found = _Parts(contents)
    return Part(READER, "model", contents.path, lambda: found.reader_config, lambda: found.reader)


class _Parts:
    """The parts of a folder, each read when it is first asked for."""

    def __init__(self, contents: Contents):
        self.contents, self.raw = contents, contents.read_json("config.json")

    @cached_property
    def names(self) -> dict[str, str]:
        """Return the names of transformers → those in the files, without what goes unused."""
        return {new: name for name in self._tensors if not UNUSED.fullmatch(new := new_name(name))}

    @cached_property
    def _tensors(self) -> Tensors:
        return self.contents.open_tensors(self.contents.path)

    @cached_property
    def language(self) -> RenamedTensors:
        return RenamedTensors(
            self._tensors, {new: Piece(name) for new, name in self.names.items() if not new.startswith(VQ)}
        )

    @cached_property
    def reader(self) -> RenamedTensors:
        shapes = {name: self._tensors.shape(name) for name in self._tensors}
        return RenamedTensors(self._tensors, rename(shapes, READER_ROWS)[0])

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
    def language_config(self) -> dict[str, object]:
        """Return the config of the language model with its image tokens. Raise GencliError for what is at odds."""
        where = self.contents.path / "config.json"
        text, vq = self._said(lambda: _from_old(self.raw) if self.is_old else _from_new(self.raw))
        width = text.get("hidden_size", 4096)
        if not vq.projection_dim == vq.image_token_embed_dim == width:
            raise GencliError(
                f"{where}: projection_dim = {vq.projection_dim!r:.40}, image_token_embed_dim = "
                f"{vq.image_token_embed_dim!r:.40} and hidden_size = {width!r:.40} must be equal"
            )
        own = {"num_embeddings": vq.num_embeddings, "embed_dim": vq.embed_dim, "aligner_layers": vq.num_hidden_layers}
        # the head over words draws nothing, and whether it is tied to them neither
        return {**text, **own, "model_type": "janus", "tie_word_embeddings": False}

    @property
    def is_old(self) -> bool:
        """Whether this is DeepSeek's layout."""
        return self.raw["model_type"] == "multi_modality"

    def _said(self, read: Callable[[], tuple[Mapping[str, object], V]]) -> tuple[Mapping[str, object], V]:
        """Return what `read` finds: the config of the language model, and another. Raise GencliError for what is no
        config of a Janus, and for another language model."""
        where = self.contents.path / "config.json"
        try:
            text, other = read()
            kind = text.get("model_type", "llama")
        except (KeyError, TypeError, AttributeError) as error:
            raise GencliError(f"{where} does not fit a Janus: {str(error)[:80]}") from None
        if kind != "llama":
            raise GencliError(f"{where}: a language model {kind!r:.40} is not supported")
        return text, other

    @cached_property
    def reader_config(self) -> dict[str, object]:
        """Return the config of what reads images. Raise GencliError for what is at odds."""
        key = "language_config" if self.is_old else "text_config"
        text, vision = self._said(lambda: (_table(self.raw[key]), _table(self.raw["vision_config"])))
        tied = text.get("tie_word_embeddings", False) if self.is_old else self.raw.get("tie_word_embeddings", True)
        vision = self._old_vision(vision) if self.is_old else vision
        return {**text, "vision_config": vision, "model_type": READER, "tie_word_embeddings": tied}

    def _old_vision(self, raw: Mapping[str, object]) -> dict[str, object]:
        """Return the tower's config as transformers has it: DeepSeek's names the tower, and its tensors say the rest.
        Raise GencliError for an unknown one."""
        params = raw.get("params")
        name = params.get("model_name") if isinstance(params, Mapping) else None
        if not isinstance(name, str) or name not in HEADS:
            raise GencliError(f"config.json: a tower {name!r:.60} is not supported", f"gencli knows {', '.join(HEADS)}")
        shapes = {new: self.reader.shape(new) for new in self.reader}
        patches = sizes(shapes, "vision_model.embeddings.patch_embedding.weight", 4)
        hidden, width = sizes(shapes, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)
        return {
            "hidden_size": width, "intermediate_size": hidden, "num_attention_heads": HEADS[name],
            "num_hidden_layers": numbered(shapes, "vision_model.encoder.layers"), "patch_size": patches[-1],
            "image_size": image_size(self.raw), "depth": 1 + numbered(shapes, "aligner.hidden_layers"),
            "projection_dim": sizes(shapes, "aligner.fc1.weight", 2)[0],
        }  # fmt: skip


def _table(value: object) -> Mapping[str, object]:
    """Return a JSON object. Raise TypeError for what is none."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} is no JSON object")
    return value


def new_name(name: str) -> str:
    """Return transformers' name of a tensor."""
    if (found := LATER_LAYER.fullmatch(name)) and (number := int(found[1])):
        return f"model.generation_aligner.hidden_layers.{number // 2 - 1}.{found[2]}"
    for pattern, new in OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def image_size(raw: Mapping[str, object]) -> object:
    """Return how many pixels a side the images have that a config is of, whatever it says."""
    vision = raw.get("vision_config")
    vision = vision if isinstance(vision, Mapping) else {}
    params = vision.get("params")
    return (params if isinstance(params, Mapping) else vision).get("image_size", 384)


def _loose(value: object) -> Mapping[str, object]:
    """Return what should be a JSON object. Of another kind, it raises when it is read, which is told there."""
    return cast("Mapping[str, object]", value)


def _from_new(raw: Mapping[str, object]) -> tuple[Mapping[str, object], VQConfig]:
    return _loose(raw["text_config"]), VQConfig.from_dict(_loose(raw.get("vq_config") or {}))


def _from_old(raw: Mapping[str, object]) -> tuple[Mapping[str, object], VQConfig]:
    """Take from DeepSeek's config what is said there in other words. Raise GencliError for other wiring."""
    parts = (_loose(raw[f"gen_{name}_config"]) for name in ("aligner", "head", "vision"))
    aligner, head, vision = (_loose(part["params"]) for part in parts)
    for name, known in (("aligner", "MlpProjector"), ("head", "vision_head"), ("vision", "VQ-16")):
        if (kind := _loose(raw[f"gen_{name}_config"]).get("cls")) != known:
            raise GencliError(f"config.json: gen_{name}_config: cls = {kind!r:.40} is not supported", f"{known} is")
    if (kind := aligner.get("projector_type")) != "mlp_gelu":
        raise GencliError(f"config.json: projector_type = {kind!r:.40} is not supported", "mlp_gelu is")
    sizes = {
        "projection_dim": head["image_token_embed"],
        "image_token_embed_dim": head["n_embed"],
        "num_hidden_layers": aligner.get("depth", 1),
        "embed_dim": vision["n_embed"],
        "num_embeddings": vision["image_token_size"],
    }
    return _loose(raw["language_config"]), make(VQConfig, sizes)
