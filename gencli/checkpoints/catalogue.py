"""Well-known open models by short names, as rows of catalogue.csv. No network, no torch.

Columns: name; id on the hub; variant of the weights, if not the plain ones; task; what it is good for; licence; gated:
whether the hub asks for an account and its terms; download in MB of 10⁶ bytes; parameters in millions, as stored.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("catalogue.csv")
SUGGESTED = "smollm2"  # a chat model for every machine
# Bytes per parameter, with what the blocks' scales take.
FORMATS = {"q8_0": 34 / 32, "q4_k_m": 4.85 / 8}
OVERHEAD = 1.2  # memory beside the weights: the cache of keys and values, activations


@dataclass(frozen=True)
class Entry:
    """One row. download: bytes. parameters: their number."""

    name: str
    id: str
    variant: str | None
    task: str
    good_for: str
    licence: str
    gated: bool
    download: int
    parameters: int

    @property
    def formats(self) -> dict[str, int]:
        """Format → bytes of memory that are needed; "stored" is what the hub has. Quantized: of text models alone."""
        text = self.task in ("chat", "text")
        packed = {name: round(self.parameters * size * OVERHEAD) for name, size in FORMATS.items()} if text else {}
        return {"stored": round(self.download * OVERHEAD), **packed}

    def fit(self, free: int) -> str:
        """Return how it fits into so many bytes of memory."""
        for name, needed in self.formats.items():
            if needed <= free:
                return "fits" if name == "stored" else f"fits with --quantize {name}"
        return "too large"


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Return all rows, in the file's order."""
    import csv

    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Entry(
                row["name"],
                row["id"],
                row["variant"] or None,
                row["task"],
                row["for"],
                row["licence"],
                row["gated"] == "yes",
                round(float(row["download"]) * 10**6),
                round(float(row["parameters"]) * 10**6),
            )
            for row in csv.DictReader(file)
        )


def find_entry(name: str) -> Entry | None:
    """Return the row of a short name, in upper or lower case; None if there is none."""
    return next((entry for entry in entries() if entry.name == name.lower()), None)


def of_task(task: str | None) -> list[Entry]:
    """Return the rows for a command: of `text` also those that chat; all for None."""
    tasks = {"text": ("chat", "text"), "chat": ("chat",)}.get(task or "", (task,))
    return [entry for entry in entries() if task is None or entry.task in tasks]
