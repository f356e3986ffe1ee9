"""Images that a language model is asked about, from files and stdin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gencli.checkpoints.find import Source
from gencli.cli.prompts import image_data
from gencli.errors import UsageError
from gencli.options import several
from gencli.text.request import INPUT

if TYPE_CHECKING:
    import numpy as np

    from gencli.cli.speed import Speed

READERS = "deepseek-community/Janus-Pro-1B"


@dataclass(eq=False, repr=False)
class Images:
    """Images that come before the prompt."""

    # fmt: off
    image: tuple[str, ...] = several(str, "-i, --image FILE",
        f"Ask about an image; `-` reads it from stdin (repeatable; for models that read images, such as {READERS}).",
        INPUT)
    # fmt: on

    def check(self, prompt: Sequence[str], speed: Speed, *, lines: bool) -> None:
        """Raise UsageError for what does not go with images."""
        stdin = self.image.count("-")
        if stdin > 1 or (stdin and (lines or "-" in prompt or not prompt)):
            raise UsageError("-i - reads the image from stdin, so that nothing else can come from there")
        for name, value in (("--draft", speed.draft), ("--prompt-cache", speed.prompt_cache)):
            if self.image and value is not None:
                raise UsageError(f"{name} cannot be combined with -i/--image", f"leave out {name}")

    def check_files(self) -> None:
        """Raise GencliError for an image that is not here."""
        if files := [one for one in self.image if one != "-"]:
            from gencli.image.files.pictures import check_is_here

            for path in files:
                check_is_here(path)

    def read(self, source: Source, note: Callable[[str], None]) -> np.ndarray:
        """Return the images as the model's own preprocessing makes them, float32 (N, 3, H, W).

        Raise UsageError for a model that reads none, GencliError for what is no image.
        """
        from gencli.checkpoints.checkpoint import Contents
        from gencli.checkpoints.formats.janus import is_janus

        if not is_janus(Contents(source)):
            raise UsageError(f"-i/--image: {source.name} reads no images", f"{READERS} does")
        import numpy as np

        from gencli.image.files.pictures import open_flat
        from gencli.image.files.preprocess import janus_settings

        preprocess = janus_settings(source.path)
        given = (image_data(one, "-i - reads the image") for one in self.image)
        return np.stack([preprocess(open_flat(one, note=note)) for one in given])
