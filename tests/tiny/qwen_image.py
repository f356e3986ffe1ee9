"""Small seeded checkpoints of Qwen-Image, laid out as on the hub. Makers give back diffusers' pipeline in float32."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch

from tests.oracles.libraries import diffusers, transformers
from tests.tiny.chat_templates import FAMILIES, make_chat_tokenizer
from tests.tiny.flow import DYNAMIC, fill, finish, make_network
from tests.tiny.image import randomise, rewrite_json, save, write_scheduler

QWEN_IMAGE: dict[str, Any] = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 32,
    "axes_dims_rope": [4, 14, 14],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 32,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": 2,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLQwenImage",
    "attn_scales": [],
    "base_dim": 8,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
        -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
        2.8251, 1.916,
    ],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}  # fmt: skip
SCHEDULER = DYNAMIC | {"max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02}
TEXT: dict[str, Any] = {
    "bos_token_id": 383, "eos_token_id": 384, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48,
    "max_position_embeddings": 2048, "max_window_layers": 3, "num_attention_heads": 4, "num_hidden_layers": 3,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "use_sliding_window": False, "vocab_size": 400,
    "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
}  # fmt: skip
TOWER: dict[str, Any] = {
    "depth": 1, "hidden_act": "silu", "hidden_size": 16, "in_channels": 3, "intermediate_size": 24, "num_heads": 2,
    "fullatt_block_indexes": [0], "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
}  # fmt: skip


def make_qwen2_5_vl(folder: Path, *, nested: bool = True, tower: dict[str, Any] = TOWER) -> Any:
    """The text encoder with its vision tower, under the names that its files have on the hub. nested: whether
    config.json has `text_config` beside the same keys, as Qwen-Image's, or, as Qwen2.5-VL's own, has it not."""
    text = TEXT | {"model_type": "qwen2_5_vl_text", "layer_types": ["full_attention"] * 3, "sliding_window": None}
    around = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "image_token_id": 393,
        "initializer_range": 0.02, "model_type": "qwen2_5_vl", "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.53.1", "use_cache": True, "video_token_id": 394, "vision_config": tower,
        "vision_end_token_id": 392, "vision_start_token_id": 391, "vision_token_id": 395,
    }  # fmt: skip
    config = {**around, **TEXT, **({"text_config": text} if nested else {})}
    torch.manual_seed(190)
    made = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, image_token_id=393, video_token_id=394)
    model = fill(transformers.Qwen2_5_VLForConditionalGeneration(made), 191)
    save(model, folder, names=lambda name, tensor: (published(name), tensor))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return model


class Processor:
    """transformers' own needs what reads videos. Images by its processor for PIL, and as many tokens as they take."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.images = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")

    def __call__(self, text: list[str], images: Any, **how: Any) -> Any:
        made = self.images.Qwen2VLImageProcessorPil()(images=images, return_tensors="pt") if images else {}
        for rows, columns in (grid[1:] for grid in (made["image_grid_thw"].tolist() if made else [])):
            count = "<|image_pad|>" * (rows * columns // 4)
            text = [one.replace("<|image_pad|>", count.replace("image_pad", "pad"), 1) for one in text]
        text = [one.replace("<|pad|>", "<|image_pad|>") for one in text]
        return transformers.BatchFeature({**self.tokenizer(text, **how), **made})


def published(name: str) -> str:
    """A tensor's name in files of Qwen2.5-VL."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def make_video_autoencoder(folder: Path) -> Any:
    """The autoencoder, whose kernels have frames."""
    torch.manual_seed(194)
    own = {key: value for key, value in VAE.items() if not key.startswith("_")}
    model = randomise(diffusers.AutoencoderKLQwenImage(**own), 195)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter += 0.2 * torch.randn(parameter.shape)
    save(model, folder)
    (folder / "config.json").write_text(json.dumps(VAE, indent=2))
    return model


def make_tokenizer(folder: Path) -> Any:
    """Qwen's, with the tokens of images: `<|image_pad|>` is 393."""
    make_chat_tokenizer(folder, next(one for one in FAMILIES if one.name == "qwen3"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fill_up = [f"<|unused_{i}|>" for i in range(tokenizer.get_vocab_size(), 391)]
    tokenizer.add_special_tokens([*fill_up, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"])
    assert tokenizer.token_to_id("<|image_pad|>") == 393
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<|endoftext|>", "model_max_length": 131072}
    rewrite_json(folder / "tokenizer_config.json", lambda raw: raw | names)
    return transformers.AutoTokenizer.from_pretrained(folder)


def make_qwen_image(folder: Path, name: str = "QwenImagePipeline", **changes: Any) -> Any:
    """Qwen/Qwen-Image, or by the name of its pipeline an editor, whose processor is `Processor`."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = TOWER if name == "QwenImagePipeline" else TOWER | {"depth": 2, "fullatt_block_indexes": [1]}
    text_encoder = make_qwen2_5_vl(folder / "text_encoder", tower=tower)
    tokenizer = make_tokenizer(folder / "tokenizer")
    network = make_network(folder / "transformer", QWEN_IMAGE | changes)
    unused = {"pooled_projection_dim": 768}  # in the hub's file, and in no class
    rewrite_json(folder / "transformer" / "config.json", lambda raw: raw | unused)
    more = {} if name == "QwenImagePipeline" else {"processor": Processor(tokenizer)}
    return finish(
        folder,
        name,
        {
            **more,
            "scheduler": write_scheduler(folder / "scheduler", SCHEDULER),
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "transformer": network,
            "vae": make_video_autoencoder(folder / "vae"),
        },
    )
