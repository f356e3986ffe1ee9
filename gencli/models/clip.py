"""CLIP (Radford et al. 2021, arXiv 2103.00020): texts and pictures as vectors of one space, near where they fit.

Attributes are named as the checkpoint names them. B: batch, C: hidden_size of a tower, E: projection_dim, P: patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, Layout, check_ints, read_config
from gencli.models.clip_text import CLIPEncoder, CLIPTextConfig, CLIPTextModel, check_tower
from gencli.models.module import BaseModel

# transformers 4 wrote its settings for any model into the config of each tower; these change nothing in a CLIP.
LEGACY = [("add_cross_attention", False), ("tie_encoder_decoder", False), ("tie_word_embeddings", True)]


@dataclass(frozen=True)
class CLIPVisionConfig:
    """`vision_config` of a CLIP's config.json; defaults are those of transformers' class."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> CLIPVisionConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        config = read_config(cls, raw, inert=TRANSFORMERS_INERT | {"projection_dim"})
        check_tower(config)
        check_ints(config, {"image_size": 4096, "patch_size": 4096})
        if config.num_channels != 3:
            raise GencliError(f"config.json: num_channels = {config.num_channels!r:.80} is not supported, only 3")
        if config.patch_size > config.image_size:
            raise GencliError(
                f"config.json: patch_size = {config.patch_size} is more than image_size = {config.image_size}"
            )
        if config.patches > 2**16:
            raise GencliError(f"config.json: {config.patches} patches of a picture are too many")
        return config

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CLIPConfig:
    """config.json of a whole CLIP."""

    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> CLIPConfig:
        """Raises GencliError for keys that change the mathematics and are not supported, and for impossible sizes."""
        towers: dict[str, Any] = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
        parsed = {name: _tower(raw, name, cls_) for name, cls_ in towers.items()}
        inert = TRANSFORMERS_INERT | {"logit_scale_init_value", *(f"{name}_dict" for name in towers)}
        config = read_config(cls, {**raw, **parsed}, inert=inert)
        check_ints(config, {"projection_dim": 2**14})
        return config


def _tower(raw: Mapping[str, Any], name: str, cls: Any) -> Any:
    """The config of a tower. As in transformers, a `…_config_dict` of files of the first years wins over `…_config`,
    and fills up what it leaves out with the class's defaults."""
    found, old = raw.get(name), raw.get(f"{name}_dict")
    for value in (found, old):
        if value is not None and not isinstance(value, dict):
            raise GencliError(f"config.json: {name} is no JSON object")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)} if old else {}
    values = {**(found or {}), **defaults, **(old or {})}
    values = {key: value for key, value in values.items() if (key, value) not in LEGACY and key != "architectures"}
    try:
        return cls.from_dict(values)
    except GencliError as error:
        raise GencliError(error.message.replace("config.json", f"config.json: {name}", 1), error.hint) from None


class CLIPVisionEmbeddings(nn.Module):
    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        size = config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, size, stride=size, bias=False)
        self.position_embedding = nn.Embedding(config.patches + 1, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 1 + P, C): the class's place, then the patches row by row."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class CLIPVisionModel(nn.Module):
    """The tower for pictures, a Vision Transformer (Dosovitskiy et al. 2020)."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # the checkpoint's spelling
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) → what the class's place has gathered, (B, C)."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        return self.post_layernorm(self.encoder(x)[-1][:, 0])


class CLIPModel(BaseModel):
    """Both towers with their projections. `logit_scale`: the log of what cosines are multiplied by to be logits."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text_model = CLIPTextModel(config.text_config)
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_texts(self, ids: Tensor) -> Tensor:
        """Token ids (B, T), each text ended by its end token → vectors (B, E) of length 1."""
        return F.normalize(self.text_projection(self.text_model(ids).pooled), dim=-1)

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, image_size, image_size) → vectors (B, E) of length 1."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)


LAYOUT = Layout(drops=(r"(text|vision)_model\.embeddings\.position_ids",))  # 0, 1, 2, …
Config, Model = CLIPConfig, CLIPModel
