"""Janus's side that reads images and answers (Wu et al. 2024, arXiv 2410.13848): a SigLIP tower (Zhai et al. 2023,
arXiv 2303.15343) whose patches take the place of as many tokens in the prompt of a Llama.

B: batch, T: positions, C: hidden_size of the language model, P: patches of an image, W: width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.errors import GencliError
from gencli.models import decoder
from gencli.models.activations import ACTIVATIONS
from gencli.models.base import TRANSFORMERS_INERT, Layout, Rename, check_ints
from gencli.models.clip import CLIPVisionConfig
from gencli.models.clip_text import CLIPEncoder
from gencli.models.llama import Llama, LlamaConfig


@dataclass(frozen=True)
class JanusVisionConfig(CLIPVisionConfig):
    """`vision_config` of Janus; defaults are those of the class in transformers. depth: layers of the aligner."""

    INERT = TRANSFORMERS_INERT | {
        "num_image_tokens", "hidden_dropout_rate", "projection_dropout", "attention_dropout", "torch_dtype",
    }  # fmt: skip
    ONLY: ClassVar = {"attention_bias": (True,), "use_qk_norm": (False,)}

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    projection_dim: int = 2048
    depth: int = 2

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        ratio, width = raw.get("mlp_ratio", 4.0), raw.get("hidden_size", 1024)
        if not isinstance(ratio, int | float) or not isinstance(width, int) or not 0 < ratio <= 64:
            raise GencliError(f"config.json: mlp_ratio = {ratio!r:.40} is not supported")
        kept = {key: value for key, value in raw.items() if key != "mlp_ratio"}
        return {"intermediate_size": int(width * ratio), **kept}

    def check(self) -> None:
        super().check()
        check_ints(self, {"projection_dim": 2**16, "depth": 64})


@dataclass(frozen=True, kw_only=True)
class JanusReaderConfig(LlamaConfig):
    """The keys of the language model. vision_config: the tower's."""

    vision_config: JanusVisionConfig

    @classmethod
    def prepare(cls, raw: Mapping[str, object]) -> Mapping[str, object]:
        given = raw["vision_config"]
        if not isinstance(given, dict):
            raise GencliError("config.json: vision_config is no JSON object")
        try:
            vision = JanusVisionConfig.from_dict(given)
        except GencliError as error:
            raise GencliError(
                error.message.replace("config.json", "config.json: vision_config", 1), error.hint
            ) from None
        return {**super().prepare(raw), "vision_config": vision}

    def check(self) -> None:
        super().check()
        if self.vision_config.projection_dim != self.hidden_size:
            raise GencliError(
                f"config.json: projection_dim = {self.vision_config.projection_dim} is not the language model's "
                f"hidden_size = {self.hidden_size}"
            )


class Embeddings(nn.Module):
    def __init__(self, config: JanusVisionConfig):
        super().__init__()
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, size, stride=size)
        self.position_embedding = nn.Embedding(config.patches, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, P, W) for images (B, 3, image_size, image_size), row by row."""
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight


class Tower(nn.Module):
    """The image encoder: a Vision Transformer without a class token."""

    def __init__(self, config: JanusVisionConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = CLIPEncoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the states (B, P, W) of images (B, 3, image_size, image_size)."""
        return self.post_layernorm(self.encoder(self.embeddings(pixels))[-1])


class Aligner(nn.Module):
    """States of the tower → embeddings of the language model."""

    def __init__(self, config: JanusVisionConfig):
        super().__init__()
        width = config.projection_dim
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.hidden_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth - 1))
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(self.activation(x))
        return x


class JanusReader(Llama):
    """The decoder of answers. patches (N · P, C): of the images that every prompt begins with, in order. token: the id
    that stands for a patch."""

    config: JanusReaderConfig

    def __init__(self, config: JanusReaderConfig):
        super().__init__(config)
        self.vision_model = Tower(config.vision_config)
        self.aligner = Aligner(config.vision_config)
        self.patches: Tensor | None = None
        self.token = -1

    @torch.inference_mode()
    def look(self, pixels: Tensor, token: int) -> None:
        """Look at the images (N, 3, image_size, image_size) of all prompts from now on."""
        states = self.aligner(self.vision_model(pixels.to(self.device, self.compute_dtype)))
        self.patches, self.token = states.flatten(0, 1), token

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, T, C) of ids (B, T). A part of a prompt of which the beginning was read before has the
        last patches; a patch's token that the model itself has written is a word."""
        words = self.model.embed_tokens(ids)
        if self.patches is None or ids.shape[1] == 1:
            return words
        at = ids == self.token
        count = int(at.sum())
        return words if not count else words.masked_scatter(at[..., None], self.patches[-count:].to(words.dtype))


LAYOUT = Layout(
    renames=(Rename(r"(vision_model\..*\.self_attn)\.projection_layer\.(weight|bias)", r"\1.out_proj.\2"),),
    drops=decoder.LAYOUT.drops,
    tied=decoder.LAYOUT.tied,
)
Config, Model = JanusReaderConfig, JanusReader
