"""Find what a request for images names: models, the files that go with them, and images. No torch.

One rule for all of it: what the command line or the environment names is found wherever it is; what only the image of
--from names comes from a stranger, and is opened if it is on this machine, and never fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.checkpoints.find import Source, find
from gencli.cli.options import Asked
from gencli.cli.prompts import image_data
from gencli.errors import GencliError, UsageError, about
from gencli.image.families import PRIORS
from gencli.image.found import Inputs
from gencli.image.mix import parse_mix
from gencli.image.request import ImageRequest
from gencli.options import rows

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T", LoraRef, EmbeddingRef)
ROWS = dict(rows(ImageRequest))


class Finder:
    """Finds what `request` names. asked: what the command line said. from_file: the image of --from, if any. fetch:
    `find`, with what it may fetch.

    Raise UsageError for malformed names, before anything is looked for.
    """

    def __init__(
        self, request: ImageRequest, asked: Asked[ImageRequest], from_file: str | None, fetch: partial[Source]
    ):
        self.request, self.asked, self.from_file, self.fetch = request, asked, from_file, fetch
        self.loras = tuple(map(LoraRef.parse, request.lora))
        self.embeddings = tuple(map(EmbeddingRef.parse, request.embedding))

    def find(self, note: Callable[[str], None] = lambda text: None) -> Inputs:
        """Find everything, with remarks on images to `note`: what lies here first, as a model may have to be fetched.

        Raise GencliError for what is not there.
        """
        request = self.request
        if request.classifier is None and request.classifier_scale is not None:
            raise UsageError("--classifier-scale without a classifier", "name one with --classifier")
        init, mask = _open(request.init, note), _open(request.mask, note, ground="black")
        named, shown = self._named(note), self._control_images(note)
        loras = tuple(self._asset("lora", one) for one in self.loras)
        embeddings = tuple(self._asset("embedding", one) for one in self.embeddings)
        (model,) = self._models("model")
        clip = self._models("clip") if request.best is not None else []
        classifier, vae, refiner = (self._models(field) for field in ("classifier", "vae", "refiner"))
        return Inputs(
            model=model,
            clip=next(iter(clip), None),
            classifier=next(iter(classifier), None),
            vae=next(iter(vae), None),
            refiner=next(iter(refiner), None),
            prior=self._prior(model),
            upscalers=tuple(self._models("upscaler")),
            loras=loras,
            embeddings=embeddings,
            controls=tuple(self._models("control")),
            control_images=tuple(shown),
            init=init,
            mask=mask,
            named=named,
        )

    def hashes(self, found: Inputs, note: Callable[[str], None], *, remember: bool) -> dict[str, str]:
        """Return the fingerprints of what a request names, by the names that an image will hold. Note those that are
        not what the image of --from was made with. remember: where those lie whose paths it will not hold."""
        from gencli.image.files import inputs

        request, made = self.request, dict[str, str]()
        for text, path in self._paths(found):
            digest, name = inputs.fingerprint(path), inputs.recorded(text)
            if digest is None:
                continue
            made[name] = digest
            if remember and name != text:
                inputs.remember(path, digest)
            then = request.hashes.get(name) or request.hashes.get(inputs.last_name(text))
            if then not in (None, digest):
                note(f"{self.from_file} was made with another {name} than the one that is here")
        return made

    def _paths(self, found: Inputs) -> Iterator[tuple[str, Path]]:
        """Yield what the request names, as it names it, and where that is."""
        request = self.request
        for field in ("model", "clip", "classifier", "vae", "refiner", "prior"):
            if (source := getattr(found, field)) is not None:
                yield getattr(request, field) or source.name, source.path
        yield from zip(request.upscaler, (source.path for source in found.upscalers), strict=True)
        yield from zip(request.lora, (one.path for one in found.loras), strict=True)
        yield from zip(request.embedding, (one.path for one in found.embeddings), strict=True)
        yield from zip(request.control, (source.path for source in found.controls), strict=True)
        for name in (request.init, request.mask, *request.reference, *request.control_image):
            if name is not None and name != "-":
                yield name, Path(name)
        for text, one in zip(request.mix, parse_mix(request.mix), strict=True):
            if one.is_image:
                yield text, Path(one.name)

    def check_files(self) -> None:
        """Raise GencliError if the image of --from names a file that is not a regular file here, such as a device."""
        for field, option in ROWS.items():
            if option.names not in ("file", "mix") or not self.is_foreign(field):
                continue
            for file in _files(getattr(self.request, field), option.names):
                if not os.path.isfile(file):
                    raise GencliError(
                        f"{self.from_file} was made with {file}, which is not a file here",
                        f"name it with {option.name(field)} FILE",
                    )

    def is_foreign(self, field: str) -> bool:
        """Return whether the value of a field comes from the image of --from only."""
        said = self.asked.values.get(field, ImageRequest.__dataclass_fields__[field].default)
        return self.from_file is not None and getattr(self.request, field) != said

    def _models(self, field: str) -> list[Source]:
        """Find the models that a field names."""
        names, found = _names(getattr(self.request, field)), []
        if not self.is_foreign(field):
            with about("" if field == "model" else ROWS[field].name(field)):
                return [self.fetch(name) for name in names]
        for name in names:
            try:
                found.append(find(name, offline=True))
            except GencliError:
                raise GencliError(
                    f"{self.from_file} was made with the model {name!r}, which is not on this machine",
                    f"name another with {ROWS[field].flags[0]}, or fetch it with `gencli models pull` if you trust "
                    "where it comes from",
                ) from None
        return found

    def _prior(self, model: Source) -> Source | None:
        """Find the prior that the request names, or the one that goes with its model's repository."""
        if self.request.prior is not None:
            return self._models("prior")[0]
        name = PRIORS.get(model.name) if model.kind == "hub" else None
        if name is None:
            return None
        return find(name, offline=True) if self.is_foreign("model") else self.fetch(name)

    def _named(self, note: Callable[[str], None]) -> dict[str, Image.Image]:
        """Open the images that are mixed, and those that the model looks at."""
        from gencli.image.files.pictures import open_flat

        images = [one.name for one in parse_mix(self.request.mix) if one.is_image]
        if "-" in self.request.reference:
            raise UsageError("--reference -: is read from a file only", "-i - reads an image from stdin")
        images += self.request.reference
        return {name: open_flat(name, "white", note) for name in images}

    def _asset(self, field: str, asset: T) -> T:
        fetching = self.fetch.keywords
        if not self.is_foreign(field):
            return asset.find(**fetching)
        try:
            return asset.find(**{**fetching, "offline": True})
        except GencliError:
            raise GencliError(
                f"{self.from_file} was made with --{field} {asset.path}, which is not on this machine",
                f"name another with --{field}, or get it if you trust where it comes from",
            ) from None

    def _control_images(self, note: Callable[[str], None]) -> list[Image.Image]:
        """Open the images that ControlNets look at."""
        if not self.request.control:
            return []
        from gencli.image.files.pictures import open_flat

        if "-" in self.request.control_image:
            raise UsageError("--control-image -: is read from a file only")
        return [open_flat(path, "black", note) for path in self.request.control_image]


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names in a field, which may hold none, one or several."""
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _files(value: str | tuple[str, ...] | None, names: str) -> list[str]:
    """Return the files in a field that holds such, or what is mixed."""
    if names == "file":
        return [*_names(value)]
    return [one.name for one in parse_mix(_names(value)) if one.is_image]


def _open(path: str | None, note: Callable[[str], None], ground: str = "white") -> Image.Image | None:
    """Open the image to start from, or a mask. ground: see `open_flat`. Raise GencliError."""
    if path is None:
        return None
    from gencli.image.files.pictures import open_flat

    return open_flat(image_data(path, "-i - reads the image"), ground, note)


WEIGHT = re.compile(r"(?<!\\)\([^()\n]{1,60}:(\d+(\.\d+)?|\.\d+)\)")  # (red:1.3)


def note_slips(
    request: ImageRequest, words: Collection[str], note: Callable[[str], None], *, reads_weights: bool = True
) -> None:
    """Note the words of embeddings that are in no prompt, and LoRA files and weights that are read as text.

    reads_weights: whether the model could read them.
    """
    from gencli.image.prompts.weighting import parse

    prompts = [request.prompt, request.negative or ""]
    texts = "\n".join(prompts).lower()
    read = [one.text or "" for text in prompts for one in parse(text)] if request.weighted else prompts
    for word in words:
        if not any(word.lower() in text.lower() for text in read):
            note(f"no prompt has the word {word!r}, which stands for its embedding")
    if "<lora:" in texts and not request.weighted:
        note("<lora:…> in a prompt is text; --lora FILE:SCALE loads one")
    if reads_weights and not request.weighted and (found := WEIGHT.search(texts)):
        note(f"{found[0]} in a prompt is text; --weighted reads it as a weight")
