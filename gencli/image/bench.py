"""How fast an image model runs here: its steps, its images, and what memory that takes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator

import torch

from gencli import devices
from gencli.image.events import Denoised
from gencli.image.generate import generate
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest


def measure(
    pipeline: Pipeline, requests: list[ImageRequest], rounds: int, load_seconds: float
) -> Iterator[dict[str, object]]:
    """Yield what is measured for each request, resolved, as `--json` has it; times of every round are in lists.

    The first round of each is not counted.
    """
    for request in requests:
        devices.forget_peak_memory()
        times = [_run(pipeline, request) for _ in range(rounds + 1)][1:]
        yield {
            "model": pipeline.checkpoint.name, "width": request.width, "height": request.height, "batch": request.count,
            "steps": request.steps, "sampler": request.sampler, "guidance": request.guidance,
            "step_seconds": [step for step, _ in times], "image_seconds": [whole / request.count for _, whole in times],
            "load_seconds": load_seconds, "peak_memory": devices.peak_memory(),
            "device": str(pipeline.device), "dtype": str(pipeline.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }  # fmt: skip


def _run(pipeline: Pipeline, request: ImageRequest) -> tuple[float, float]:
    """Return the seconds of a step, the median, and of all images."""
    marks = [time.perf_counter()]
    for event in generate(pipeline, request):
        if isinstance(event, Denoised):
            marks.append(time.perf_counter())
    whole = time.perf_counter() - marks[0]
    steps = [b - a for a, b in itertools.pairwise(marks)]
    return statistics.median(steps[1:] or steps), whole  # the first has the prompt's time in it
