"""Every part of every system, missing or without its files: one line names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.json_files import read_json
from tests.tiny import flow
from tests.tiny.qwen_image import make_qwen_image
from tests.tiny.systems import make_if, make_karlo, make_x4
from tests.tiny.unclip import make_kandinsky, make_stable_unclip

MAKERS: dict[str, Callable[[Path], Any]] = {
    "if": make_if, "karlo": make_karlo, "x4": make_x4, "kandinsky": make_kandinsky, "unclip": make_stable_unclip,
    "z-image": flow.make_z_image, "klein": flow.make_klein, "pixart": flow.make_pixart,
    "qwen-image": make_qwen_image, "chroma": flow.make_chroma,
}  # fmt: skip


def whole(folder: Path) -> None:
    """Open a checkpoint, and load all that any of its stages needs, or begins with."""
    checkpoint = open_image_checkpoint(Source(folder.name, folder, "folder"))
    pipeline = load(checkpoint, device="cpu")
    for name, one in checkpoint.opened.parts.items():
        if one.kind == "model":
            pipeline.main.load_part(name)
    for stage in pipeline.stages:
        for part in (stage.conditioner_part, stage.network_part):
            part.get()


def without(file: Path, said: str) -> None:
    """Refused, in one line that has the name, while a file or folder is not there."""
    away = file.with_name(f"{file.name}.away")
    file.rename(away)
    try:
        with pytest.raises(GencliError) as refusal:
            whole(file.parents[1] if file.suffix else file.parent)
    finally:
        away.rename(file)
    told = f"{refusal.value.message} {refusal.value.hint or ''}"
    assert said in told and "\n" not in told and len(told) < 2000, (file, told)


def parts_of(folder: Path) -> Iterator[Path]:
    index = read_json(folder / "model_index.json")
    for name, named in index.items():
        if isinstance(named, list) and named[0] and (folder / name).is_dir():
            yield folder / name


@pytest.mark.parametrize("name", MAKERS)
def test_each_part_that_is_missing_is_named(tmp_path, name):
    MAKERS[name](tmp_path)
    folders = [file.parent for file in sorted(tmp_path.rglob("model_index.json"))]
    assert folders
    count = 0
    for folder in folders:
        for part in parts_of(folder):
            if part.name in ("feature_extractor", "safety_checker", "image_processor", "watermarker"):
                continue
            without(part, part.name)
            for file in (*part.glob("*.safetensors"), *part.glob("*config.json")):
                if not file.name.startswith(("tokenizer", "generation")):
                    without(file, part.name)
                    count += 1
    assert count > 4
