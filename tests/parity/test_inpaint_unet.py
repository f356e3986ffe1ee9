"""Inpainting UNets, which read the mask and what it leaves of the picture, against diffusers' pipeline."""

import pytest

from gencli.errors import GencliError, UsageError
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import PROMPT, SIZE, assert_same, draw, generator, half_mask, opened, picture
from tests.oracles.pipelines import with_scheduler as with_sampler
from tests.tiny.control import make_inpaint
from tests.tiny.image import rewrite_json


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpaint")
    return folder, make_inpaint(folder)


@pytest.mark.parametrize(
    ("sampler", "options", "guidance"),
    [("ddim", {}, 7.5), ("ddim", {"eta": 0.5}, 1.0), ("euler", {}, 7.5), ("euler_a", {}, 7.5), ("dpmpp_2m", {}, 1.0)],
)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_equals_diffusers(inpaint, sampler, options, guidance, strength):
    folder, pipe = inpaint
    values = {"prompt": PROMPT, "negative": "blue dog", "guidance": guidance, "strength": strength, "steps": 5}
    ours = draw(folder, picture(), half_mask(), sampler=sampler, **values, **options, **SIZE)
    theirs = with_sampler(pipe, sampler)(
        PROMPT,
        image=picture(),
        mask_image=half_mask(),
        negative_prompt="blue dog",
        guidance_scale=guidance,
        strength=strength,
        num_inference_steps=5,
        eta=options.get("eta", 0.0),
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_other_sizes_and_each_of_several_alone(inpaint):
    folder, pipe = inpaint
    big, mask = picture(size=(150, 130)), half_mask().resize((75, 131))
    values = {"prompt": PROMPT, "steps": 3, "init": big, "mask": mask, **SIZE}
    several = draw(folder, **values, count=2, batch=2)
    theirs = with_sampler(pipe, "ddim")(
        PROMPT, image=big, mask_image=mask, num_inference_steps=3, generator=generator(4), **SIZE
    ).images[0]
    assert_same(several[1].image, theirs)
    assert_same(several[1].image, draw(folder, **values, seed=4)[0].image, tolerance=1)


def test_the_mask_and_the_picture_matter(inpaint):
    folder, _ = inpaint
    values = {"prompt": PROMPT, "steps": 2, **SIZE}
    one = draw(folder, picture(), half_mask(), **values)[0].image
    for other in [draw(folder, picture(1), half_mask(), **values), draw(folder, picture(), picture(), **values)]:
        with pytest.raises(AssertionError):
            assert_same(one, other[0].image, tolerance=4)


@pytest.mark.parametrize("given", [{}, {"init": "a.png"}, {"init": "a.png", "strength": 0.5}])
def test_without_a_picture_and_a_mask_there_is_a_hint(inpaint, given):
    with pytest.raises(UsageError, match="paints by a mask") as caught:
        resolve(ImageRequest(**given), opened(inpaint[0]).checkpoint)
    assert "--mask" in (caught.value.hint or "")


def test_of_the_text_to_image_class_too(inpaint, tmp_path):
    """What a merge tool wrote over an inpainting checkpoint."""
    folder = tmp_path / "merged"
    pipe = make_inpaint(folder)
    rewrite_json(folder / "model_index.json", lambda raw: raw | {"_class_name": "StableDiffusionPipeline"})
    ours = draw(folder, picture(), half_mask(), prompt=PROMPT, steps=2, **SIZE)
    theirs = with_sampler(pipe, "ddim", kind=diffusers.StableDiffusionInpaintPipeline)(
        PROMPT, image=picture(), mask_image=half_mask(), num_inference_steps=2, generator=generator(), **SIZE
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_a_unet_that_does_not_fit_its_autoencoder_is_refused(tmp_path):
    make_inpaint(tmp_path)
    rewrite_json(tmp_path / "vae" / "config.json", lambda raw: raw | {"latent_channels": 8})
    with pytest.raises(GencliError, match="in_channels = 9 is not supported"):
        opened(tmp_path)
    rewrite_json(tmp_path / "vae" / "config.json", lambda raw: raw | {"latent_channels": 4})
    rewrite_json(tmp_path / "unet" / "config.json", lambda raw: raw | {"out_channels": 9})
    with pytest.raises(GencliError, match="out_channels = 9 is not supported"):
        opened(tmp_path)
