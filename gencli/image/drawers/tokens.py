"""Images as texts: a decoder picks token after token, row by row (Chen et al. 2020, iGPT; Ramesh et al. 2021, DALL·E).

Cache, loop and samplers are those of text. No torch before the weights are loaded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gencli.checkpoints.checkpoint import Checkpoint
from gencli.errors import GencliError
from gencli.image.drawers.base import ALWAYS, Drawer, Loaded, batches, made
from gencli.image.request import ImageRequest
from gencli.text.request import TextRequest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gencli.image.events import Denoised, Picture
    from gencli.models.module import LanguageModel
    from gencli.models.vq_model import VQModel

SAMPLING = ("temperature", "top_k", "top_p")


@dataclass(frozen=True, kw_only=True)
class TokenDrawer(Drawer):
    """A decoder of images. grid: columns and rows of tokens."""

    grid: tuple[int, int]
    FOLLOWED = ALWAYS | set(SAMPLING)
    # The model's own distribution, as its authors sampled.
    BUILT_IN: ClassVar[Mapping[str, object]] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def own_sampling(checkpoint: Checkpoint) -> dict[str, object]:
    """Return what a checkpoint's generation_config.json says of sampling."""
    own = checkpoint.defaults
    return {name: own[name] for name in SAMPLING if own.get(name) is not None}


class TokenModel(Loaded):
    """Such a decoder with its weights."""

    drawer: TokenDrawer

    @abstractmethod
    def begin(
        self, request: ImageRequest, prompt: str, init: Image.Image | None
    ) -> tuple[LanguageModel, list[int], int]:
        """Return the decoder of an image's tokens, the ids that it begins from, and how many of them, at the end, are
        tokens of the image already. Raise GencliError for a prompt that it cannot follow."""

    @abstractmethod
    def partial(self, ids: Tensor) -> Tensor:
        """Return x0 of the first tokens of images, (B, N)."""

    @abstractmethod
    def finish(self, ids: list[int]) -> Image.Image:
        """Return the image of all of its tokens."""

    def generate(
        self,
        request: ImageRequest,
        prompts: Iterable[str | None] | None = None,
        *,
        init: Image.Image | None = None,
        walk: bool = False,
    ) -> Generator[Denoised | Picture, None, None]:
        """See `Loaded`. A step is a row. Picture i picks with `torch.Generator("cpu")` seeded with `request.seed + i`,
        one number a token."""
        for prompt, numbers in batches(request, prompts):
            decoder, begun, kept = self.begin(request, prompt, init)
            yield from self._together(request, decoder, begun, kept, prompt, numbers)

    def _together(
        self,
        request: ImageRequest,
        decoder: LanguageModel,
        begun: list[int],
        kept: int,
        prompt: str,
        numbers: range,
    ) -> Generator[Denoised | Picture, None, None]:
        """Draw images that go through the model as one batch."""
        import torch

        from gencli.image.events import Denoised, Picture
        from gencli.text.batch import Batch

        columns, rows = self.drawer.grid
        generators = [torch.Generator("cpu").manual_seed((request.seed or 0) + number) for number in numbers]
        asked = TextRequest.of(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
        batch = Batch(decoder, asked.resolve({}))
        picked = [batch.add(begun, generator, columns * rows - kept)[0] for generator in generators]
        left, first = rows - kept // columns, len(begun) - kept
        for row in range(left):
            for column in range(columns):
                picked = batch.step() if row or column else picked
                if problem := next((one for one in picked if isinstance(one, GencliError)), None):
                    raise problem
            ids = torch.tensor([one.ids[first:] for one in batch.rows])
            yield Denoised(row, left, numbers[0], len(numbers), self.partial(ids), self)
        for number, one in zip(numbers, batch.rows, strict=True):
            yield Picture(number, self.finish(one.ids[first:]), made(request, number, prompt, self.dtype))


class VQTokens(TokenModel):
    """A decoder of the codes of a VQ autoencoder, which is the first of `others`."""

    others: tuple[VQModel, ...]

    def partial(self, ids: Tensor) -> Tensor:
        """Return codes (B, 1, rows, columns), -1 where nothing is drawn yet."""
        import torch

        columns, rows = self.drawer.grid
        codes = torch.full((len(ids), rows * columns), -1)
        codes[:, : ids.shape[1]] = ids
        return codes.view(-1, 1, rows, columns)

    def pixels(self, codes: Tensor) -> Tensor:
        """Return an image (3, H, W), about -1..1, of codes (1, h, w)."""
        return self.others[0].decode_codes(codes)[0]

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Image.Image:
        """Return the image of codes (1, 1, rows, columns): grey below the last whole row."""
        import torch

        from gencli.image.files.pictures import to_picture

        drawn = int((latents[0, 0] >= 0).all(1).sum())
        with torch.inference_mode():
            pixels = self.pixels(latents[:, 0, :drawn].to(self.device))
        missing = self.others[0].scale * (latents.shape[2] - drawn)
        return to_picture(torch.nn.functional.pad(pixels, (0, 0, 0, missing)))

    def finish(self, ids: list[int]) -> Image.Image:
        import torch

        return self.decode(self.partial(torch.tensor([ids])))
