"""Stable unCLIP, of texts and of images, against diffusers' pipelines: whole images, 2/255 apart at most."""

import shutil

import numpy as np
import pytest
import torch

from gencli.errors import GencliError, UsageError
from gencli.image.load import load
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.image.stages import plan
from gencli.models import architecture
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import assert_same, draw, picture
from tests.oracles.systems import StableUnclip, opened
from tests.tiny.image import rewrite_json

STEPS = {"steps": 3, "stage": ("prior:steps=3",)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stable-unclip")


@pytest.fixture(scope="module")
def theirs(root):
    return StableUnclip(root)


@pytest.fixture(scope="module")
def varies(root, theirs):
    return load(opened(root / "image"), device="cpu")


@pytest.fixture(scope="module")
def draws(root, theirs):
    return load(opened(root / "text"), device="cpu")


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({}, {}),
        ({"guidance": 1.0, "noise_level": 700}, {"guidance": 1.0, "level": 700}),
        ({"noise_level": 20, "negative": "blue dog"}, {"level": 20, "negative": "blue dog"}),
    ],
)
def test_variations(varies, theirs, values, others):
    photo = picture(size=(32, 32))
    [made] = draw(None, pipeline=varies, init=photo, prompt="a red apple", steps=3, **values)
    assert_same(made.image, theirs.vary(photo, "a red apple", **others))


def test_each_of_a_batch_is_as_alone(varies, theirs):
    """The noise of an embedding is each image's own."""
    photo = picture(size=(32, 32))
    many = draw(None, pipeline=varies, init=photo, count=2, batch=2, steps=3, noise_level=300)
    for i, one in enumerate(many):
        assert_same(one.image, theirs.vary(photo, level=300, seed=3 + i))


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({"negative": "blue dog"}, {"negative": "blue dog"}),
        ({"guidance": 1.0, "stage": (*STEPS["stage"], "prior:cfg-scale=1")}, {"guidance": 1.0, "prior": 1.0}),
        ({"noise_level": 200, "count": 2, "batch": 2}, {"level": 200}),
    ],
)
def test_of_a_text(draws, theirs, values, others):
    made = draw(None, pipeline=draws, prompt="a red apple", **STEPS | values)
    for i, one in enumerate(made):
        assert_same(one.image, theirs("a red apple", seed=3 + i, **others))
    assert np.asarray(made[0].image).std() > 10


def test_what_is_asked(root, theirs):
    checkpoint = opened(root / "text")
    plans = plan(resolve(ImageRequest(prompt="apple", seed=1), checkpoint), checkpoint)
    assert [(one.stage.name, len(one.steps), one.request.guidance) for one in plans] == [
        ("prior", 25, 4.0),
        ("base", 20, 10.0),
    ]
    assert plans[1].request.noise_level == 0 and plans[1].request.width == 128
    with pytest.raises(UsageError, match="image varies an image, and needs one to start from"):
        resolve(ImageRequest(prompt="apple"), opened(root / "image"))


@pytest.mark.parametrize(
    ("folder", "part", "change", "message"),
    [
        ("image", "unet", {"projection_class_embeddings_input_dim": 48}, "UNet of width 48: image_normalizer of 32"),
        ("image", "unet", {"class_embed_type": None}, "UNet with class_embed_type = None is not supported"),
        ("image", "image_encoder", {"projection_dim": 48}, "image_encoder of width 48: image_normalizer of 32"),
        ("text", "prior", {"embedding_dim": 48}, "prior of width 48"),
        ("text", "prior_text_encoder", {"hidden_size": 48}, "prior_text_encoder with hidden_size = 48 do not fit"),
    ],
)
def test_parts_that_do_not_fit(root, theirs, tmp_path, folder, part, change, message):
    copy = shutil.copytree(root / folder, tmp_path / folder)
    rewrite_json(copy / part / "config.json", lambda config: config | change)
    with pytest.raises(GencliError, match=message):
        opened(copy)


def test_a_part_that_is_missing(root, theirs, tmp_path):
    copy = shutil.copytree(root / "image", tmp_path / "image")
    rewrite_json(copy / "model_index.json", lambda index: index | {"image_normalizer": [None, None]})
    with pytest.raises(GencliError, match="StableUnCLIPImg2ImgPipeline without image_normalizer"):
        opened(copy)


def test_names_and_shapes():
    """stable-diffusion-2-1-unclip's UNet, without a number in it."""
    config = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048, "sample_size": 96}
    module = architecture("UNet2DConditionModel")
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        theirs = diffusers.UNet2DConditionModel(**config).state_dict()
    assert {key: one.shape for key, one in ours.items()} == {key: one.shape for key, one in theirs.items()}
    assert ours["class_embedding.linear_1.weight"].shape == (1280, 2048)
