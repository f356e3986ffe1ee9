"""Questions about images, for language models that read them: Janus (Wu et al. 2024, arXiv 2410.13848)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from gencli.errors import GencliError
from gencli.models.janus_reader import JanusReader
from gencli.text.events import Event, GenerationStats
from gencli.text.generate import How, Job, generate_all
from gencli.text.load import TextModel
from gencli.text.request import TextRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

BEGIN, PATCH, END = "<begin_of_image>", "<image_placeholder>", "<end_of_image>"
SYSTEM = (  # that it was trained with
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
QUESTION = "<|User|>: {images}{question}\n\n<|Assistant|>:"


@dataclass(frozen=True)
class Questions:
    """What asks a model about the images that it looks at. count: of them. system: the system prompt; "" for none."""

    model: TextModel
    count: int
    system: str

    def job(self, request: TextRequest) -> Job:
        """Return the job of answering the question in a request. Raise GencliError for one with a patch's token."""
        patches = cast(JanusReader, self.model.module).config.vision_config.patches
        images = (BEGIN + PATCH * patches + END + "\n") * self.count
        before = f"{self.system}\n\n" if self.system else ""
        question = request.prompt
        found = self.model.tokenizer.encode(before + QUESTION.format(images=images, question=question))
        if found.count(_token(self.model)) != self.count * patches:
            raise GencliError(f"the prompt has {PATCH} in it, which stands for images")
        return Job(request, found, lost=self.model.tokenizer.lost(question))

    def answer_all(
        self,
        request: TextRequest,
        requests: Iterable[TextRequest | GencliError],
        before: None,
        stats: GenerationStats,
        **how: Unpack[How],
    ) -> Iterator[Event]:
        """Answer the questions in requests, as `chat.answer_all` does; nothing comes before."""

        def job(one: TextRequest | GencliError) -> Job:
            try:
                return Job(request, problem=one) if isinstance(one, GencliError) else self.job(one)
            except GencliError as error:
                return Job(request, problem=error)

        return generate_all(self.model, map(job, requests), stats, **how)


def look(model: TextModel, pixels: NDArray[np.float32], system: str | None = None) -> Questions:
    """Let a model look at images, float32 (N, 3, H, W), as its preprocessing makes them. Return what asks about them.

    Raise GencliError for a model that reads no images, or others.
    """
    module = model.module
    if not isinstance(module, JanusReader):
        raise GencliError(f"{model.name} reads no images")
    side = module.config.vision_config.image_size
    if pixels.shape[2:] != (side, side):
        raise GencliError(f"{model.name}: its images are {side}x{side} pixels, and its preprocessing makes others")
    module.look(torch.from_numpy(pixels), _token(model))
    return Questions(model, len(pixels), SYSTEM if system is None else system)


def _token(model: TextModel) -> int:
    """Return the id that stands for a patch. Raise GencliError for a tokenizer without one."""
    token = model.tokenizer.backend.token_to_id(PATCH)
    if token is None:
        raise GencliError(f"{model.tokenizer.folder}: the tokenizer has no token {PATCH}")
    return int(token)
