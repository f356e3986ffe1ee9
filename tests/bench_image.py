"""Speed and memory of `gencli image` on Stable Diffusion 1.5's shape, beside diffusers, in one run:

    python tests/bench_image.py [step] [memory] [FOLDER]

step: seconds a guided step at 512×512, gencli and diffusers in turn (wanted: ratio at least 1). memory: the peak of a
512×512 run in float32 with --vae-tiling (wanted: below 8 GB). FOLDER keeps the random checkpoint (4.3 GB) between runs.

Not collected by pytest, and no test depends on it: times are for a quiet machine, and ratios for pairs taken in turn.
"""

from __future__ import annotations

import json
import os
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


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    wanted = [word for word in sys.argv[1:] if word in ("step", "memory")] or ["step", "memory"]
    kept = [word for word in sys.argv[1:] if word not in ("step", "memory")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept[0] if kept else temporary)
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder)
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
        if "step" in wanted:
            compare_step(folder, ROUNDS)
        if "memory" in wanted:
            measure_memory(folder)


def write_checkpoint(folder: Path) -> None:
    """Random weights in the true shapes, float32, in the hub's layout."""
    from gencli.models import architecture
    from tests.tiny_image import INDEX, SCHEDULER, make_tokenizer

    parts = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
    for name, config in parts.items():
        module = architecture(config.get("_class_name") or config["model_type"])
        with torch.device("meta"):
            state = module.Model(module.Config.from_dict(config)).state_dict()
        (folder / name).mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        tensors = {key: torch.empty(t.shape).normal_(0, 0.02, generator=generator) for key, t in state.items()}
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, folder / name / f"{stem}.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
    make_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER["sd15"]))
    index = {
        name: value for name, value in INDEX["sd15"].items() if name not in ("safety_checker", "feature_extractor")
    }
    (folder / "model_index.json").write_text(json.dumps(index))


@torch.no_grad()
def compare_step(folder: Path, rounds: int) -> None:
    """One guided step at 512×512: a batch of two through the UNet, as both programs run it."""
    import diffusers

    from gencli.checkpoints.find import Source
    from gencli.image.checkpoint import open_checkpoint
    from gencli.image.pipeline import load

    pipeline = load(open_checkpoint(Source("sd15", folder, "folder")), device="cpu")
    reference = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    x, context = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    t = torch.full((2,), 500.0)

    report(
        "guided step at 512x512, diffusers / gencli (s)",
        rounds,
        lambda: reference(x, 500, encoder_hidden_states=context).sample,
        lambda: pipeline.predict(x, t, context),
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


def measure_memory(folder: Path) -> None:
    """The most memory that a whole run holds at once, by its own count."""
    command = [sys.executable, "-m", "gencli", "image", "-m", str(folder), "a red apple", "--size", "512x512"]
    command += ["--steps", "1", "--vae-tiling", "--stats", "--device", "cpu", "-o", os.devnull, "--format", "png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stderr.strip())
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
