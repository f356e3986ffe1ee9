"""Systems of several stages in diffusers, and how far gencli is from them for the README's table: `measure(folder)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.image import stages
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import load
from tests.oracles.ldm_parity import Measured
from tests.oracles.libraries import diffusers, sentencepiece
from tests.oracles.pipelines import draw, generator
from tests.tiny.sdxl import quiet
from tests.tiny.systems import make_if

PROMPT, NEGATIVE = " A red Apple on the sun ", "blue dog"


def measure(root: Path) -> Iterator[Measured]:
    """Every system, its checkpoints made under `root`."""
    yield _imagen(root / "if")


def opened(folder: Path) -> ImageCheckpoint:
    return open_image_checkpoint(Source(folder.name, folder, "folder"))


class Imagen:
    """DeepFloyd IF's two stages in diffusers. It reads prompts as T5's states: diffusers' T5Tokenizer loads an empty
    vocabulary from a bare spiece.model."""

    def __init__(self, root: Path):
        self.unet, self.second_unet, self.t5 = make_if(root)
        file = root / "I" / "tokenizer" / "spiece.model"
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))

        def scheduler(name: str, part: str = "scheduler") -> Any:
            return diffusers.DDPMScheduler.from_pretrained(root / name / part)

        parts = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")
        none: dict[str, Any] = {"requires_safety_checker": False, **dict.fromkeys(parts)}
        self.first = quiet(diffusers.IFPipeline(unet=self.unet, scheduler=scheduler("I"), **none))
        second = diffusers.IFSuperResolutionPipeline(
            unet=self.second_unet,
            scheduler=scheduler("II"),
            image_noising_scheduler=scheduler("II", "image_noising_scheduler"),
            **none,
        )
        self.second = quiet(second)

    @torch.no_grad()
    def states(self, text: str) -> Tensor:
        ids = [*self.pieces.encode(text.lower().strip()), 1]
        padded = torch.tensor([[*ids, *[0] * (77 - len(ids))]])
        return self.t5(padded, attention_mask=(torch.arange(77) < len(ids)).long()[None]).last_hidden_state

    def texts(self, negative: str) -> dict[str, Tensor]:
        return {"prompt_embeds": self.states(PROMPT), "negative_prompt_embeds": self.states(negative)}

    def __call__(
        self, *, guidance=7.0, upscaled=4.0, steps=4, more=3, level=250, seed=3, negative=NEGATIVE
    ) -> tuple[Image.Image, Image.Image]:
        """The images of the first stage and of both."""
        given = {**self.texts(negative), "generator": generator(seed)}
        small = self.first(**given, guidance_scale=guidance, num_inference_steps=steps, output_type="pt").images
        settings = {"guidance_scale": upscaled, "num_inference_steps": more, "noise_level": level}
        large = self.second(**given, image=small, **settings, height=64, width=64).images[0]
        array = ((small[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(array), large


def _imagen(root: Path) -> Measured:
    theirs = Imagen(root)
    torch.manual_seed(1)
    x, t, level = torch.randn(2, 6, 64, 64), torch.tensor([981.0, 20.0]), torch.tensor([250, 20])
    context = theirs.states("apple").repeat(2, 1, 1)
    with torch.no_grad():
        expected = theirs.second_unet(x, t, encoder_hidden_states=context, class_labels=level).sample
        component = _largest(build.load(root / "II" / "unet")(x, t, context, class_labels=level), expected)
    both = load(stages.add_upscaler(opened(root / "I"), opened(root / "II")), device="cpu")
    settings = {"prompt": PROMPT, "negative": NEGATIVE, "steps": 4, "stage": ("upscaler:steps=3",)}
    [ours] = draw(None, pipeline=both, **settings)
    name = "`DeepFloyd/IF-I-XL-v1.0`, `DeepFloyd/IF-II-L-v1.0`"
    return Measured("Imagen (DeepFloyd IF I and II)", name, component, _apart(ours.image, theirs()[1]))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


def _apart(ours: Image.Image, theirs: Image.Image) -> int:
    a, b = (np.asarray(image).astype(int) for image in (ours, theirs))
    return int(np.abs(a - b).max())
