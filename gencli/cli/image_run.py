"""One run of `gencli image`: load, draw, show on the way, write. Imports torch where no server draws."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from gencli import devices, signals
from gencli.atomic import check_folder
from gencli.cli.clock import Clock
from gencli.cli.console import Console
from gencli.cli.image_best import Best, Made, open_best
from gencli.cli.image_inputs import note_slips
from gencli.cli.image_sinks import FilesOfLines, ImageSink, Template
from gencli.cli.preview import Preview
from gencli.cli.warm import Serving
from gencli.errors import GencliError, counted
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.drawers.base import Drawer
from gencli.image.events import Denoised, Picture
from gencli.image.files import pictures
from gencli.image.found import Inputs
from gencli.image.request import ImageRequest, ImageSpec

if TYPE_CHECKING:
    from gencli.image.draw import Drawing
    from gencli.serve.client import RemoteDrawing


class Run:
    """One run: its inputs, its settings, and what it has made so far."""

    def __init__(
        self,
        console: Console,
        opened: ImageCheckpoint | Drawer,
        request: ImageRequest,
        inputs: Inputs,
        sink: ImageSink,
        *,
        prompts: Iterable[str | GencliError] | None,
        animation: Template | None,
        folders: Mapping[str, str | None],
        preview: bool,
        show: bool = False,
        variants: Sequence[ImageRequest] = (),
        labels: Sequence[str] = (),
        columns: int | None = None,
        strict: bool = False,
        serving: Serving,
    ):
        self.console, self.opened, self.request, self.inputs, self.sink = console, opened, request, inputs, sink
        self.prompts, self.animation, self.strict, self.serving = prompts, animation, strict, serving
        self.folders = {kind: _folder(path) for kind, path in folders.items() if path is not None}
        self.files_of_lines = FilesOfLines(sink, animation)
        self.shows = show
        self.variants, self.labels, self.columns = variants or [request], labels, columns
        self.total = request.count * len(self.variants)
        self.preview = Preview(console) if preview else None
        if self.preview is not None and not self.preview.works:
            console.note("no preview: stderr is not a colour terminal")
        self.frames: dict[int, list[Image.Image]] = {}  # of the animation, by image
        self.joined: list[Image.Image] = []  # frames of an animation that goes from image to image
        self.files: dict[str, dict[int, list[Path]]] = {kind: {} for kind in self.folders}  # by image
        self.sheet: list[Made] = []  # what the grid will hold
        self.gifs: list[Path] = []  # of its images
        self.best: Best | None = None
        self.problem: GencliError | None = None  # what went wrong beside the images, told when they are written
        self.clock = Clock()

    def run(self, spec: ImageSpec, *, stats: bool) -> None:
        """Draw with the model that `spec` names. Raise GencliError if anything fails."""
        model = self._open(spec)
        if self.prompts is None and not isinstance(self.opened, Drawer):
            note_slips(self.request, model.words, self.console.note, reads_weights=self.opened.family.reads_clip)
        prompts = None if self.prompts is None else self._checked(model, self.prompts)
        walk = self.animation is not None or "step_files" in self.folders
        events = self._each(lambda one: model.generate(one, prompts, self.inputs, walk=walk))
        if (clip := self.inputs.clip) is not None:
            self.best = open_best(self.console, clip, self.request, spec)
        self.clock.loaded()
        try:
            for event in events:
                if isinstance(event, Denoised):
                    self._step(event)
                else:
                    self._picture(event)
            self._write_joined()
            self._write_sheet()
        finally:
            self.console.clear()
        if self.problem is not None:
            raise self.problem
        if stats:
            self.console.stats(f"{model.describe()}, seed {self.request.seed}")
            self.console.stats(str(self.clock))

    def _each(self, generate: Callable[[ImageRequest], Iterator[Denoised | Picture]]) -> Iterator[Denoised | Picture]:
        """Yield the events of every variant, its images numbered after those of the one before."""
        for number, one in enumerate(self.variants):
            before = number * self.request.count
            for event in generate(one):
                if isinstance(event, Denoised):
                    yield dataclasses.replace(event, first=event.first + before)
                else:
                    yield dataclasses.replace(event, index=event.index + before)

    def _open(self, spec: ImageSpec) -> Drawing | RemoteDrawing:
        """Load the model: in a server that is running and can draw the same, or here. Raise GencliError."""
        views = self.animation is not None or self.preview is not None or "step_files" in self.folders
        if not views and not self.folders and self.inputs.clip is None and (link := self.serving.connect(spec.threads)):
            from gencli.serve.client import open_drawing

            self.console.progress(f"loading {self.opened.name}")
            if (drawing := open_drawing(link, self.inputs, spec)) is not None:
                return drawing
        with signals.raise_pending_signals():
            from gencli.image.draw import Drawing

        self.clock = Clock()
        devices.set_threads(spec.threads)
        return Drawing(
            self.opened,
            self.inputs,
            spec,
            views=views,
            loading=lambda what: self.console.progress(f"loading {what}"),
            packing=self._packing,
        )

    def _packing(self, what: str, _: str, done: int, total: int) -> None:
        self.console.progress(f"packing {what}", done // 10**6, total // 10**6, "million weights")

    def _step(self, step: Denoised) -> None:
        """Show the progress of a step, and keep its image if that was asked for."""
        self.clock.stepped()
        several = self.prompts is not None or self.total > 1
        numbers = range(step.first, step.first + step.count)
        label = f"image {numbers[0] + 1}{f'-{numbers[-1] + 1}' if len(numbers) > 1 else ''}" if several else "drawing"
        total = "" if self.prompts is not None or not several else f" of {self.total}"
        label += total + (f", {step.stage}" if step.stage.count > 1 else "")
        done = step.index + 1
        rest = 0 if self.prompts is not None else self.total - numbers.stop
        left = self.clock.left(step.total - done + -(-rest // len(numbers)) * step.total)
        self.console.progress(label, done, step.total, self.clock.rate(), left)
        kinds = ["step_files"] if "step_files" in self.folders else []
        if "stage_files" in self.folders and step.ends_stage and step.stage.number < step.stage.count:
            kinds.append("stage_files")
        if step.stage.shows and (self.animation is not None or kinds):
            images = step.images(whole="stage_files" in kinds, tiled=self.request.vae_tiling)
            for number, image in zip(numbers, images, strict=True):
                self._keep(image, number, step, kinds)
        last = done == step.total and step.stage.number == step.stage.count
        if step.stage.shows and self.preview is not None and self.preview.wanted() and not last:
            with self.preview.timed():
                self.preview.show(pictures.grid(step.sketches()))
            self.console.progress(label, done, step.total, self.clock.rate(), left)
        if last:
            self.console.progress("decoding")

    def _keep(self, image: Image.Image, number: int, step: Denoised, kinds: Iterable[str]) -> None:
        """Keep an image for the animation, and write it where files of these kinds go."""
        if self.animation is not None:
            self.frames.setdefault(number, []).append(image)
        stage = f"-{step.stage.name}" if step.stage.count > 1 else ""
        for kind in kinds:
            which = f"-{step.index + 1:04}" if kind == "step_files" else ""
            seed = (self.request.seed or 0) + number
            folder = self.folders[kind].path(seed=seed, index=number, prompt=self.request.prompt)
            path = folder / f"{seed}{stage}{which}.png"
            with self._aside():
                folder.mkdir(parents=True, exist_ok=True)
                Template(str(path).replace("{", "{{").replace("}", "}}")).write(
                    pictures.encode(image, "png"), self.request, number
                )
                self.files[kind].setdefault(number, []).append(path)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Write a file beside the images: what fails is told at the end, and the images are not lost for it."""
        try:
            yield
        except GencliError as error:
            self.problem = self.problem or error

    def _picture(self, picture: Picture) -> None:
        """Write a finished image or keep it for the grid; with --best, those that are kept."""
        seconds = self.clock.finished()
        if self.preview is not None:
            self.preview.show(picture.image)
            self.preview.forget()
        made = Made(picture, [*self.frames.pop(picture.index, []), picture.image], seconds)
        for one in [made] if self.best is None else self.best.add(made):
            self._write(one)

    def _write(self, made: Made) -> None:
        """Write an image or keep it for the grid, then the files beside it, and print their paths."""
        picture, beside = made.picture, dict[str, Path | Sequence[Path]]()
        self.console.clear()
        path = None
        if self.request.grid:
            self.sheet.append(made)
        else:
            path = self.sink.save(picture.image, picture.request, picture.index)
            self._show(picture.image)
        if self.joins:
            self.joined += made.frames
        elif self.animation is not None:
            with self._aside():
                data = self._animated(made.frames)
                gif = beside["gif"] = self.animation.write(data, picture.request, picture.index)
                self.gifs.append(gif)
        for kind, files in self.files.items():
            beside[kind] = files.get(picture.index, [])
        if not self.request.grid:
            score = {} if made.score is None else {"score": made.score}
            self.sink.report(path, picture.request, picture.index, beside, {"seconds": round(made.seconds, 3), **score})

    @property
    def joins(self) -> bool:
        """Whether the animation is one of all images, from each to the next."""
        walks = isinstance(self.opened, Drawer) and self.opened.walks
        return walks and self.animation is not None and not self.animation.fields

    def _animated(self, frames: Sequence[Image.Image]) -> bytes:
        """Return frames as an animation of the kind that its file's name ends in."""
        return pictures.animation(frames, Path(self.animation.text if self.animation else "").suffix[1:])

    def _write_joined(self) -> None:
        """Write the animation of all images, and print its path, which a grid prints with its own."""
        if self.animation is None or not self.joined:
            return
        self.console.clear()
        with self._aside():
            self.gifs.append(self.animation.write(self._animated(self.joined), self.request, 0))
            if not self.request.grid:
                self.sink.report_beside("gif", self.gifs[-1])

    def _checked(self, model: Drawing | RemoteDrawing, lines: Iterable[str | GencliError]) -> Iterator[str | None]:
        """Yield lines as they arrive, None for one that fails, which is told: what can be known before it is drawn.

        Raise GencliError after the last one if any failed, with `strict` at the first.
        """
        failed, blank, number = 0, 0, -1
        told: GencliError | None = None
        for number, line in enumerate(lines):
            if isinstance(line, str) and not line.strip():
                blank += 1
                yield None
                continue
            try:
                if isinstance(line, GencliError):
                    raise line
                self._check_line(model, line, number)
            except GencliError as error:
                if error is not line:
                    error.message = f"line {number + 1}: {error.message}"
                failed += 1
                if self.strict:
                    self.problem = error
                    return
                if error is not told:  # of the images of one line
                    self.console.clear()
                    self.console.error(error)
                told = error
                yield None
            else:
                yield line
        if blank:
            self.console.note(f"skipped {counted(blank, 'blank line')}")
        if failed:
            self.problem = GencliError(f"{failed} of {number + 1} lines failed")

    def _check_line(self, model: Drawing | RemoteDrawing, prompt: str, number: int) -> None:
        """Raise GencliError for a prompt that the model cannot follow, or whose images could not be written."""
        request = self.request.replace(prompt=prompt)
        model.check_prompt(request)
        self.files_of_lines.check(request, number)
        if self.best is not None:
            self.best.vector(prompt)

    def _write_sheet(self) -> None:
        if not self.sheet:
            return
        whole = {name: getattr(self.request, name) for name in ("seed", "count", "best", "clip", "batch")}
        request = self.sheet[0].picture.request.replace(**whole, grid=True)
        sink = self.sink
        if self.prompts is not None and len({made.picture.request.prompt for made in self.sheet}) > 1:
            if sink.metadata:
                self.console.note("the grid has no generation settings: they cannot hold several prompts")
            sink = sink.without_metadata()
        labels = [self.labels[made.picture.index // self.request.count] for made in self.sheet] if self.labels else []
        if labels:
            if sink.metadata:
                self.console.note("the sheet has no generation settings: they cannot hold several values")
            sink = sink.without_metadata()
        sheet = pictures.grid([made.picture.image for made in self.sheet], labels, self.columns)
        scores = {} if self.best is None else {"scores": [made.score for made in self.sheet]}
        beside: dict[str, Sequence[Path]] = {"gifs": self.gifs} if self.gifs else {}
        shown = [made.picture.index for made in self.sheet]
        for kind, files in self.files.items():
            beside[kind] = [path for index in shown for path in files.get(index, [])]
        path = sink.save(sheet, request, 0)
        self._show(sheet)
        sink.report(path, request, 0, beside, {"seconds": round(self.clock.total(), 3), **scores})

    def _show(self, image: Image.Image) -> None:
        if self.shows:
            from gencli.cli.show import show

            show(self.console, image)


def _folder(path: str) -> Template:
    """Return the folder of --save-steps, which is made if it does not exist. Raise GencliError or OSError."""
    template = Template(path)
    if not template.fields:
        folder = template.path(seed=0, index=0, prompt="")
        if not folder.exists():
            folder.mkdir(parents=True)
        check_folder(folder)
    return template
