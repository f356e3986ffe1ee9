"""Print the tables of families for the pages in gencli/docs: `python -m benchmarks.parity_table`.

Every figure is measured anew, on tiny seeded checkpoints in the hub's layouts, against the installed transformers,
diffusers and peft, or against formulas where those have no counterpart.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.oracles import (
    additions_parity,
    classes_parity,
    control_parity,
    flow,
    ldm_parity,
    systems,
    token_parity,
    xl_parity,
)
from tests.oracles.decoders import Measured, measure
from tests.oracles.ldm_parity import Measured as MeasuredPictures
from tests.tiny import single
from tests.tiny.decoder_cases import CASES

PICTURES = (xl_parity, additions_parity, control_parity, ldm_parity, systems, flow, classes_parity, token_parity)
SINGLE = (
    ("sd1", None, "Stable Diffusion 1.x in one file"),
    ("sd2", "v_prediction", "Stable Diffusion 2.x in one file"),
    ("sdxl", None, "Stable Diffusion XL in one file"),
)


def rows() -> dict[tuple[str, str], list[Measured]]:
    """Measurements by family and model type."""
    found: dict[tuple[str, str], list[Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            measured = measure(case, Path(folder) / case.name)
            found.setdefault((case.family, case.model_type), []).append(measured)
    return found


def table() -> str:
    """The table in Markdown."""
    lines = ["| family | model types | largest difference | greedy tokens equal |", "|---|---|---|---|"]
    for (family, model_type), results in rows().items():
        largest = max(result.difference for result in results)
        equal, tokens = sum(r.equal for r in results), sum(r.tokens for r in results)
        lines.append(f"| {family} | `{model_type}` | {largest:.1e} | {equal} of {tokens} |")
    return "\n".join(lines)


def picture_rows() -> Iterator[MeasuredPictures]:
    """Measurements of picture models, a family at a time."""
    with tempfile.TemporaryDirectory() as folder:
        for module in PICTURES:
            yield from module.measure(Path(folder) / module.__name__)
        for kind, prediction, family in SINGLE:
            made = single.make_folder(Path(folder) / kind, kind)
            file = single.write_original(made / "original.safetensors", single.original(made, kind))
            found = single.measure(made, file, kind, prediction)
            yield MeasuredPictures(family, "`model.safetensors`", found.component, found.picture)


def picture_table() -> str:
    """The table of picture models in Markdown."""
    lines = ["| family | for example | largest difference of a part | of an image, of 255 |", "|---|---|---|---|"]
    for row in picture_rows():
        picture = "–" if row.picture is None else row.picture
        lines.append(f"| {row.family} | {row.examples} | {row.component:.1e} | {picture} |")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)  # the models are too small to share
    print(table())
    print(picture_table())
