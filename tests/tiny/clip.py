"""Small seeded CLIPs, made with transformers and laid out as the hub's own files are, old and new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.oracles.libraries import transformers
from tests.tiny.image import make_tokenizer, randomise, rewrite_json

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# What transformers 4 wrote into the config of every part, of which none touches the mathematics.
LEGACY: dict[str, Any] = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
    "bad_words_ids": None, "bos_token_id": 0, "chunk_size_feed_forward": 0, "dropout": 0.0, "do_sample": False,
    "eos_token_id": 2, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_factor": 1.0,
    "initializer_range": 0.02, "is_decoder": False, "is_encoder_decoder": False, "length_penalty": 1.0,
    "max_length": 20, "output_scores": False, "pad_token_id": 1, "pruned_heads": {}, "temperature": 1.0,
    "tie_encoder_decoder": False, "tie_word_embeddings": True, "top_k": 50, "torch_dtype": None, "torchscript": False,
    "transformers_version": "4.16.0.dev0", "use_bfloat16": False,
}  # fmt: skip

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "vocab_size": 544,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
# kind → what differs: openai/clip-vit-base-patch32, openai/clip-vit-large-patch14, laion's, and a save of today
KINDS: dict[str, dict[str, Any]] = {
    "patch32": {"act": "quick_gelu", "eos_token_id": 2, "old": True},
    "patch14": {"act": "quick_gelu", "eos_token_id": 2, "old": True, "image_size": 29, "patch_size": 7},
    "laion": {"act": "gelu", "eos_token_id": 2, "old": True, "patch_size": 16},
    "new": {"act": "quick_gelu", "eos_token_id": 543, "old": False, "patch_size": 16},
}


def make_clip(folder: Path, kind: str = "patch32") -> tuple[transformers.CLIPModel, transformers.CLIPImageProcessorPil]:
    """A whole CLIP in `folder`; the reference model in float32, and its processor of pictures."""
    how = KINDS[kind]
    text = TEXT | {"hidden_act": how["act"], "eos_token_id": how["eos_token_id"]}
    vision = VISION | {key: how[key] for key in ("image_size", "patch_size") if key in how} | {"hidden_act": how["act"]}
    torch.manual_seed(50)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    with torch.no_grad():
        for parameter in model.parameters():  # CLIP's own start is so small that all pictures look alike
            parameter *= 4 if parameter.ndim > 1 else 1
    randomise(model, 51)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    size = vision["image_size"]
    if how["old"]:
        _make_old(folder, kind, text, vision)
        settings = {
            "crop_size": size, "do_center_crop": True, "do_normalize": True, "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD, "resample": 3,
            "size": size,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text("{}")
        rewrite_json(folder / "preprocessor_config.json", lambda _: settings)
    else:
        sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        transformers.CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return model, transformers.CLIPImageProcessorPil.from_pretrained(folder)


def _make_old(folder: Path, kind: str, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """config.json and buffers as transformers 4 wrote them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for tower in ("text", "vision"):
        positions = len(tensors[f"{tower}_model.embeddings.position_embedding.weight"])
        tensors[f"{tower}_model.embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(tensors, file, {"format": "pt"})
    large = kind == "patch14"  # its file says the sizes twice; they count where they stand apart
    wrong = {"hidden_size": 8, "num_attention_heads": 1}
    config = {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 12,
        "text_config": LEGACY | text | {"model_type": "clip_text_model"} | (wrong if large else {}),
        "text_config_dict": text | {"projection_dim": 12} if large else None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": LEGACY | vision | {"model_type": "clip_vision_model"} | (wrong if large else {}),
        "vision_config_dict": vision if large else None,
    }
    rewrite_json(folder / "config.json", lambda _: config)


def make_pictures(seed: int = 0) -> list[Image.Image]:
    """Pictures of several shapes, all unlike each other."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(40, 50), (70, 33), (32, 32), (9, 20)]
    draw = [torch.rand((4, 4, 3), generator=generator).mul(255).byte().numpy() for _ in sizes]
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        for pixels, size in zip(draw, sizes, strict=True)
    ]
