"""Editing by instruction (InstructPix2Pix) against diffusers' pipeline."""

import pytest
import torch

from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.guidance import guide_edit
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.pipelines import PROMPT, assert_same, draw, generator, opened, opened_once, picture
from tests.oracles.pipelines import with_scheduler as with_sampler
from tests.tiny.control import make_instruct
from tests.tiny.image import rewrite_json


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct")
    return folder, make_instruct(folder)


@pytest.mark.parametrize(
    ("sampler", "options", "guidance", "image_guidance"),
    [
        ("ddim", {}, 7.5, 1.5),
        ("ddim", {"eta": 0.5}, 4.0, 1.0),
        ("euler_a", {}, 7.5, 2.5),
        ("euler", {}, 7.5, 1.5),
        ("dpmpp_2m", {}, 1.0, 1.5),
    ],
)
def test_equals_diffusers(instruct, sampler, options, guidance, image_guidance):
    folder, pipe = instruct
    values = {"prompt": PROMPT, "negative": "blue dog", "guidance": guidance, "image_guidance": image_guidance}
    ours = draw(folder, picture(), sampler=sampler, steps=5, **values, **options)
    theirs = with_sampler(pipe, sampler)(
        PROMPT,
        image=picture(),
        negative_prompt="blue dog",
        guidance_scale=guidance,
        image_guidance_scale=image_guidance,
        num_inference_steps=5,
        eta=options.get("eta", 0.0),
        generator=generator(),
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_defaults_other_sizes_and_each_of_several_alone(instruct):
    folder, pipe = instruct
    odd = picture(size=(99, 70))
    several = draw(folder, odd, prompt=PROMPT, steps=3, count=2, batch=2)
    assert several[1].request.image_guidance == 1.5 and several[1].request.strength is None
    theirs = with_sampler(pipe, "ddim")(PROMPT, image=odd, num_inference_steps=3, generator=generator(4)).images[0]
    assert several[1].image.size == (96, 64)
    assert_same(several[1].image, theirs)
    assert_same(several[1].image, draw(folder, odd, prompt=PROMPT, steps=3, seed=4)[0].image, tolerance=1)


@torch.no_grad()
def test_below_1_the_formula_holds(instruct):
    """diffusers guides by nothing at all, the text neither, when the picture's scale is below 1."""
    folder, pipe = instruct
    x = torch.randn((1, 4, 8, 12), generator=generator())
    pixels = pipe.image_processor.preprocess(picture())
    seen = pipe.vae.encode(pixels).latent_dist.mode()
    ids = pipe.tokenizer([PROMPT, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    text, empty = pipe.text_encoder(ids).last_hidden_state.chunk(2)

    def says(context, image):
        return pipe.unet(torch.cat([x, image], dim=1), 999, encoder_hidden_states=context).sample

    full, half, none = says(text, seen), says(empty, seen), says(empty, torch.zeros_like(seen))
    eps = none + 0.5 * (half - none) + 5.0 * (full - half)
    torch.testing.assert_close(guide_edit(full, half, none, 5.0, 0.5), eps, atol=1e-5, rtol=0)
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    a, b = float(alphas[999]), float(alphas[0])
    latents = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    theirs = pipe.image_processor.postprocess(decoded)[0]
    values = {"prompt": PROMPT, "steps": 1, "spacing": "trailing", "guidance": 5.0, "image_guidance": 0.5}
    assert_same(draw(folder, picture(), **values)[0].image, theirs)
    with pytest.raises(AssertionError):
        assert_same(draw(folder, picture(), **{**values, "image_guidance": 1.0})[0].image, theirs, tolerance=4)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "edits an image as the prompt says"),
        ({"init": "a.png", "strength": 0.5}, "--strength would have no effect"),
        ({"init": "a.png", "mask": "b.png"}, "--mask would have no effect"),
    ],
)
def test_what_it_cannot_follow(instruct, given, match):
    with pytest.raises(UsageError, match=match):
        resolve(ImageRequest(**given), opened_once(instruct[0]).checkpoint)


def test_a_unet_that_reads_no_picture_is_refused(tmp_path):
    make_instruct(tmp_path)
    rewrite_json(tmp_path / "unet" / "config.json", lambda raw: raw | {"in_channels": 4})
    with pytest.raises(GencliError, match="in_channels = 4 is not supported"):
        opened(tmp_path)
