"""Training on from a checkpoint."""

from __future__ import annotations

from torch import nn


def own_memory(module: nn.Module) -> None:
    """Let all weights be trained: as copies, for what was opened may be the file's own memory."""
    for param in module.parameters():
        param.data = param.data.clone()
        param.requires_grad_(True)
