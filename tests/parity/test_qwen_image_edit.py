"""Qwen-Image-Edit against diffusers and transformers: the vision tower and the states of texts about images within
1e-4, whole images within 2/255. The areas that images are brought to are 16 times smaller here, on both sides."""

import dataclasses
import importlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gencli.checkpoints import build
from gencli.errors import GencliError
from gencli.image.families import FAMILIES
from gencli.image.families.base import of_area
from gencli.image.prompts import qwen_image_edit
from gencli.image.prompts.qwen_image_edit import BEGIN, pixels
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.json_files import read_json
from gencli.models import architecture
from tests.oracles.flow import NEGATIVE, PROMPT, SIZE
from tests.oracles.libraries import transformers
from tests.oracles.pipelines import assert_same, draw, generator, opened, picture
from tests.tiny.image import rewrite_json
from tests.tiny.qwen_image import TEXT, TOWER, Processor, make_qwen2_5_vl, make_qwen_image

SMALLER = 16
EDIT, PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
FIRST, SECOND = picture(1), picture(2, (64, 80))
SETTINGS = {"prompt": PROMPT, "negative": NEGATIVE, "steps": 3, "guidance": 3.0, **SIZE}
READER = {"model_type": "qwen2_5_vl_reader"}


@pytest.fixture(scope="module")
def small():
    """Areas of images on both sides, as long as this file runs."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pipeline_qwenimage_edit", "pipeline_qwenimage_edit_plus"):
            theirs = importlib.import_module(f"diffusers.pipelines.qwenimage.{module}")
            whole = theirs.calculate_dimensions
            patch.setattr(
                theirs, "calculate_dimensions", lambda area, ratio, whole=whole: whole(area // SMALLER, ratio)
            )
        for name in ("AREA", "SMALL_AREA"):
            patch.setattr(qwen_image_edit, name, getattr(qwen_image_edit, name) // SMALLER)
        for name in (EDIT, PLUS):
            rule = FAMILIES[name].references
            fewer = dataclasses.replace(rule, area=rule.area // SMALLER)
            patch.setitem(FAMILIES, name, dataclasses.replace(FAMILIES[name], references=fewer))
        yield


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """Both editors, the second with a time of its own for what it looks at, with diffusers' pipelines. Those tell
    transformers 5 not which tokens are an image's, so that it counts places as in a text: that is set right."""
    found = {}
    for name, zero in ((EDIT, False), (PLUS, True)):
        folder = tmp_path_factory.mktemp("edit") / name
        pipe = make_qwen_image(folder, name, zero_cond_t=zero)
        read = pipe.text_encoder.forward
        pipe.text_encoder.forward = lambda input_ids=None, read=read, **more: read(
            input_ids=input_ids, mm_token_type_ids=(input_ids == 393).int(), **more
        )
        found[name] = folder, pipe, opened(folder)
    return found


def seen(*images):
    return {"init": images[0], "named": {"b.png": images[-1]}, "reference": ("b.png",) * (len(images) - 1)}


@pytest.mark.parametrize("renamed", [False, True])
@torch.no_grad()
def test_states_of_texts_about_images(tmp_path, renamed):
    """Of two images, whose windows are not whole, under both kinds of names."""
    tower = TOWER | {"depth": 2, "fullatt_block_indexes": [1]}
    theirs = make_qwen2_5_vl(tmp_path, tower=tower)
    if renamed:
        tensors = load_file(tmp_path / "model.safetensors")
        tensors = {name.replace("visual.", "model.visual."): tensor for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours = build.load(tmp_path, config={**read_json(tmp_path / "config.json"), **READER})
    images = [picture(3, (224, 140)), picture(4, (100, 260))]
    given = Processor(None).images.Qwen2VLImageProcessorPil()(images=images, return_tensors="pt")
    made = [pixels(image, 28) for image in images]
    states = [ours.look(one) for one in made]
    expected = theirs.model.visual(given["pixel_values"], grid_thw=given["image_grid_thw"]).pooler_output
    torch.testing.assert_close(torch.cat(states), expected, atol=1e-4, rtol=0)
    shapes = [(one.shape[1] // 28, one.shape[2] // 28) for one in made]
    ids = [1, 2, 3, *[393] * len(states[0]), 5, 6, *[393] * len(states[1]), 7, 8, 9]
    ids = torch.tensor([ids])
    told = {"mm_token_type_ids": (ids == 393).int(), **given}
    expected = theirs.model(input_ids=ids, **told).last_hidden_state
    torch.testing.assert_close(ours.read(ids, states, shapes), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [EDIT, PLUS])
@torch.no_grad()
def test_the_text_encoder(made, name):
    folder, pipe, _ = made[name]
    images = [FIRST] if name == EDIT else [FIRST, SECOND]
    conditioner = opened(folder).main.conditioner.seeing(images)
    area = qwen_image_edit.AREA if name == EDIT else qwen_image_edit.SMALL_AREA
    sized = [one.resize(of_area(one.size, area), Image.Resampling.LANCZOS) for one in images]
    for text in ("", 'make the "fox"\n 你好  {}'):
        theirs, _ = pipe.encode_prompt([text], image=sized[0] if name == EDIT else sized)
        ours = conditioner.encode([text], ImageRequest())
        [length] = ours["lengths"].tolist()
        assert length == theirs.shape[1] and pipe.prompt_template_encode_start_idx == BEGIN
        torch.testing.assert_close(ours["caption"][:, :length], theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "images"), [(EDIT, [FIRST]), (PLUS, [FIRST]), (PLUS, [FIRST, SECOND])])
@torch.no_grad()
def test_images(made, name, images):
    _, pipe, pipeline = made[name]
    given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "true_cfg_scale": 3.0, "num_inference_steps": 3, **SIZE}
    theirs = pipe(image=images[0] if name == EDIT else images, generator=generator(), **given).images[0]
    [ours] = draw(None, pipeline=pipeline, **seen(*images), **SETTINGS)
    assert_same(ours.image, theirs)


def test_what_it_looks_at_changes_the_image(made):
    """So do the prompt and the order of images; each of a batch is as alone."""
    pipeline = made[PLUS][2]
    shown = ((FIRST, SECOND), (SECOND, FIRST), (FIRST,))
    images = [draw(None, pipeline=pipeline, **seen(*one), **SETTINGS)[0].image for one in shown]
    assert len({one.tobytes() for one in images}) == 3
    prompts = [PROMPT, "a much longer text about the dog and the girl"]
    together = draw(None, pipeline=pipeline, prompts=prompts, batch=2, **seen(FIRST, SECOND), **SETTINGS)
    assert_same(together[0].image, images[0], tolerance=1)


def test_defaults(made):
    """It draws at the size at which it sees the image; one edits one image, the other several."""
    checkpoint = made[EDIT][2].checkpoint
    request = resolve(ImageRequest(prompt="a", init="a.png"), checkpoint, (300, 200))
    assert (request.width, request.height) == of_area((300, 200), 1024 * 1024 // SMALLER)
    assert (request.steps, request.guidance, request.negative) == (50, 4.0, " ")
    asked = ImageRequest(prompt="a", init="a.png", reference=("b.png",))
    with pytest.raises(GencliError, match="looks at 1 image at most, and 2 are given"):
        resolve(asked, checkpoint, (300, 200))
    assert resolve(asked, made[PLUS][2].checkpoint, (300, 200)).reference == ("b.png",)
    with pytest.raises(GencliError, match="edits the whole image: --strength would have no effect"):
        resolve(ImageRequest(prompt="a", init="a.png", strength=0.5), checkpoint, (300, 200))


def test_sizes_at_which_images_are_seen():
    inpaint = importlib.import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_inpaint")
    for width, height in np.random.default_rng(1).integers(64, 3000, (300, 2)).tolist():
        for area in (1024 * 1024, 384 * 384):
            assert of_area((width, height), area) == inpaint.calculate_dimensions(area, width / height)[:2]
    assert of_area((3000, 1), 384 * 384)[1] == 32


def test_prompts_that_are_none(made):
    conditioner = opened(made[EDIT][0]).main.conditioner.seeing([FIRST])
    with pytest.raises(GencliError, match=r"the prompt has <\|image_pad\|> in it"):
        conditioner.encode(["a <|image_pad|> b"], ImageRequest())
    with pytest.raises(GencliError, match=r"the prompt has \d\d\d\d tokens, and this model reads at most 1024"):
        conditioner.encode(["the red apple " * 400], ImageRequest())
    long = "the dog " * 600 + "ran home"
    for side in ("left", "right"):
        assert len(conditioner.ids(long, side)) == BEGIN + conditioner.longest
    assert conditioner.ids(long, "left")[-12:] == conditioner.ids("ran home", None)[-12:]


def test_names_and_counts():
    """Every tensor of the real text encoder with its tower, 8.29 billion numbers in the file."""
    text = TEXT | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    tower = TOWER | {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    module = architecture("qwen2_5_vl_reader")
    config = {**text, "vision_config": tower, "image_token_id": 151655, **READER}
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        theirs = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text | {"model_type": "qwen2_5_vl_text"}, vision_config=tower)
        ).state_dict()
    assert sum(one.numel() for one in theirs.values()) == 8_292_166_656
    named = {}
    for name, tensor in theirs.items():
        target, change = module.LAYOUT.rename(name)
        named[target] = (tensor if change is None else change(tensor)).shape
    assert named == {name: tensor.shape for name, tensor in ours.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_config": None}, "text_encoder has no vision_config"),
        ({"vision_config": TOWER | {"out_hidden_size": 48}}, "out_hidden_size = 48"),
        ({"vision_config": TOWER | {"hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": TOWER | {"num_heads": 8}}, "cannot be turned by row and column"),
        ({"vision_config": TOWER | {"window_size": 14}}, "window_size = 14"),
        ({"vision_config": TOWER | {"nonesuch": 3}}, "nonesuch"),
        ({"rope_scaling": {"mrope_section": [1, 1, 1], "type": "default"}}, "mrope_section"),
    ],
)
def test_keys_that_are_not_supported_are_refused_by_name(made, tmp_path, changes, said):
    shutil.copytree(made[EDIT][0], tmp_path / "edit")
    inner = {"text_config": None} if "rope_scaling" in changes else {}
    rewrite_json(tmp_path / "edit" / "text_encoder" / "config.json", lambda raw: raw | changes | inner)
    with pytest.raises(GencliError, match=said):
        opened(tmp_path / "edit").main.conditioner_part.get()
