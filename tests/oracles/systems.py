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
from gencli.checkpoints.open import open_checkpoint
from gencli.image import stages
from gencli.image.checkpoint import ImageCheckpoint
from gencli.image.files.pictures import to_picture
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from tests.oracles import glide
from tests.oracles.ldm_parity import Measured
from tests.oracles.libraries import diffusers, sentencepiece, transformers
from tests.oracles.pipelines import draw, generator
from tests.tiny.glide import make_glide
from tests.tiny.image import make_tiny_vae
from tests.tiny.sdxl import quiet
from tests.tiny.systems import UNCLIP_SCHEDULERS, make_if, make_karlo, make_x4
from tests.tiny.unclip import make_kandinsky, make_stable_unclip

PROMPT, NEGATIVE = " A red Apple on the sun ", "blue dog"


def measure(root: Path) -> Iterator[Measured]:
    """Every system, its checkpoints made under `root`."""
    yield _karlo(root / "karlo")
    yield _imagen(root / "if")
    yield _upscaler(root / "x4")
    yield _kandinsky(root / "kandinsky")
    yield _stable_unclip(root / "stable-unclip")
    yield _glide(root / "glide")
    yield _tiny(root / "tiny")


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


class StableUnclip:
    """Stable unCLIP of texts and of images in diffusers; the prior is stepped as Karlo's is."""

    def __init__(self, root: Path):
        self.parts = make_stable_unclip(root)
        given = {**self.parts, "prior_scheduler": _Stepper(self.parts["prior_scheduler"].config)}
        encoder = given.pop("image_encoder")
        self.pipe = quiet(diffusers.StableUnCLIPPipeline(**given))
        shared = {name: part for name, part in given.items() if not name.startswith("prior")}
        processor = transformers.CLIPImageProcessor(size=32, crop_size=32)
        varying = {"image_encoder": encoder, "feature_extractor": processor}
        self.variations = quiet(diffusers.StableUnCLIPImg2ImgPipeline(**shared, **varying))

    def __call__(self, prompt: str, *, guidance=10.0, prior=4.0, level=0, seed=3, negative=None) -> Image.Image:
        scales = {"guidance_scale": guidance, "prior_guidance_scale": prior, "noise_level": level}
        counts = {"num_inference_steps": 3, "prior_num_inference_steps": 3}
        return self.pipe(prompt, negative_prompt=negative, **scales, **counts, generator=generator(seed)).images[0]

    def vary(self, photo: Image.Image, prompt="", *, guidance=10.0, level=0, seed=3, negative=None) -> Image.Image:
        settings = {"guidance_scale": guidance, "noise_level": level, "num_inference_steps": 3}
        return self.variations(photo, prompt, negative_prompt=negative, **settings, generator=generator(seed)).images[0]


class Kandinsky:
    """Kandinsky 2.2 in diffusers; the prior is stepped as Karlo's is."""

    def __init__(self, root: Path):
        self.parts = parts = make_kandinsky(root)
        own = {name: parts[name] for name in ("unet", "movq", "scheduler")}
        prior = {name.removeprefix("prior_"): part for name, part in parts.items() if name.startswith("prior_")}
        prior["scheduler"] = _Stepper(prior["scheduler"].config)
        processor = transformers.CLIPImageProcessor(size=32, crop_size=32)
        self.prior = quiet(diffusers.KandinskyV22PriorPipeline(**prior, image_processor=processor))
        self.decoder = quiet(diffusers.KandinskyV22Pipeline(**own))
        self.changer = quiet(diffusers.KandinskyV22Img2ImgPipeline(**own))

    def __call__(
        self, prompt: str, *, prior=4.0, guidance=4.0, negative=None, seed=3, init=None, strength=1.0, side=64
    ) -> Image.Image:
        draws = generator(seed)
        embeds = self.prior(
            prompt, negative_prompt=negative, guidance_scale=prior, num_inference_steps=3, generator=draws
        )
        return self.decode(embeds.image_embeds, embeds.negative_image_embeds, draws, guidance, init, strength, side)

    def decode(self, asked, none, draws, guidance=4.0, init=None, strength=1.0, side=64) -> Image.Image:
        """The image of embeddings."""
        given = {"image_embeds": asked, "negative_image_embeds": none, "guidance_scale": guidance, "generator": draws}
        given |= {"height": side, "width": side, "num_inference_steps": 4}
        if init is None:
            return self.decoder(**given).images[0]
        return self.changer(**given, image=init, strength=strength).images[0]

    def mixed(self, ingredients: list[tuple[str | Image.Image, float]], seed: int = 3) -> Image.Image:
        """Texts, whose embeddings are drawn together, and images."""
        draws, total = generator(seed), 0.0
        texts = [name for name, _ in ingredients if isinstance(name, str)]
        drawn = iter(self.prior(texts or [""], num_inference_steps=3, generator=draws).image_embeds)
        for one, weight in ingredients:
            total = total + weight * (next(drawn)[None] if isinstance(one, str) else self.embed(one))
        return self.decode(total, self.prior.get_zero_embed(), draws)

    @torch.no_grad()
    def embed(self, image: Image.Image) -> Tensor:
        pixels = self.prior.image_processor(image, return_tensors="pt").pixel_values
        return self.prior.image_encoder(pixels).image_embeds


def _Stepper(config: Any) -> Any:
    """DDPMScheduler with unCLIP's settings, called as UnCLIPScheduler is."""

    class Stepper(diffusers.DDPMScheduler):
        def step(  # whose names the pipelines look at
            self,
            output: Tensor,
            timestep: Any,
            sample: Tensor,
            prev_timestep: Any = None,
            generator: Any = None,
            return_dict: bool = True,
        ) -> Any:
            return super().step(output, timestep, sample, generator=generator, return_dict=return_dict)

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


@torch.no_grad()
def _kandinsky(root: Path) -> Measured:
    theirs = Kandinsky(root)
    torch.manual_seed(1)
    z, t, embeds = torch.randn(2, 4, 16, 8), torch.tensor([981.0, 20.0]), torch.randn(2, 32)
    expected = theirs.parts["unet"](z, t, None, added_cond_kwargs={"image_embeds": embeds}).sample
    component = _largest(build.load(root / "decoder" / "unet")(z, t, image_embeds=embeds), expected)
    decoded = theirs.parts["movq"].decode(z, force_not_quantize=True).sample
    component = max(component, _largest(build.load(root / "decoder" / "movq").decode(z), decoded))
    both = load(stages.add_prior(opened(root / "decoder"), opened(root / "prior")), device="cpu")
    settings = {"prompt": "a red apple", "steps": 4, "stage": ("prior:steps=3",), "width": 64, "height": 64}
    [ours] = draw(None, pipeline=both, **settings)
    names = "`kandinsky-community/kandinsky-2-2-decoder`, `kandinsky-community/kandinsky-2-2-prior`"
    return Measured("Kandinsky 2.2, mixing", names, component, _apart(ours.image, theirs("a red apple")))


@torch.no_grad()
def _stable_unclip(root: Path) -> Measured:
    theirs = StableUnclip(root)
    torch.manual_seed(1)
    x, t, context = torch.randn(2, 4, 16, 8), torch.tensor([981.0, 20.0]), torch.randn(2, 77, 32)
    labels = torch.randn(2, 64)
    expected = theirs.parts["unet"](x, t, encoder_hidden_states=context, class_labels=labels).sample
    component = _largest(build.load(root / "image" / "unet")(x, t, context, class_labels=labels), expected)
    photo = Image.effect_noise((32, 32), 90).convert("RGB")
    [varied] = draw(root / "image", init=photo, prompt="apple", steps=3, noise_level=20)
    [drawn] = draw(root / "text", prompt="apple", steps=3, stage=("prior:steps=3",))
    apart = max(_apart(varied.image, theirs.vary(photo, "apple", level=20)), _apart(drawn.image, theirs("apple")))
    return Measured("Stable unCLIP 2.1", "`stabilityai/stable-diffusion-2-1-unclip`", component, apart)


@torch.no_grad()
def _glide(root: Path) -> Measured:
    networks, component = make_glide(root), 0.0
    torch.manual_seed(1)
    for name, network in networks.items():
        file, x = root / f"{name}.safetensors", torch.randn(1, network.inputs, 8, 12)
        parts = open_checkpoint(Source(name, file, "file")).parts
        text, unet = (
            build.load(file, config=parts[part].config, tensors=parts[part].tensors())
            for part in ("text_encoder", "unet")
        )
        states, embeds = text(torch.tensor([[5, 6, *[0] * 14]]), torch.arange(16)[None] < 2)
        eps_and_v = unet(x, torch.tensor([20.0]), encoder_hidden_states=states, text_embeds=embeds)
        component = max(component, _largest(eps_and_v, torch.cat(network.told(x, 20.0, [5, 6]), 1)))
    base, upsampler = (
        open_image_checkpoint(Source(name, root / f"{name}.safetensors", "file")) for name in ("base", "upsample")
    )
    ids = base.tokenizer().encode("a girl with her dog", add_special_tokens=False)
    both = load(stages.add_upscaler(base, upsampler), device="cpu")
    [ours] = draw(None, pipeline=both, prompt="A girl with her dog", steps=3, width=8, height=8)
    expected = glide.both(networks["base"], networks["upsample"], ids, [], scale=3.0, steps=3)
    return Measured("GLIDE", "`base.pt`, `upsample.pt`, and to inpaint", component, _apart(ours.image, expected))


@torch.no_grad()
def _tiny(root: Path) -> Measured:
    reference = make_tiny_vae(root)
    model = build.load(root)
    torch.manual_seed(1)
    x, z = torch.rand(2, 3, 48, 32) * 2 - 1, 4 * torch.randn(2, 4, 6, 5)
    decoded = reference.decode(z).sample
    component = max(_largest(model.encode(x), reference.encode(x).latents), _largest(model.decode(z), decoded))
    apart = _apart(to_picture(model.decode(z)[0]), to_picture(decoded[0]))
    return Measured("AutoencoderTiny", "`madebyollin/taesd`, `madebyollin/taesdxl`", component, apart)
