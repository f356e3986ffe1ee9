"""Whole images by gencli and by diffusers' pipelines from the same seed, and how near they must be."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.image.generate import NO_IMAGES, Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.libraries import diffusers

SIZE = {"width": 96, "height": 64}
PROMPT, NEGATIVE = "a red apple on the sun", "blue dog"
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}


def opened(folder, **kwargs):
    return load(open_image_checkpoint(Source(folder.name, folder, "folder")), device="cpu", **kwargs)


@functools.cache
def opened_once(folder):
    return opened(folder)


def draw(folder, init=None, mask=None, prompts=None, pipeline=None, named=NO_IMAGES, **values):
    """Our finished pictures."""
    pipeline = pipeline or opened_once(folder)
    given = {"init": None if init is None else "init.png", "mask": None if mask is None else "mask.png", "paste": False}
    request = ImageRequest(**{"seed": 3, **given, **values})
    request = resolve(request, pipeline.checkpoint, None if init is None else init.size)
    events = list(generate(pipeline, request, prompts, init=init, mask=mask, named=named))
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


def assert_equal_images(ours, theirs):
    """Equal but for rounding, from the same tensors in two files: a mapped tensor lies where its file has it, and some
    CPUs add in another order at another alignment, so that a value may round to its neighbour."""
    assert_same(ours, theirs, tolerance=1)


def picture(seed=0, size=(96, 64)):
    """A smooth picture of some colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def half_mask():
    array = np.zeros((64, 96), np.uint8)
    array[10:50, 30:] = 255
    return Image.fromarray(array)
