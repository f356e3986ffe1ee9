"""Speed and memory of `gencli image` on Stable Diffusion 1.5's shape or SDXL's, beside diffusers, in one run:

    python benchmarks/bench_image.py [step] [memory] [sdxl] [FOLDER]

step: seconds a guided step at 512×512, gencli and diffusers in turn (wanted: ratio at least 1). memory: the peak of a
512×512 run of one step with --vae-tiling (wanted: below 8 GB). FOLDER keeps the random checkpoint (4.3 GB).
sdxl: SDXL's shape with weights in float16 (7 GB); memory is then told without tiling, beside the weights on disk
(wanted: below twice as much), and step is gencli's alone, weights in the file and converted (wanted: near each other).

Not collected by pytest, and no test depends on it: times are for a quiet machine, and ratios for pairs taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ROUNDS = 5

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNET_XL: dict[str, Any] = UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
}
TEXT: dict[str, Any] = {
    "model_type": "clip_text_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
TEXT_2: dict[str, Any] = TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"unet": UNET, "vae": VAE, "text_encoder": TEXT},
    "sdxl": {"unet": UNET_XL, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT_2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="step | memory | sdxl | FOLDER")
    said = parser.parse_args().words
    os.environ["HF_HUB_OFFLINE"] = "1"
    words = ("step", "memory", "sdxl")
    wanted = [word for word in said if word in words[:2]] or ["step", "memory"]
    kept = [word for word in said if word not in words]
    shape = "sdxl" if "sdxl" in said else "sd15"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept[0] if kept else temporary)
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, shape)
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
        if "memory" in wanted:
            measure_memory(folder, shape)
        if "step" in wanted:
            (compare_step if shape == "sd15" else compare_stored)(folder, ROUNDS)


def write_checkpoint(folder: Path, shape: str) -> None:
    """Random weights in the true shapes, float32 (SDXL's: float16), in the hub's layout."""
    from tests.tiny.image import INDEX, SCHEDULER, make_tokenizer
    from tests.tiny.sdxl import INDEX as _  # noqa: F401 (adds SDXL's rows)

    dtype = torch.float32 if shape == "sd15" else torch.float16
    for name, config in SHAPES[shape].items():
        write_part(folder / name, config, dtype)
    for name in ("tokenizer", "tokenizer_2")[: len(SHAPES[shape]) - 2]:
        make_tokenizer(folder / name)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER[shape]))
    index = {name: value for name, value in INDEX[shape].items() if name not in ("safety_checker", "feature_extractor")}
    (folder / "model_index.json").write_text(json.dumps(index))


def write_part(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> int:
    """A model's random weights in its true shapes, in the hub's layout; returns their bytes."""
    from gencli.models import architecture

    module = architecture(config.get("_class_name") or config["model_type"])
    with torch.device("meta"):
        state = module.Model(module.Config.from_dict(config)).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.empty(t.shape, dtype=dtype).normal_(0, 0.02, generator=generator) for key, t in state.items()}
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    save_file(tensors, folder / f"{stem}.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return sum(tensor.nbytes for tensor in tensors.values())


@torch.no_grad()
def compare_step(folder: Path, rounds: int) -> None:
    """One guided step at 512×512: a batch of two through the UNet, as both programs run it."""
    import diffusers

    from gencli.checkpoints.find import Source
    from gencli.image.load import load
    from gencli.image.open import open_image_checkpoint

    pipeline = load(open_image_checkpoint(Source("sd15", folder, "folder")), device="cpu")
    reference = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    x, context = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    t = torch.full((2,), 500.0)

    report(
        "guided step at 512x512, diffusers / gencli (s)",
        rounds,
        lambda: reference(x, 500, encoder_hidden_states=context).sample,
        lambda: pipeline.main.predict(x, t, {"encoder_hidden_states": context}),
    )


@torch.no_grad()
def compare_stored(folder: Path, rounds: int) -> None:
    """One guided step of SDXL at 512×512 with weights that stay in the file, and with converted ones (10 GB)."""
    from gencli.checkpoints.build import load

    stored = load(folder / "unet", dtype=torch.float32, layerwise_casting=True)
    converted = load(folder / "unet", dtype=torch.float32)
    x, t = torch.randn(2, 4, 64, 64), torch.full((2,), 500.0)
    told = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.full((2, 6), 512.0)}
    context = torch.randn(2, 77, 2048)
    report(
        "guided step of SDXL at 512x512, converted / stored weights (s)",
        rounds,
        lambda: converted(x, t, context, **told),
        lambda: stored(x, t, context, **told),
    )


def report(title: str, rounds: int, theirs: Callable[[], Any], ours: Callable[[], Any]) -> None:
    """Medians of both, taken in turn, and the median of the pairs' ratios."""
    pairs = []
    for number in range(rounds + 1):
        times = []
        for work in (theirs, ours) if number % 2 else (ours, theirs):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        pairs.append(times if number % 2 else times[::-1])
        print(f"  {pairs[-1][0]:.2f} / {pairs[-1][1]:.2f}", flush=True)
    pairs = pairs[1:]  # the first is for warming up
    ratio = statistics.median(a / b for a, b in pairs)
    theirs_s, ours_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{title}: {theirs_s:.2f} / {ours_s:.2f}, ratio {ratio:.3f}")


def measure_memory(folder: Path, shape: str) -> None:
    """The most memory that a whole run holds at once, by its own count."""
    command = [sys.executable, "-m", "gencli", "image", "-m", str(folder), "a red apple", "--size", "512x512"]
    command += ["--steps", "1", "--stats", "--device", "cpu", "-o", os.devnull, "--format", "png"]
    command += ["--vae-tiling"] if shape == "sd15" else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stderr.strip())
    if done.returncode:
        sys.exit(done.returncode)
    weights = sum(file.stat().st_size for file in folder.glob("*/*.safetensors")) / 2**20
    if peak := re.search(r"peak (\d+) MiB", done.stderr):
        print(f"weights on disk {weights:.0f} MiB, peak {int(peak[1]) / weights:.2f} times as much")


if __name__ == "__main__":
    main()
