"""`--best`: of the pictures of a prompt the few that fit it best, by a CLIP. Imports torch when it opens one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gencli.checkpoints.find import Source
from gencli.cli.console import Console
from gencli.errors import UsageError
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gencli.image.generate import Picture
    from gencli.image.score import Scorer

TOLD = 8  # scores in one note


def check_best(request: ImageRequest, given: set[str], *, prompted: bool) -> ImageRequest:
    """The request, without a CLIP that only the environment names and --best does not use.

    Raises UsageError for --best without what it needs, and for --clip without --best.
    """
    if request.best is None:
        if "clip" in given:
            raise UsageError("--clip is for --best", "as in --count 16 --best 4")
        return request.replace(clip=None)
    if request.clip is None:
        hint = "name a CLIP, as in --clip openai/clip-vit-base-patch32, or set GENCLI_CLIP_MODEL"
        raise UsageError("--best without --clip: there is nothing to find the best by", hint)
    if not prompted:
        raise UsageError("--best without a prompt: there is nothing to compare the pictures with")
    return request


def find_clip(request: ImageRequest, find_it: Callable[[str], Source]) -> Source | None:
    """The CLIP of --best, if it is asked for. Raises GencliError."""
    return None if request.best is None or request.clip is None else find_it(request.clip)


@dataclass(frozen=True)
class Made:
    """A finished picture, what its animation shows, how long it took, and its score once it has one."""

    picture: Picture
    frames: list[Image.Image]
    seconds: float
    score: float | None = None


class Best:
    """Pictures come in, prompt by prompt, and the best of each prompt come out. No more of them are held than kept."""

    def __init__(self, console: Console, scorer: Scorer, request: ImageRequest):
        self.console, self.scorer, self.request = console, scorer, request
        self.kept: list[Made] = []
        self.seen = 0
        self.told: tuple[str, Tensor] | None = None  # the last prompt, and its vector

    def vector(self, prompt: str) -> Tensor:
        """What pictures are compared with, (E). Raises GencliError for a prompt that is too long."""
        from gencli.image.prompts.weighting import parse

        if self.told is None or self.told[0] != prompt:
            text, truncate = prompt, self.request.truncate
            if self.request.weighted:  # of any length, with brackets that CLIP knows nothing of
                text, truncate = "".join(piece.text or " " for piece in parse(prompt)), truncate or "right"
            self.told = prompt, self.scorer.texts([text], truncate)[0]
        return self.told[1]

    def add(self, made: Made) -> list[Made]:
        """One more picture. When it is the last of its prompt: those to keep, the best first."""
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


def open_best(console: Console, clip: Source, request: ImageRequest, *, device: str, allow_pickle: bool) -> Best:
    """Open the CLIP. Raises GencliError for one that is broken, and for a prompt that it cannot read."""
    from gencli.image.score import open_scorer

    console.progress(f"loading {clip.name}")
    best = Best(console, open_scorer(clip, device=device, allow_pickle=allow_pickle), request)
    if request.prompt:
        best.vector(request.prompt)  # fails now rather than after the work
    return best
