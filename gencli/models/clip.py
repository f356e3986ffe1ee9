"""CLIP (Radford et al. 2021, arXiv 2103.00020): texts and images as vectors of one space.

Attributes are named as the checkpoint names them. B: batch, C: an encoder's hidden_size, E: projection_dim, P: patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models.base import TRANSFORMERS_INERT, BaseConfig, Layout, check_ints
from gencli.models.clip_text import CLIPEncoder, CLIPTextConfig, CLIPTextModel, check_encoder
from gencli.models.module import BaseModel

# transformers 4 wrote general keys into the config of each encoder; these change nothing in a CLIP.
LEGACY = [("add_cross_attention", False), ("tie_encoder_decoder", False), ("tie_word_embeddings", True)]


@dataclass(frozen=True)
class CLIPVisionConfig(BaseConfig):
    """`vision_config` of a CLIP's config.json; defaults are those of the class in transformers."""

    INERT = TRANSFORMERS_INERT | {"projection_dim"}

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def check(self) -> None:
        check_encoder(self)
        check_ints(self, {"image_size": 4096, "patch_size": 4096})
        if self.num_channels != 3:
            raise GencliError(f"config.json: num_channels = {self.num_channels!r:.80} is not supported, only 3")
        if self.patch_size > self.image_size:
            raise GencliError(
                f"config.json: patch_size = {self.patch_size} is more than image_size = {self.image_size}"
            )
        if self.patches > 2**16:
            raise GencliError(f"config.json: {self.patches} patches of an image are too many")

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


Encoder = TypeVar("Encoder", CLIPTextConfig, "CLIPVisionConfig")


@dataclass(frozen=True)
class CLIPConfig(BaseConfig):
    """config.json of a whole CLIP."""

    INERT = TRANSFORMERS_INERT | {"logit_scale_init_value", "text_config_dict", "vision_config_dict"}

    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    projection_dim: int = 512

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        text, vision = _encoder(raw, "text_config", CLIPTextConfig), _encoder(raw, "vision_config", CLIPVisionConfig)
        return {**raw, "text_config": text, "vision_config": vision}

    def check(self) -> None:
        check_ints(self, {"projection_dim": 2**14})


def _encoder(raw: Mapping[str, object], name: str, cls: type[Encoder]) -> Encoder:
    """Read the config of one encoder. As in transformers, the `…_config_dict` of early files wins over `…_config`, and
    the defaults of the class stand for what it leaves out."""
    found, old = raw.get(name) or {}, raw.get(f"{name}_dict") or {}
    if not isinstance(found, dict) or not isinstance(old, dict):
        raise GencliError(f"config.json: {name} is not JSON object")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)} if old else {}
    values = {**found, **defaults, **old}
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
        """Return (B, 1 + P, C) for images (B, 3, H, W): the class token, then the patches row by row."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class CLIPVisionModel(nn.Module):
    """The image encoder, a Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # as the checkpoint spells it
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the state of the class token (B, C) for images (B, 3, image_size, image_size)."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        return self.post_layernorm(self.encoder(x)[-1][:, 0])


class CLIPModel(BaseModel):
    """Both encoders with their projections. logit_scale: log of the factor that makes logits of cosines."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text_model = CLIPTextModel(config.text_config)
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_texts(self, ids: Tensor) -> Tensor:
        """Return vectors (B, E) of length 1 for token ids (B, T), in which each text ends with an end token."""
        return F.normalize(self.text_projection(self.text_model(ids).pooled), dim=-1)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return vectors (B, E) of length 1 for normalised pixels (B, 3, image_size, image_size)."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)


LAYOUT = Layout(drops=(r"(text|vision)_model\.embeddings\.position_ids",))  # 0, 1, 2, …
Config, Model = CLIPConfig, CLIPModel
