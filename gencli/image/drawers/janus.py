"""Janus (Wu et al. 2024), as DALL·E (Ramesh et al. 2021) draws: a language model continues a prompt by image tokens.

No torch before the weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.checkpoints.formats.janus import image_size
from gencli.checkpoints.formats.vq import VQ_PART
from gencli.errors import GencliError
from gencli.image.drawers.base import PartLoader
from gencli.image.drawers.tokens import TokenDrawer, VQTokens, own_sampling
from gencli.image.request import ImageRequest

if TYPE_CHECKING:
    from PIL import Image

    from gencli.models.janus import Janus as JanusModel
    from gencli.models.module import LanguageModel
    from gencli.tokens import Tokenizer

PIXELS = 16  # a side of one token
PROMPT = "<|User|>: {}\n\n<|Assistant|>:<begin_of_image>"
BEGIN, PAD = "<begin_of_image>", "<｜▁pad▁｜>"


@dataclass(frozen=True, kw_only=True)
class Janus(TokenDrawer):
    """A language model with image tokens."""

    prompt: ClassVar[Literal["text"]] = "text"
    FOLLOWED = TokenDrawer.FOLLOWED | {"guidance", "quantize"}
    BUILT_IN: ClassVar = {**TokenDrawer.BUILT_IN, "guidance": 5.0}
    DRAWS = "draws token by token"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Janus:
        where = checkpoint.path / "config.json"
        raw = checkpoint.contents.read_json(where)
        side = image_size(raw)
        if type(side) is not int or not PIXELS <= side <= 4096 or side % PIXELS:
            raise GencliError(f"{where}: image_size = {side!r:.40} is no multiple of {PIXELS}, or too large")
        own = own_sampling(checkpoint)
        if isinstance(scale := checkpoint.defaults.get("guidance_scale"), int | float):
            own["guidance"] = scale
        grid = side // PIXELS, side // PIXELS
        vision = raw.get("vision_config")
        count = vision.get("num_image_tokens") if isinstance(vision, dict) else None
        count = grid[0] * grid[1] if count is None else count
        if count != grid[0] * grid[1]:
            raise GencliError(f"{where}: num_image_tokens = {count!r:.40} does not fit image_size = {side}")
        return cls(opened=checkpoint, size=(side, side), grid=grid, defaults=own)

    def assemble(self, load: PartLoader) -> JanusTokens:
        parts = self.opened.parts
        from gencli.models.janus import Janus as JanusModel
        from gencli.models.vq_model import VQModel

        module, vq = load(parts["language_model"], stays=True), load(parts[VQ_PART], "float32")
        assert isinstance(module, JanusModel) and isinstance(vq, VQModel)
        if vq.scale != PIXELS:
            raise GencliError(f"{self.folder}: its vqmodel has {vq.scale} pixels a token, where {PIXELS} are known")
        return JanusTokens(self, module, (vq,))


class JanusTokens(VQTokens):
    """A language model and its VQ autoencoder, ready to draw."""

    drawer: Janus
    module: JanusModel

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.drawer.opened.tokenizer()

    def begin(
        self, request: ImageRequest, prompt: str, init: Image.Image | None
    ) -> tuple[LanguageModel, list[int], int]:
        """The row without the prompt is as long, and all but its first and last token are padding that is read."""
        from gencli.image.drawers.guided import Guided

        ids = self.tokenizer.encode(PROMPT.format(prompt))
        begin, pad = (self._token(name) for name in (BEGIN, PAD))
        columns, rows = self.drawer.grid
        if len(ids) + columns * rows > self.module.max_length:
            room = self.module.max_length - columns * rows
            raise GencliError(f"the prompt has {len(ids)} tokens, and {self.drawer.name} reads at most {room}")
        if max(*ids, pad) >= self.module.first_image_token:
            raise GencliError(f"{self.drawer.folder}: the tokenizer knows more tokens than the language model")
        negative = [one if one in (self.tokenizer.bos_id, begin) else pad for one in ids]
        guided = Guided([self.module] * 2, [ids, negative], request.guidance or 0.0, self.module.first_image_token)
        return guided, ids, 0

    def _token(self, name: str) -> int:
        found: int | None = self.tokenizer.backend.token_to_id(name)
        if found is None:
            raise GencliError(f"{self.drawer.folder}: the tokenizer has no token {name}")
        return found

    def check_prompt(self, request: ImageRequest) -> None:
        self.begin(request, request.prompt, None)


DRAWER = Janus
