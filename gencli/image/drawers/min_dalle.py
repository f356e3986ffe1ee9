"""DALL·E mini and mega (Dayma et al. 2021): an encoder reads a text, a decoder draws 16 by 16 tokens of a VQGAN.

No torch before the weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from tokenizers import models

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.checkpoints.formats.min_dalle import vocabulary
from gencli.checkpoints.formats.vq import VQ_PART
from gencli.errors import GencliError
from gencli.image.drawers.base import PartLoader
from gencli.image.drawers.tokens import TokenDrawer, VQTokens
from gencli.image.request import ImageRequest
from gencli.json_files import read_json
from gencli.tokens.guard import library

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gencli.models.dalle_bart import DalleBart
    from gencli.models.module import LanguageModel

SIDE, GRID = 256, (16, 16)
BEGIN = 2**14 - 1  # the token that an image begins with
SPACE = "Ġ"  # before every word


@dataclass(frozen=True, kw_only=True)
class MinDalle(TokenDrawer):
    """An encoder and a decoder. What is no ASCII character is not read, and capitals are small letters."""

    prompt: ClassVar[Literal["text"]] = "text"
    FOLLOWED = TokenDrawer.FOLLOWED | {"guidance"}
    BUILT_IN: ClassVar = {"temperature": 1.0, "top_k": 256, "top_p": 1.0, "guidance": 16.0}
    DRAWS = "draws token by token"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> MinDalle:
        vocabulary(checkpoint.contents)
        return cls(opened=checkpoint, size=(SIDE, SIDE), grid=GRID)

    def assemble(self, load: PartLoader) -> MinDalleTokens:
        from gencli.models.dalle_bart import DalleBart
        from gencli.models.vq_model import VQModel

        module, vq = load(self.opened.parts["dalle_bart"]), load(self.opened.parts[VQ_PART], "float32")
        assert isinstance(module, DalleBart) and isinstance(vq, VQModel)
        if module.config.image_length != GRID[0] * GRID[1]:
            raise GencliError(f"{self.folder}: images of {module.config.image_length} tokens are not known")
        return MinDalleTokens(self, module, (vq,))

    @cached_property
    def words(self) -> tuple[models.BPE, dict[str, object]]:
        """How words are split, and the numbers of what they are split into. Raise GencliError for broken files."""
        vocab, merges = vocabulary(self.opened.contents)
        with library(f"{vocab}: its tokenizer is not usable"):
            return models.BPE.from_file(str(vocab), str(merges), unk_token="<unk>"), read_json(vocab)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text between begin and end. Raise GencliError for a vocabulary that has neither."""
        bpe, vocab = self.words
        plain = text.lower().encode("ascii", errors="ignore").decode()
        with library(f"{self.folder}: the tokenizer cannot encode this text"):
            ids = [token.id for word in plain.split(" ") if word for token in bpe.tokenize(SPACE + word)]
        begin, end = vocab.get("<s>"), vocab.get("</s>")
        if type(begin) is not int or type(end) is not int:
            raise GencliError(f"{self.folder}: the vocabulary has no <s> and no </s>")
        return [begin, *ids, end]


class MinDalleTokens(VQTokens):
    """Both halves and the autoencoder, ready to draw."""

    drawer: MinDalle
    module: DalleBart

    def begin(
        self, request: ImageRequest, prompt: str, init: Image.Image | None
    ) -> tuple[LanguageModel, list[int], int]:
        """The row without the prompt is an empty text."""
        import torch

        from gencli.image.drawers.guided import Guided
        from gencli.models.dalle_bart import PAD

        config, scale = self.module.config, request.guidance or 0.0
        ids = self.drawer.encode(prompt)
        if len(ids) > config.text_length:
            raise GencliError(f"the prompt has {len(ids) - 2} tokens, and this model reads {config.text_length - 2}")
        if max(ids) >= config.text_ids:
            raise GencliError(f"{self.drawer.folder}: the vocabulary knows more tokens than the encoder")
        texts = [ids, [ids[0], ids[-1]]] if scale > 1 else [ids]
        rows = torch.tensor([row + [PAD] * (config.text_length - len(row)) for row in texts], device=self.device)
        begun = [min(BEGIN, config.image_ids - 1)]
        return Guided([self.module.reading(row[None]) for row in rows], [begun] * len(texts), scale), begun, 0

    def check_prompt(self, request: ImageRequest) -> None:
        if len(ids := self.drawer.encode(request.prompt)) > (length := self.module.config.text_length):
            raise GencliError(f"the prompt has {len(ids) - 2} tokens, and this model reads {length - 2}")

    def pixels(self, codes: Tensor) -> Tensor:
        return 2 * super().pixels(codes) - 1  # its autoencoder makes 0..1


DRAWER = MinDalle
