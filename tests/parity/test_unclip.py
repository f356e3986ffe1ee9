"""Karlo, and its image variations, against diffusers' pipelines: every part, and whole images, 2/255 apart at most.

The step oracle is DDPMScheduler with unCLIP's settings: UnCLIPScheduler's own float32 is up to 2.6e-3 from float64.
"""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.checkpoints.build import load as load_part
from gencli.errors import GencliError, UsageError
from gencli.image.generate import generate
from gencli.image.load import load
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.image.stages import plan
from gencli.image.unclip import embed_image
from gencli.models import architecture
from tests.oracles.libraries import diffusers, transformers
from tests.oracles.pipelines import assert_same, draw, picture
from tests.oracles.systems import Karlo, opened
from tests.tiny.image import rewrite_json
from tests.tiny.systems import RESNETS

STEPS = {"steps": 3, "stage": ("prior:steps=3", "super_res:steps=3")}
TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("karlo")


@pytest.fixture(scope="module")
def theirs(root):
    return Karlo(root)


@pytest.fixture(scope="module")
def ours(root, theirs):
    return load(opened(root / "text"), device="cpu")


@torch.no_grad()
def test_parts(root, theirs):
    torch.manual_seed(1)
    x, pooled, states = torch.randn(2, 32), torch.randn(2, 32), torch.randn(2, 77, 32)
    mask, t = torch.arange(77) < torch.tensor([[77], [5]]), torch.tensor([981.0, 20.0])
    given = {"proj_embedding": pooled, "encoder_hidden_states": states, "attention_mask": mask}
    expected = theirs.parts["prior"](x, t, **given).predicted_image_embedding
    assert expected.std() > 0.1
    torch.testing.assert_close(load_part(root / "text" / "prior")(x, t, **given), expected, **TOLERANCE)
    image, text = torch.randn(2, 32), {"prompt_embeds": pooled, "text_encoder_hidden_states": states}
    expected = theirs.parts["text_proj"](image_embeddings=image, do_classifier_free_guidance=False, **text)
    for one, other in zip(load_part(root / "text" / "text_proj")(image, pooled, states), expected, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    photo = picture(size=(48, 40))
    processor = transformers.CLIPImageProcessor(size=32, crop_size=32)
    pixels = processor(photo, return_tensors="pt").pixel_values
    expected = theirs.parts["image_encoder"](pixels).image_embeds
    torch.testing.assert_close(
        embed_image(load_part(root / "image" / "image_encoder"), photo), expected, atol=2e-2, rtol=0
    )
    torch.testing.assert_close(load_part(root / "image" / "image_encoder")(pixels), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({}, {}),
        ({"guidance": 1.0, "stage": (*STEPS["stage"], "prior:cfg-scale=1")}, {"prior": 1.0, "decoder": 1.0}),
        ({"guidance": 3.0, "stage": (*STEPS["stage"], "prior:cfg-scale=2")}, {"prior": 2.0, "decoder": 3.0}),
        ({"steps": 5, "stage": ("prior:steps=4", "super_res:steps=2")}, {"steps": (4, 5, 2)}),
    ],
)
def test_images(ours, theirs, values, others):
    [made] = draw(None, pipeline=ours, prompt="a red apple!", **{**STEPS, **values})
    assert_same(made.image, theirs("a red apple!", **others))


def test_each_of_a_batch_is_as_alone(ours, theirs):
    many = draw(None, pipeline=ours, prompt="the sun", count=3, batch=2, **STEPS)
    for i, one in enumerate(many):
        assert_same(one.image, theirs("the sun", seed=3 + i))
        assert_same(draw(None, pipeline=ours, prompt="the sun", seed=3 + i, **STEPS)[0].image, one.image, tolerance=1)
    [negative] = draw(None, pipeline=ours, prompt="the sun", negative="blue dog", **STEPS)
    assert np.abs(np.asarray(negative.image).astype(int) - np.asarray(many[0].image)).max() > 2


def test_variations(root, theirs):
    photo = picture(size=(32, 32))
    asked = {"init": photo, "steps": 3, "stage": ("super_res:steps=3",)}
    for guidance in (8.0, 1.0):
        [made] = draw(root / "image", guidance=guidance, **asked)
        assert_same(made.image, theirs.vary(photo, guidance=guidance))


def test_stages_and_what_they_hold(root, theirs):
    loaded, checkpoint = [], opened(root / "text")
    pipeline = load(checkpoint, device="cpu", loading=loaded.append)
    request = resolve(ImageRequest(prompt="apple", seed=1, **STEPS), checkpoint)
    assert (request.width, request.height, request.sampler, request.guidance) == (32, 32, "ddpm", 8.0)
    names = [(event.stage.name, event.total) for event in list(generate(pipeline, request))[:-1]]
    assert names == [("prior", 3)] * 3 + [("decoder", 3)] * 3 + [("super_res", 3)] * 3
    parts = ("text_proj", "text_encoder", "prior", "decoder", "super_res_first", "super_res_last")
    assert loaded == [f"text: {part}" for part in parts]
    plans = plan(resolve(ImageRequest(prompt="apple", seed=1), checkpoint), checkpoint)
    assert [len(one.steps) for one in plans] == [25, 25, 6, 1]
    assert [one.request.guidance for one in plans[:2]] == [4.0, 8.0]
    with pytest.raises(UsageError, match="give at least 2"):
        plan(request.replace(stage=("super_res:steps=1",)), checkpoint)
    for stage, message in (
        ("super_res_last:steps=3", "--stage super_res_last: text has no such stage"),
        ("super_res:cfg-scale=3", "--stage super_res: cfg-scale would have no effect"),
        ("prior:noise-level=3", "--stage prior: noise-level would have no effect"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(request.replace(stage=(stage,)), checkpoint)
    assert [event.index for event in list(generate(pipeline, request))[6:9]] == [0, 1, 2]


def test_the_main_stage_is_set_by_its_name_too(root, theirs):
    checkpoint = opened(root / "text")
    asked = ImageRequest(prompt="apple", seed=1, stage=("decoder:steps=3", "decoder:cfg-scale=2", "prior:steps=2"))
    resolved = resolve(asked, checkpoint)
    assert (resolved.steps, resolved.guidance, resolved.stage) == (3, 2.0, ("prior:steps=2",))
    assert resolve(asked.replace(steps=3), checkpoint) == resolved
    with pytest.raises(UsageError, match="--stage decoder:steps=3 and --steps 4 differ"):
        resolve(asked.replace(steps=4), checkpoint)


@pytest.mark.parametrize(
    ("values", "folder", "message"),
    [
        ({"init": "a.png"}, "text", "text draws from noise alone: -i/--init would have no effect"),
        ({}, "image", "image varies an image, and needs one to start from"),
        ({"init": "a.png", "strength": 0.5}, "image", "varies the whole image: --strength would have no effect"),
        ({"weighted": True, "prompt": "(apple:1.2)"}, "text", "--weighted would have no effect"),
        ({"width": 33}, "text", "must be a multiple of 2"),
    ],
)
def test_refused_requests(root, theirs, values, folder, message):
    with pytest.raises(UsageError, match=message):
        resolve(
            ImageRequest(**{"prompt": "apple", **values}), opened(root / folder), (32, 32) if "init" in values else None
        )


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("prior", {"embedding_dim": 24}, "prior of width 24 and text_proj of 32 do not fit"),
        ("text_encoder", {"architectures": ["CLIPTextModel"]}, "text_encoder has no projection"),
        ("decoder", {"class_embed_type": None}, "decoder with class_embed_type = None is not supported"),
        ("decoder", {"cross_attention_dim": 24}, "decoder and text_proj have another cross_attention_dim each"),
        ("super_res_last", {"sample_size": 24}, "sample_size = 16 and 24"),
        ("super_res_first", {"in_channels": 3}, "super_res_first with in_channels = 3"),
    ],
)
def test_parts_that_do_not_fit(root, theirs, tmp_path, part, change, message):
    folder = shutil.copytree(root / "text", tmp_path / "text")
    rewrite_json(folder / part / "config.json", lambda config: config | change)
    with pytest.raises(GencliError, match=message):
        opened(folder)


def test_a_part_that_is_missing(root, theirs, tmp_path):
    folder = shutil.copytree(root / "text", tmp_path / "text")
    rewrite_json(folder / "model_index.json", lambda index: index | {"prior": [None, None]})
    with pytest.raises(GencliError, match="UnCLIPPipeline without prior"):
        opened(folder)


WIDE = {"block_out_channels": [320, 640, 960, 1280], "layers_per_block": 3, "norm_num_groups": 32}
DECODER = RESNETS | {
    **WIDE,
    "attention_head_dim": 64,
    "class_embed_type": "identity",
    "cross_attention_dim": 1536,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}
SUPER_RES = {
    **WIDE,
    "add_attention": False,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 4,
    "in_channels": 6,
    "out_channels": 3,
    "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
}


@pytest.mark.parametrize(
    ("name", "config", "millions", "tensors"),
    [
        ("PriorTransformer", {}, 1022.03, 338),
        ("UnCLIPTextProjModel", {"time_embed_dim": 1280, "cross_attention_dim": 1536}, 7.88, 11),
        ("UNet2DConditionModel", DECODER, 885.44, 716),
        ("UNet2DModel", SUPER_RES, 691.58, 408),
    ],
)
def test_names_and_shapes(name, config, millions, tensors):
    """In the sizes of the hub, without a number in them."""
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    cls, module = UnCLIPTextProjModel if name == "UnCLIPTextProjModel" else getattr(diffusers, name), architecture(name)
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        theirs = cls(**config).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
    assert len(ours) == tensors
    assert sum(tensor.numel() for tensor in ours.values()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_whole_images_are_pictures(ours):
    [made] = draw(None, pipeline=ours, prompt="apple", **STEPS)
    assert isinstance(made.image, Image.Image) and made.image.size == (32, 32)
