"""The activation functions that configs name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.errors import GencliError


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), as OpenAI's CLIP uses it."""
    return x * torch.sigmoid(1.702 * x)


gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
}


def check_activation(key: str, value: object) -> None:
    """Raise GencliError unless the value of a config's key names an activation."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise GencliError(
            f"config.json: {key} = {value!r:.80} is not supported", f"gencli knows {', '.join(ACTIVATIONS)}"
        )
