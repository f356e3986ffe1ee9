"""Images that a language model is asked about, and what it sees of them while it answers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from gencli.errors import UsageError, about
from gencli.image.files.pictures import open_flat
from gencli.image.files.preprocess import janus_settings
from gencli.models.janus_reader import JanusReader
from gencli.models.module import LanguageModel
from gencli.text import vision
from gencli.text.generate import Job
from gencli.text.load import TextModel
from gencli.text.messages import Message
from gencli.text.request import TextRequest


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model sees of images. key: of the images. patches: as `JanusReader.patches`."""

    key: str
    patches: Tensor | None


@dataclass(frozen=True)
class Seeing(Job):
    """A question about images."""

    seen: Seen | None = None


def ask(model: TextModel, request: TextRequest, messages: Sequence[Message], images: Sequence[bytes]) -> Seeing:
    """Return the job of answering the last message about images; a system prompt may stand before it.

    Raise UsageError for a model that reads none and for other messages before, GencliError for what is no image.
    """
    module, (*before, last) = model.module, messages
    if not isinstance(module, JanusReader):
        raise UsageError(f"images: {model.name} reads no images")
    if request.tools is not None:
        raise UsageError(f"tools: {model.name} calls none where it is asked about images")
    if any(message["role"] != "system" for message in before):
        raise UsageError(f"images: {model.name} answers one question about images, without what was said before")
    preprocess = janus_settings(Path(model.tokenizer.folder))
    with about("images"):
        pixels = np.stack([preprocess(open_flat(one, where="the file")) for one in images])
    system = "\n\n".join(message["content"] for message in before) if before else None
    asked = vision.look(model, pixels, system)
    key, patches = hashlib.sha256(pixels.tobytes()).hexdigest(), module.patches
    module.patches = None
    plain = dataclasses.replace(request, prompt=last["content"], think=None, chat_template_kwargs=None)
    job = asked.job(plain)
    return Seeing(job.request, job.ids, lost=job.lost, seen=Seen(key, patches))


@contextlib.contextmanager
def looking(module: LanguageModel, seen: Seen | None) -> Iterator[None]:
    """Let a model see what one question is about, and nothing else: another's images are none of its business."""
    if not isinstance(module, JanusReader):
        yield
        return
    module.patches = None if seen is None else seen.patches
    try:
        yield
    finally:
        module.patches = None
