"""Print the table of decoder families for the README: `python -m tests.parity_table`.

Every figure is measured anew, on tiny seeded checkpoints in the hub's layouts, against the installed transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tests.decoder_cases import CASES
from tests.parity.test_decoders import Measured, measure


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


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are too small to share
    print(table())
