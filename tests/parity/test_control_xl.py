"""ControlNets, inpainting UNets and editing of SDXL against diffusers' pipelines."""

import pytest

from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.controlnet import load_control, open_control
from gencli.image.generate import Picture, generate
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import (
    NEGATIVE,
    PROMPT,
    SIZE,
    assert_same,
    draw,
    generator,
    half_mask,
    opened_once,
    picture,
    with_scheduler,
)
from tests.tiny.control import CONTROLNET_XL, edges, make_controlnet, make_xl
from tests.tiny.image import rewrite_json
from tests.tiny.sdxl import as_kind, make_sdxl


def test_controlnet(tmp_path):
    pipe, net = make_sdxl(tmp_path / "xl"), make_controlnet(tmp_path / "canny", CONTROLNET_XL)
    pipeline = opened_once(tmp_path / "xl")
    control = load_control(open_control(Source("canny", tmp_path / "canny", "folder"), pipeline.checkpoint), pipeline)
    named = {"control": ("canny",), "control_image": ("edges.png",), "control_scale": (0.8,)}
    request = ImageRequest(prompt=PROMPT, negative=NEGATIVE, seed=3, steps=3, **named, **SIZE)
    events = generate(pipeline, resolve(request, pipeline.checkpoint), controls=[(control, edges())])
    ours = next(event.image for event in events if isinstance(event, Picture))
    led = as_kind(with_scheduler(pipe, "ddim"), diffusers.StableDiffusionXLControlNetPipeline, controlnet=net)
    values = {"negative_prompt": NEGATIVE, "num_inference_steps": 3, "controlnet_conditioning_scale": 0.8}
    theirs = led(PROMPT, image=edges(), generator=generator(), **values, **SIZE).images[0]
    assert_same(ours, theirs)
    with pytest.raises(AssertionError):
        assert_same(draw(tmp_path / "xl", prompt=PROMPT, negative=NEGATIVE, steps=3, **SIZE)[0].image, theirs, 10)
    make_controlnet(tmp_path / "sd15")
    with pytest.raises(GencliError, match="does not fit xl: its"):
        open_control(Source("sd15", tmp_path / "sd15", "folder"), pipeline.checkpoint)


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inpainting(tmp_path, strength):
    pipe = make_xl(tmp_path, diffusers.StableDiffusionXLInpaintPipeline, 9)
    values = {"prompt": PROMPT, "negative": NEGATIVE, "strength": strength, "steps": 4}
    ours = draw(tmp_path, picture(), half_mask(), **values, **SIZE)
    theirs = with_scheduler(pipe, "ddim")(
        PROMPT,
        image=picture(),
        mask_image=half_mask(),
        negative_prompt=NEGATIVE,
        strength=strength,
        guidance_scale=5.0,
        num_inference_steps=4,
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_editing(tmp_path):
    pipe = make_xl(tmp_path, diffusers.StableDiffusionXLInstructPix2PixPipeline, 8)
    ours = draw(tmp_path, picture(), prompt=PROMPT, negative=NEGATIVE, image_guidance=2.0, steps=4, **SIZE)
    values = {"negative_prompt": NEGATIVE, "guidance_scale": 5.0, "image_guidance_scale": 2.0}
    theirs = with_scheduler(pipe, "ddim")(
        PROMPT, image=picture(), num_inference_steps=4, generator=generator(), **values, **SIZE
    ).images[0]
    assert_same(ours[0].image, theirs)
    rewrite_json(tmp_path / "model_index.json", lambda raw: raw | {"is_cosxl_edit": True})
    with pytest.raises(GencliError, match="is_cosxl_edit"):
        open_image_checkpoint(Source("cosxl", tmp_path, "folder"))
