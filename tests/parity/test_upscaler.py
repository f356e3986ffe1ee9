"""The x4 upscaler against diffusers' pipeline: alone, after a model that draws, and in tiles without seams."""

import shutil

import numpy as np
import pytest
import torch

from gencli.errors import GencliError, UsageError
from gencli.image import stages
from gencli.image.conditioning import Conditioning
from gencli.image.load import load
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.image.upscale import Tiled
from gencli.models import architecture
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import NEGATIVE, PROMPT, assert_same, draw, generator, picture
from tests.oracles.systems import opened
from tests.tiny.image import UNET, make_stable_diffusion, rewrite_json
from tests.tiny.sdxl import quiet
from tests.tiny.systems import make_x4

PHOTO = picture(size=(24, 16))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("x4")


@pytest.fixture(scope="module")
def theirs(root):
    return quiet(make_x4(root / "x4"))


def enlarged(pipe, image, *, guidance=9.0, level=20, seed=3, negative=NEGATIVE, steps=4):
    settings = {"guidance_scale": guidance, "noise_level": level, "num_inference_steps": steps}
    return pipe(PROMPT, image=image, negative_prompt=negative, generator=generator(seed), **settings).images[0]


@pytest.mark.parametrize("values", [{}, {"guidance": 1.0}, {"noise_level": 350, "guidance": 4.0}])
def test_alone(root, theirs, values):
    [made] = draw(root / "x4", init=PHOTO, prompt=PROMPT, negative=NEGATIVE, steps=4, **values)
    level, guidance = values.get("noise_level", 20), values.get("guidance", 9.0)
    assert made.image.size == (96, 64)
    assert_same(made.image, enlarged(theirs, PHOTO, level=level, guidance=guidance))


def test_each_of_a_batch_is_as_alone(root, theirs):
    many = draw(root / "x4", init=PHOTO, prompt=PROMPT, steps=4, count=3, batch=2)
    for i, one in enumerate(many):
        assert_same(one.image, enlarged(theirs, PHOTO, seed=3 + i, negative=""))


def test_after_a_model_that_draws(root, theirs):
    """As diffusers does in two calls with one generator."""
    base = quiet(make_stable_diffusion(root / "sd", "sd15"))
    base.scheduler = diffusers.DDIMScheduler.from_config(base.scheduler.config)
    both = load(stages.add_upscaler(opened(root / "sd"), opened(root / "x4")), device="cpu")
    assert [one.stage.name for one in both.stages] == ["base", "upscaler"]
    asked = {"width": 32, "height": 24, "steps": 4, "stage": ("upscaler:steps=3",)}
    [made] = draw(None, pipeline=both, prompt=PROMPT, **asked)
    draws = generator()
    small = base(PROMPT, width=32, height=24, num_inference_steps=4, generator=draws, output_type="pt").images
    expected = theirs(PROMPT, image=small, generator=draws, num_inference_steps=3).images[0]
    assert made.image.size == (128, 96)
    assert_same(made.image, expected)


def test_tiles_have_no_seams():
    """A blur asked in tiles is what it is at once, but for what a tile cannot see beyond its edges: those rows and
    columns count 1 / (overlap + 1) each at most, and a third of the values there are not seen."""
    x = torch.rand(1, 3, 40, 29, generator=torch.Generator().manual_seed(1))

    def blur(x, timesteps, conditioning):
        return torch.nn.functional.avg_pool2d(x + conditioning.concat, 3, stride=1, padding=1)

    whole = blur(x, None, Conditioning(concat=x))
    tiled = Tiled(blur, 16)(x, torch.zeros(1), Conditioning(concat=x))
    share = 1 / (16 // 4 + 1)
    assert (tiled - whole).abs().max() <= 2 / 3 * (1 - (1 - share) ** 2)
    inner = Tiled(lambda x, timesteps, conditioning: 2 * x, 16)(x, torch.zeros(1), Conditioning())
    torch.testing.assert_close(inner, 2 * x)  # what a tile knows is exact everywhere
    assert Tiled(blur, 16)._begins(16) == [0] and Tiled(blur, 16)._begins(40) == [0, 12, 24]


def test_large_images_are_asked_in_tiles(root, theirs):
    """Steps between neighbours are no larger at the edges of tiles than elsewhere."""
    photo = picture(size=(80, 32))  # tiles of 32: 0, 24, 48
    [made] = draw(root / "x4", init=photo, prompt=PROMPT, steps=3, guidance=1.0)
    array = np.asarray(made.image).astype(float)
    assert array.shape == (128, 320, 3)
    steps = np.abs(np.diff(array, axis=1)).mean(axis=(0, 2))
    seams = [4 * edge + offset for edge in (24, 32, 48, 56) for offset in (-1, 0)]
    assert steps[seams].mean() <= 1.5 * np.delete(steps, seams).mean()


def test_what_is_refused(root, theirs, tmp_path):
    checkpoint = opened(root / "x4")
    with pytest.raises(UsageError, match="enlarges an image, and needs one to start from"):
        resolve(ImageRequest(prompt="a"), checkpoint)
    with pytest.raises(UsageError, match="--noise-level 400: x4 knows at most 350"):
        stages.plan(resolve(ImageRequest(prompt="a", init="a.png", noise_level=400), checkpoint, (16, 16)), checkpoint)
    folder = shutil.copytree(root / "x4", tmp_path / "x4")
    rewrite_json(folder / "unet" / "config.json", lambda config: config | {"in_channels": 4})
    with pytest.raises(GencliError, match="in_channels = 4 is not supported"):
        opened(folder)


def test_names_and_shapes():
    """In the size of the hub: 473.4 million parameters."""
    config = UNET["sd21"] | {
        "attention_head_dim": 8,
        "block_out_channels": [256, 512, 512, 1024],
        "cross_attention_dim": 1024,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        "in_channels": 7,
        "norm_num_groups": 32,
        "num_class_embeds": 1000,
        "only_cross_attention": [True, True, True, False],
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
    }
    module = architecture("UNet2DConditionModel")
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        theirs = diffusers.UNet2DConditionModel(**config).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}
    assert sum(tensor.numel() for tensor in ours.values()) / 1e6 == pytest.approx(473.4, abs=0.05)
