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
from tests.oracles.libraries import diffusers, sentencepiece, transformers
from tests.oracles.pipelines import draw, generator
from tests.tiny.sdxl import quiet
from tests.tiny.systems import UNCLIP_SCHEDULERS, make_if, make_karlo, make_x4

PROMPT, NEGATIVE = " A red Apple on the sun ", "blue dog"


def measure(root: Path) -> Iterator[Measured]:
    """Every system, its checkpoints made under `root`."""
    yield _karlo(root / "karlo")
    yield _imagen(root / "if")
    yield _upscaler(root / "x4")


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


@torch.no_grad()
def _upscaler(folder: Path) -> Measured:
    theirs = quiet(make_x4(folder))
    torch.manual_seed(1)
    x, t, context = torch.randn(2, 7, 16, 24), torch.tensor([981.0, 20.0]), torch.randn(2, 77, 32)
    levels = torch.tensor([20, 350])
    expected = theirs.unet(x, t, encoder_hidden_states=context, class_labels=levels).sample
    component = _largest(build.load(folder / "unet")(x, t, context, class_labels=levels), expected)
    photo = Image.effect_noise((24, 16), 90).convert("RGB")
    [ours] = draw(folder, init=photo, prompt=PROMPT, steps=4)
    drawn = theirs(PROMPT, image=photo, generator=generator(), num_inference_steps=4).images[0]
    name = "`stabilityai/stable-diffusion-x4-upscaler`"
    return Measured("x4 upscaler", name, component, _apart(ours.image, drawn))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


def _apart(ours: Image.Image, theirs: Image.Image) -> int:
    a, b = (np.asarray(image).astype(int) for image in (ours, theirs))
    return int(np.abs(a - b).max())


class Karlo:
    """Karlo and its variations in diffusers, stepped by DDPMScheduler: UnCLIPScheduler's own arithmetic is inexact."""

    def __init__(self, root: Path):
        from diffusers.pipelines.deprecated import unclip

        self.parts = make_karlo(root)
        given = dict(self.parts)
        for name in UNCLIP_SCHEDULERS:
            given[name] = _Stepper(given[name].config)
        encoder = given.pop("image_encoder")
        self.pipe = quiet(unclip.UnCLIPPipeline(**given))
        shared = {name: part for name, part in given.items() if not name.startswith("prior")}
        processor = transformers.CLIPImageProcessor(size=32, crop_size=32)
        varying = {"image_encoder": encoder, "feature_extractor": processor}
        self.variations = quiet(unclip.UnCLIPImageVariationPipeline(**shared, **varying))

    def __call__(self, prompt: str, *, prior=4.0, decoder=8.0, steps=(3, 3, 3), seed=3) -> Image.Image:
        first, second, last = steps
        counts = {"prior_num_inference_steps": first, "decoder_num_inference_steps": second}
        scales = {"prior_guidance_scale": prior, "decoder_guidance_scale": decoder}
        if (prior > 1) == (decoder > 1):
            return self.pipe(
                prompt, **counts, **scales, super_res_num_inference_steps=last, generator=generator(seed)
            ).images[0]
        raise ValueError("it guides both or none")

    def vary(self, photo: Image.Image, *, guidance: float, seed: int = 3) -> Image.Image:
        counts = {"decoder_num_inference_steps": 3, "super_res_num_inference_steps": 3}
        return self.variations(photo, decoder_guidance_scale=guidance, **counts, generator=generator(seed)).images[0]


def _Stepper(config: Any) -> Any:
    """DDPMScheduler with unCLIP's settings, called as UnCLIPScheduler is."""

    class Stepper(diffusers.DDPMScheduler):
        def step(self, output: Tensor, timestep: Any, sample: Tensor, prev_timestep: Any = None, **more: Any) -> Any:
            return super().step(output, timestep, sample, **more)

    return Stepper(
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="linspace",
        **{key: config[key] for key in ("variance_type", "prediction_type", "clip_sample", "clip_sample_range")},
    )


@torch.no_grad()
def _karlo(root: Path) -> Measured:
    theirs = Karlo(root)
    torch.manual_seed(1)
    x, t, context = torch.randn(2, 3, 16, 16), torch.tensor([981.0, 20.0]), torch.randn(2, 9, 32)
    labels = torch.randn(2, 64)
    expected = theirs.parts["decoder"](x, t, encoder_hidden_states=context, class_labels=labels).sample
    component = _largest(build.load(root / "text" / "decoder")(x, t, context, class_labels=labels), expected)
    settings = {"prompt": "a red apple", "steps": 3, "stage": ("prior:steps=3", "super_res:steps=3")}
    [ours] = draw(root / "text", **settings)
    apart = _apart(ours.image, theirs("a red apple"))
    photo = Image.effect_noise((32, 32), 90).convert("RGB")
    [varied] = draw(root / "image", init=photo, steps=3, stage=("super_res:steps=3",))
    apart = max(apart, _apart(varied.image, theirs.vary(photo, guidance=8.0)))
    names = "`kakaobrain/karlo-v1-alpha`, `kakaobrain/karlo-v1-alpha-image-variations`"
    return Measured("unCLIP (DALL·E 2, as Karlo), variations", names, component, apart)
