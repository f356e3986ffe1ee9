"""Memory of a system of several stages, in one run on a CPU: DeepFloyd IF's shape, I and II, random bfloat16 weights:

    python benchmarks/bench_stages.py [m|xl] [FOLDER]

m: the UNets of IF-I-M and IF-II-M, and half of T5-XXL's layers (6.6 GB on disk). xl: IF-I-XL, IF-II-L and all of T5-XXL
(21 GB). Wanted: a peak of at most the largest stage plus 2 GB; a stage counts as it lies in the file or, where it is
converted to float32 because that is small, as such. FOLDER keeps the checkpoint. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
GIB = 2**30


def shapes(size: str) -> dict[str, dict[str, Any]]:
    """Configs of the three parts."""
    from tests.parity.test_system_parts import IF_I_M, IF_I_XL, IF_II_L, IF_II_M, T5_XXL

    if size == "xl":
        return {"text_encoder": T5_XXL, "I": IF_I_XL, "II": IF_II_L}
    return {"text_encoder": T5_XXL | {"num_layers": 12}, "I": IF_I_M, "II": IF_II_M}


def write(folder: Path, size: str) -> None:
    """Both stages, of which the second has no text encoder of its own."""
    from benchmarks.bench_image import write_part
    from tests.tiny.systems import DDPM, make_t5_tokenizer, write_if_index

    for name, config in shapes(size).items():
        place = folder / "I" / "text_encoder" if name == "text_encoder" else folder / name / "unet"
        kind = {} if name == "text_encoder" else {"_class_name": "UNet2DConditionModel"}
        write_part(place, config | kind, torch.bfloat16)
    make_t5_tokenizer(folder / "I" / "tokenizer")
    for place in ("I/scheduler", "II/scheduler", "II/image_noising_scheduler"):
        (folder / place).mkdir()
        own = DDPM if place.endswith("/scheduler") else {**DDPM, "thresholding": False, "variance_type": "fixed_small"}
        (folder / place / "scheduler_config.json").write_text(json.dumps(own))
    write_if_index(folder)


def largest(folder: Path) -> int:
    """Bytes of the largest stage in memory: a network that fits 4 GiB in float32 is converted to that."""
    found = []
    for file in folder.glob("*/*/*.safetensors"):
        size, limit = file.stat().st_size, (1 if file.parent.name == "text_encoder" else 4) * GIB
        found.append(size if 2 * size > limit else 2 * size)
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="m | xl | FOLDER")
    said = parser.parse_args().words
    words = [word for word in said if word in ("m", "xl")] or ["m"]
    kept = [word for word in said if word not in ("m", "xl")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept[0] if kept else temporary)
        if not (folder / "II" / "model_index.json").exists():
            write(folder, words[0])
        command = [sys.executable, "-m", "gencli", "image", "-m", str(folder / "I"), "a red apple", "--device", "cpu"]
        command += ["--upscaler", str(folder / "II"), "--steps", "1", "--stage", "upscaler:steps=1"]
        command += ["--stats", "-o", os.devnull, "--format", "png"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        print(done.stderr.strip())
        peak = re.search(r"peak (\d+) MiB", done.stderr)
        if done.returncode or peak is None:
            sys.exit(done.returncode or 1)
        bound = largest(folder) + 2 * 10**9
        print(f"largest stage {largest(folder) / 1e9:.2f} GB, peak {int(peak[1]) * 2**20 / 1e9:.2f} GB")
        sys.exit(int(peak[1]) * 2**20 > bound)


if __name__ == "__main__":
    main()
