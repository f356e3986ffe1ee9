"""Whole pictures against diffusers' pipelines, from the same seed: at most 2/255 apart at any pixel.

Where diffusers' DDIM takes a wrong previous timestep (trailing, at step counts that do not divide T) the formula of
DDIM, written out in `by_formula`, is the oracle.
"""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.checkpoint import open_checkpoint
from gencli.image.generate import Denoised, Picture, generate
from gencli.image.pipeline import load
from gencli.image.request import ImageRequest
from gencli.image.settings import resolve
from tests.tiny_image import SCHEDULER, make_ddpm, make_stable_diffusion, rewrite_json

SIZE = {"width": 96, "height": 64}
PROMPT, NEGATIVE = "a red apple on the sun", "blue dog"
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
SETTINGS = [
    ("ddim", {}),
    ("ddim", {"eta": 0.5}),
    ("ddpm", {}),
    ("euler", {}),
    ("euler", {"karras": True}),
    ("euler_a", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_2m", {"karras": True}),
]


def names(setting):
    return setting if isinstance(setting, str) else "-".join(f"{k}={v}" for k, v in setting.items()) or "plain"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint a kind, and the same in diffusers."""
    root = tmp_path_factory.mktemp("checkpoints")
    pipes = {kind: make_stable_diffusion(root / kind, kind) for kind in ("sd15", "sd21")}
    pipes["fp16"] = make_stable_diffusion(root / "fp16", "sd15", variant="fp16", hub_names=False)
    pipes["ddpm"] = make_ddpm(root / "ddpm")
    return {kind: (root / kind, pipe) for kind, pipe in pipes.items()}


def opened(folder, **kwargs):
    return load(open_checkpoint(Source(folder.name, folder, "folder")), device="cpu", **kwargs)


def draw(folder, init=None, mask=None, prompts=None, **values):
    """Our pictures, as a list of the events' pictures."""
    pipeline = opened(folder)
    given = {"init": None if init is None else "init.png", "mask": None if mask is None else "mask.png"}
    request = ImageRequest(**{"seed": 3, **given, **values})
    request = resolve(request, pipeline.checkpoint, None if init is None else init.size)
    events = list(generate(pipeline, request, prompts, init=init, mask=mask))
    return [event for event in events if isinstance(event, Picture)]


def with_scheduler(pipe, sampler, karras=False, kind=None):
    """The pipeline with the sampler's scheduler, on the checkpoint's own schedule."""
    more = {"use_karras_sigmas": True} if karras else {}
    cls = getattr(diffusers, SCHEDULERS[sampler])
    made = (kind or type(pipe))(**{**pipe.components, "scheduler": cls.from_config(pipe.scheduler.config, **more)})
    made.set_progress_bar_config(disable=True)
    return made


def generator(seed=3):
    return torch.Generator("cpu").manual_seed(seed)


def assert_same(ours, theirs, tolerance=2):
    a, b = (np.asarray(image).astype(int) for image in (ours, theirs))
    assert a.shape == b.shape
    assert a.std() > 10  # a picture, not a flat one
    assert np.abs(a - b).max() <= tolerance


def picture(seed=0, size=(96, 64)):
    """A smooth picture of some colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def half_mask():
    array = np.zeros((64, 96), np.uint8)
    array[10:50, 30:] = 255
    return Image.fromarray(array)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(("sampler", "options"), SETTINGS, ids=names)
@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_text_to_image(folders, kind, sampler, options, guidance):
    folder, pipe = folders[kind]
    ours = draw(
        folder, prompt=PROMPT, negative=NEGATIVE, sampler=sampler, guidance=guidance, steps=5, **options, **SIZE
    )
    theirs = with_scheduler(pipe, sampler, options.get("karras", False))(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=guidance,
        num_inference_steps=5,
        eta=options.get("eta", 0.0),
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)
