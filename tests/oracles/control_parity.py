"""How far ControlNets, inpainting UNets and editing are from diffusers, for the README's table: `measure(folder)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gencli.checkpoints.find import Source
from gencli.image.controlnet import load_control, open_control
from gencli.image.generate import Picture, generate
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.ldm_parity import Measured, open_pipeline
from tests.oracles.libraries import diffusers
from tests.tiny.control import SMALL_CONTROLNET, edges, make_controlnet, make_inpaint, make_instruct
from tests.tiny.image import make_stable_diffusion

PROMPT, STEPS, WIDTH, HEIGHT = "a red apple on the sun", 5, 96, 64


def measure(root: Path) -> Iterator[Measured]:
    """Every family, its checkpoint made under `root`."""
    yield _controlnet(root)
    yield _inpaint(root / "inpaint")
    yield _instruct(root / "instruct")


@torch.no_grad()
def _controlnet(root: Path) -> Measured:
    pipe, reference = make_stable_diffusion(root / "sd"), make_controlnet(root / "canny", SMALL_CONTROLNET)
    ours = open_pipeline(root / "sd")
    control = load_control(open_control(Source("canny", root / "canny", "folder"), ours.checkpoint), ours)
    x, context, picture = _noise(2, 4, 16, 16), _noise(2, 77, 24), _noise(2, 3, 128, 128).sigmoid()
    t = torch.tensor([981.0, 20.0])
    down, middle = control(x, t, context, control.embed(picture))
    expected = reference(x, t, encoder_hidden_states=context, controlnet_cond=picture)
    pairs = zip([*down, middle], [*expected.down_block_res_samples, expected.mid_block_res_sample], strict=True)
    largest = max((own - other).abs().max().item() for own, other in pairs)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    led = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=reference, requires_safety_checker=False)
    theirs = _theirs(led, image=edges(), width=WIDTH, height=HEIGHT)
    named: dict[str, Any] = {"control": ("canny",), "control_image": ("edges.png",), "width": WIDTH, "height": HEIGHT}
    apart = _apart(_draw(ours, controls=[(control, edges())], **named), theirs)
    return Measured("ControlNet", "`lllyasviel/sd-controlnet-canny`, `lllyasviel/control_v11p_sd15_*`", largest, apart)


@torch.no_grad()
def _inpaint(folder: Path) -> Measured:
    pipe, ours = make_inpaint(folder), open_pipeline(folder)
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (30, 10, WIDTH, 50))
    theirs = _theirs(pipe, image=_picture(), mask_image=mask, strength=0.8, width=WIDTH, height=HEIGHT)
    own = _draw(ours, init=_picture(), mask=mask, strength=0.8, width=WIDTH, height=HEIGHT)
    names = "`runwayml/stable-diffusion-inpainting`"
    return Measured("inpainting UNet", names, _unet(pipe, ours, 9), _apart(own, theirs))


@torch.no_grad()
def _instruct(folder: Path) -> Measured:
    pipe, ours = make_instruct(folder), open_pipeline(folder)
    theirs = _theirs(pipe, image=_picture(), image_guidance_scale=1.5)
    own = _draw(ours, init=_picture())
    return Measured("InstructPix2Pix", "`timbrooks/instruct-pix2pix`", _unet(pipe, ours, 8), _apart(own, theirs))


def _unet(pipe: Any, ours: Pipeline, channels: int) -> float:
    x, t, context = _noise(2, channels, 16, 16), torch.tensor([981.0, 20.0]), _noise(2, 77, 24)
    expected = pipe.unet(x, t, encoder_hidden_states=context).sample
    return (ours.main.network(x, t, context) - expected).abs().max().item()


def _theirs(pipe: Any, **values: Any) -> Image.Image:
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), **values).images[0]


def _draw(ours: Pipeline, init: Any = None, mask: Any = None, controls: Any = (), **values: Any) -> Image.Image:
    files = {"init": None if init is None else "init.png", "mask": None if mask is None else "mask.png", "paste": False}
    request = ImageRequest(prompt=PROMPT, seed=3, steps=STEPS, **files, **values)
    request = resolve(request, ours.checkpoint, None if init is None else init.size)
    events = generate(ours, request, init=init, mask=mask, controls=controls)
    return next(event.image for event in events if isinstance(event, Picture))


def _picture() -> Image.Image:
    """A smooth picture of some colours."""
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _apart(ours: Image.Image, theirs: Image.Image) -> int:
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max())
