"""`--best`: keep the images that fit their prompt best, by a CLIP. Imports torch when it opens one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gencli.checkpoints.find import Source
from gencli.cli.console import Console
from gencli.image.request import ImageRequest, ImageSpec

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gencli.image.events import Picture
    from gencli.image.score import Scorer

TOLD = 8  # scores in one note


@dataclass(frozen=True)
class Made:
    """A finished image, the frames of its animation, the seconds it took, and its score if there is one."""

    picture: Picture
    frames: list[Image.Image]
    seconds: float
    score: float | None = None


class Best:
    """Collects images prompt by prompt, and gives out the best of each prompt. Holds no more than it keeps."""

    def __init__(self, console: Console, scorer: Scorer, request: ImageRequest):
        self.console, self.scorer, self.request = console, scorer, request
        self.kept: list[Made] = []
        self.seen = 0
        self.told: tuple[str, Tensor] | None = None  # the last prompt, and its vector

    def vector(self, prompt: str) -> Tensor:
        """Return the vector (E) of a prompt. Raise GencliError for a prompt that is too long."""
        from gencli.image.prompts.weighting import parse

        if self.told is None or self.told[0] != prompt:
            text, truncate = prompt, self.request.truncate
            if self.request.weighted:  # of any length, with brackets that CLIP knows nothing of
                text, truncate = "".join(piece.text or " " for piece in parse(prompt)), truncate or "right"
            self.told = prompt, self.scorer.texts([text], truncate)[0]
        return self.told[1]

    def add(self, made: Made) -> list[Made]:
        """Add an image. After the last one of a prompt return those to keep, the best first."""
        vector = self.vector(made.picture.request.prompt)
        seen = self.scorer.pictures([self.scorer.prepare(made.picture.image.convert("RGB"))])[0]
        score = round(float(seen @ vector), 6)
        self.kept.append(Made(made.picture, made.frames, made.seconds, score))
        self.kept.sort(key=lambda one: -(one.score or 0.0))  # of equals the earlier seed
        del self.kept[self.request.best or 1 :]
        self.seen += 1
        if self.seen % self.request.count:
            return []
        kept, self.kept = self.kept, []
        self._tell(kept)
        return kept

    def _tell(self, kept: list[Made]) -> None:
        scores = [f"{one.score:.4f} (seed {one.picture.request.seed})" for one in kept[:TOLD]]
        more = f" and {len(kept) - TOLD} more" if len(kept) > TOLD else ""
        count = self.request.count
        self.console.note(f"the best {len(kept)} of {count} by {self.scorer.name}: {', '.join(scores)}{more}")


def open_best(console: Console, clip: Source, request: ImageRequest, spec: ImageSpec) -> Best:
    """Open the CLIP. Raise GencliError if it is broken or the prompt is too long for it."""
    from gencli.image.score import open_scorer

    console.progress(f"loading {clip.name}")
    best = Best(console, open_scorer(clip, device=spec.device, allow_pickle=spec.allow_pickle), request)
    if request.prompt:
        best.vector(request.prompt)  # fails now rather than after the work
    return best
