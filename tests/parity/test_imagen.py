"""DeepFloyd IF, both stages, against diffusers' pipelines: whole images from the same seed, 2/255 apart at most."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.errors import GencliError, UsageError
from gencli.image import stages
from gencli.image.generate import Denoised, generate
from gencli.image.load import load
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.oracles.pipelines import assert_same, draw, generator
from tests.oracles.systems import NEGATIVE, PROMPT, Imagen, opened
from tests.tiny.image import rewrite_json


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("if")


@pytest.fixture(scope="module")
def reference(root):
    return Imagen(root)


@pytest.fixture(scope="module")
def both(root, reference):
    return load(stages.add_upscaler(opened(root / "I"), opened(root / "II")), device="cpu")


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_the_first_stage(root, reference, guidance):
    ours = draw(root / "I", prompt=PROMPT, negative=NEGATIVE, guidance=guidance, steps=4)
    assert_same(ours[0].image, reference(guidance=guidance)[0])


@pytest.mark.parametrize(
    ("guidance", "stage", "others"),
    [
        (7.0, (), {}),
        (1.0, ("upscaler:cfg-scale=1",), {"upscaled": 1.0}),
        (7.0, ("upscaler:noise-level=20", "upscaler:cfg-scale=2"), {"level": 20, "upscaled": 2.0}),
    ],
)
def test_both_stages(both, reference, guidance, stage, others):
    settings = {"steps": 4, "guidance": guidance, "stage": ("upscaler:steps=3", *stage)}
    [ours] = draw(None, pipeline=both, prompt=PROMPT, negative=NEGATIVE, **settings)
    assert_same(ours.image, reference(guidance=guidance, **others)[1])


def test_each_of_a_batch_is_as_alone(both, reference):
    """All images pass the first stage before the second begins; each draws from its own seed."""
    settings = {"prompt": PROMPT, "steps": 4, "stage": ("upscaler:steps=3",)}
    many = draw(None, pipeline=both, count=3, batch=2, **settings)
    assert [one.index for one in many] == [0, 1, 2]
    for i, one in enumerate(many):
        assert_same(one.image, reference(seed=3 + i, negative="")[1])
    [alone] = draw(None, pipeline=both, **settings | {"seed": 4})
    assert_same(alone.image, many[1].image, tolerance=1)


def test_one_stage_is_held_at_a_time(root, reference):
    """The text encoder is let go before the first UNet is loaded, and that before the second one."""
    loaded, held = [], []
    checkpoint = stages.add_upscaler(opened(root / "I"), opened(root / "II"))
    pipeline = load(checkpoint, device="cpu", loading=loaded.append)
    assert loaded == []
    request = resolve(ImageRequest(prompt="apple", seed=1, steps=2, stage=("upscaler:steps=2",)), checkpoint)
    for event in generate(pipeline, request):
        parts = [pipeline.stages[0].conditioner_part, *(one.network_part for one in pipeline.stages)]
        held.append([part._value is not None for part in parts])
        assert isinstance(event, Denoised) is (len(held) <= 4)
    assert loaded == ["I: text_encoder", "I: unet", "II: unet"]
    assert held == [[False, True, False]] * 2 + [[False, False, True]] * 3
    assert "cpu" in pipeline.describe()
    assert all(parameter.is_meta for parameter in pipeline.stages[0].network_part.modules[0].parameters())


def test_the_second_stage_alone(root, reference, tmp_path):
    """It enlarges an image where it has a text encoder of its own."""
    folder = shutil.copytree(root / "II", tmp_path / "II")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(root / "I" / part, folder / part)
    parts = {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
    rewrite_json(folder / "model_index.json", lambda index: index | parts)
    small = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    [ours] = draw(folder, init=small, prompt=PROMPT, steps=3, guidance=4.0)
    image = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    settings = {"num_inference_steps": 3, "height": 64, "width": 64, "generator": generator()}
    expected = reference.second(**reference.texts(""), image=image, **settings).images[0]
    assert_same(ours.image, expected)
    with pytest.raises(UsageError, match="enlarges an image, and needs one to start from"):
        resolve(ImageRequest(prompt=PROMPT), opened(folder))
    with pytest.raises(UsageError, match="64x64 pixels of this image and no other"):
        resolve(ImageRequest(prompt=PROMPT, init="a.png", width=128), opened(folder), (16, 16))


def test_what_does_not_go_together(root, reference, tmp_path):
    first, second = opened(root / "I"), opened(root / "II")
    with pytest.raises(GencliError, match="II has no text encoder of its own"):
        stages.check_reads_text(second)
    with pytest.raises(GencliError, match="I cannot enlarge images"):
        stages.add_upscaler(first, first)
    with pytest.raises(UsageError, match="--noise-level is for upscalers"):
        stages.plan(resolve(ImageRequest(prompt="a", noise_level=20), first), first)
    other = shutil.copytree(root / "II", tmp_path / "II")
    rewrite_json(other / "unet" / "config.json", lambda config: config | {"encoder_hid_dim": 32})
    with pytest.raises(GencliError, match="encoder_hid_dim = 32 and a text encoder with d_model = 64"):
        stages.add_upscaler(first, opened(other))
    rewrite_json(other / "unet" / "config.json", lambda config: config | {"in_channels": 3})
    with pytest.raises(GencliError, match="in_channels = 3 is not supported"):
        opened(other)
    rewrite_json(other / "model_index.json", lambda index: index | {"image_noising_scheduler": [None, None]})
    with pytest.raises(GencliError, match="IFSuperResolutionPipeline without image_noising_scheduler"):
        opened(other)
    with pytest.raises(GencliError, match=r"the prompt has \d+ tokens, and this model reads at most 76"):
        draw(root / "I", prompt="apple " * 100, steps=1)
