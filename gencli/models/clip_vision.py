"""The image encoder of CLIP alone, with its projection (Radford et al. 2021, arXiv 2103.00020).

Attributes are named as the checkpoint names them. B: batch, C: hidden_size, E: projection_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gencli.models.base import TRANSFORMERS_INERT, Layout, check_ints
from gencli.models.clip import CLIPVisionConfig, CLIPVisionModel
from gencli.models.module import BaseModel


@dataclass(frozen=True)
class CLIPVisionProjectionConfig(CLIPVisionConfig):
    INERT = TRANSFORMERS_INERT

    projection_dim: int = 512

    def check(self) -> None:
        super().check()
        check_ints(self, {"projection_dim": 2**14})


class CLIPVisionModelWithProjection(BaseModel):
    def __init__(self, config: CLIPVisionProjectionConfig):
        super().__init__()
        self.config = config
        self.vision_model = CLIPVisionModel(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, E), of any length, of normalised pixels (B, 3, image_size, image_size)."""
        return self.visual_projection(self.vision_model(pixels))


LAYOUT = Layout(drops=(r"vision_model\.embeddings\.position_ids",))  # 0, 1, 2, …
Config, Model = CLIPVisionProjectionConfig, CLIPVisionModelWithProjection
