"""A Hugging Face cache on disk, with the file names of repositories on the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.oracles.hub_server import safetensors


def words(text: str) -> list[str]:
    return text.split()


COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "0123456fedcba98765432100123456789abcdef0"


def put(cache_root: Path, repo: str, commit: str, files: dict[str, bytes], *revisions: str) -> Path:
    """A snapshot as the hub's library lays it out: links into blobs."""
    folder = cache_root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for name, data in files.items():
        blob = folder / "blobs" / f"{abs(hash((name, data))):040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    for revision in revisions:
        ref = folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return snapshot


def tiny(**more: bytes) -> dict[str, bytes]:
    """The files of a language model that opens, as far as names and headers go."""
    config = {"model_type": "gpt2", "n_positions": 64, "n_embd": 4}
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors({"wte.weight": ("F32", [10, 4])}),
        **more,
    }


SD15 = words(""".gitattributes README.md feature_extractor/preprocessor_config.json model_index.json
safety_checker/config.json safety_checker/model.fp16.safetensors safety_checker/model.safetensors
safety_checker/pytorch_model.bin safety_checker/pytorch_model.fp16.bin scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.fp16.safetensors text_encoder/model.safetensors
text_encoder/pytorch_model.bin tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json
tokenizer/vocab.json unet/config.json unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.non_ema.safetensors unet/diffusion_pytorch_model.safetensors v1-5-pruned.ckpt
v1-5-pruned-emaonly.safetensors v1-5-pruned.safetensors v1-inference.yaml vae/config.json
vae/diffusion_pytorch_model.bin vae/diffusion_pytorch_model.fp16.safetensors
vae/diffusion_pytorch_model.safetensors""")


SD15_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
