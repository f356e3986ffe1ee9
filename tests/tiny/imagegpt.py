"""A small seeded iGPT, made with transformers and laid out as openai/imagegpt-small is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.oracles.libraries import transformers
from tests.tiny.image import randomise

CONFIG: dict[str, Any] = {
    "activation_function": "quick_gelu",
    "architectures": ["ImageGPTForCausalImageModeling"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "imagegpt",
    "n_embd": 32,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 3,
    "n_positions": 36,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.13.0.dev0",
    "use_cache": True,
    "vocab_size": 25,
}
COLOURS, SIDE = 24, 6


def clusters() -> np.ndarray:
    """A palette (COLOURS, 3) in -1..1, no two colours near each other."""
    grid = np.stack(np.meshgrid([-0.9, 0.1, 0.8], [-0.7, 0.0, 0.9], [-1.0, -0.2, 0.6]), -1).reshape(-1, 3)
    return np.random.default_rng(0).permutation(grid)[:COLOURS]


def make_imagegpt(
    folder: Path, *, old: bool = True, pickle: bool = False, **changes: Any
) -> tuple[transformers.ImageGPTForCausalImageModeling, transformers.ImageGPTImageProcessorPil]:
    """An iGPT of 6×6 pictures in 24 colours; the reference model in float32, and its processor of pictures.

    old: with the masks and settings of the hub's file, else as transformers saves today. pickle: as a .bin alone.
    """
    config = CONFIG | changes
    torch.manual_seed(60)
    model = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():  # its own start is so small that all colours are alike
            parameter *= 8 if parameter.ndim > 1 else 1
        model.transformer.wpe.weight *= 4
    randomise(model, 61)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    if not old:
        sizes = {"size": {"height": SIDE, "width": SIDE}}
        transformers.ImageGPTImageProcessorPil(clusters=clusters(), **sizes).save_pretrained(folder)
        return model, transformers.ImageGPTImageProcessorPil.from_pretrained(folder)
    tensors = load_file(file)
    for layer in range(config["n_layer"]):
        mask = torch.ones(config["n_positions"], config["n_positions"], dtype=torch.uint8).tril()[None, None]
        tensors[f"transformer.h.{layer}.attn.bias"] = mask
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, file, {"format": "pt"})
    if pickle:
        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
        (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    settings = {
        "clusters": clusters().tolist(), "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "ImageGPTFeatureExtractor", "resample": 2, "size": SIDE,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model, transformers.ImageGPTImageProcessorPil.from_pretrained(folder)
