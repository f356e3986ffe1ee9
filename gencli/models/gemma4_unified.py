"""Gemma 4's model of 12 billion parameters, which reads images and sounds without towers: its text model is Gemma 4's
without embeddings per layer and experts, with a config of its own name and other values where keys are left out."""

from __future__ import annotations

from dataclasses import dataclass

from gencli.models import gemma4
from gencli.models.gemma4_config import Gemma4Config


@dataclass(frozen=True, kw_only=True)
class Gemma4UnifiedConfig(Gemma4Config):
    """config.json of such a checkpoint."""

    max_position_embeddings: int = 262144
    sliding_window: int | None = 1024
    hidden_size_per_layer_input: int = 0


LAYOUT = gemma4.LAYOUT
Config, Model = Gemma4UnifiedConfig, gemma4.Gemma4
