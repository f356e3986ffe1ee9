"""Kandinsky 2.2 against diffusers' pipelines: every part, and whole images, 2/255 apart at most."""

import shutil

import pytest
import torch

from gencli.checkpoints.build import load as load_part
from gencli.errors import GencliError, UsageError
from gencli.image import stages
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.models import architecture
from tests.oracles.libraries import diffusers, transformers
from tests.oracles.pipelines import assert_same, draw, picture
from tests.oracles.systems import Kandinsky, opened
from tests.tiny.image import rewrite_json
from tests.tiny.systems import RESNETS

STEPS = {"steps": 4, "stage": ("prior:steps=3",), "width": 64, "height": 64}
TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("kandinsky")


@pytest.fixture(scope="module")
def theirs(root):
    return Kandinsky(root)


@pytest.fixture(scope="module")
def ours(root, theirs):
    return load(stages.add_prior(opened(root / "decoder"), opened(root / "prior")), device="cpu")


@torch.no_grad()
def test_parts(root, theirs):
    torch.manual_seed(1)
    movq, reference = load_part(root / "decoder" / "movq"), theirs.parts["movq"]
    x, z = torch.rand(2, 3, 32, 48) * 2 - 1, torch.randn(2, 4, 4, 6)
    decoded = reference.decode(z, force_not_quantize=True).sample
    for got, expected in ((movq.encode(x), reference.encode(x).latents), (movq.decode(z), decoded)):
        assert expected.std() > 0.1
        torch.testing.assert_close(got, expected, **TOLERANCE)
    t, embeds = torch.tensor([981.0, 20.0]), torch.randn(2, 32)
    expected = theirs.parts["unet"](z, t, None, added_cond_kwargs={"image_embeds": embeds}).sample
    torch.testing.assert_close(load_part(root / "decoder" / "unet")(z, t, image_embeds=embeds), expected, **TOLERANCE)
    encoder = load_part(root / "prior" / "image_encoder")
    torch.testing.assert_close(encoder(torch.zeros(1, 3, 32, 32)), theirs.prior.get_zero_embed(), **TOLERANCE)


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({}, {}),
        ({"guidance": 1.0, "stage": (*STEPS["stage"], "prior:cfg-scale=1")}, {"guidance": 1.0, "prior": 1.0}),
        ({"negative": "blue dog", "guidance": 3.0}, {"negative": "blue dog", "guidance": 3.0}),
    ],
)
def test_images(ours, theirs, values, others):
    [made] = draw(None, pipeline=ours, prompt="a red apple", **STEPS | values)
    assert_same(made.image, theirs("a red apple", **others))


def test_each_of_a_batch_is_as_alone_and_a_whole_folder_the_same(root, ours, theirs):
    whole = load(opened(root / "whole"), device="cpu")
    for pipeline in (ours, whole):
        for i, one in enumerate(draw(None, pipeline=pipeline, prompt="the sun", count=2, batch=2, **STEPS)):
            assert_same(one.image, theirs("the sun", seed=3 + i))


def test_an_image_changed(ours, theirs):
    photo = picture(size=(64, 64))
    settings = {**STEPS, "init": photo, "strength": 0.6}
    [made] = draw(None, pipeline=ours, prompt="a red apple", **settings)
    assert_same(made.image, theirs("a red apple", init=photo, strength=0.6))


@pytest.mark.parametrize("texts", [2, 1, 0])
def test_mixing(ours, theirs, texts):
    """Shares are of all together; without a text the prior draws one, of which nothing is taken."""
    photo = picture(size=(32, 32))
    ingredients = [*[("a red cat", 0.5), ("the sun", 0.2)][:texts], (photo, 0.3)]
    total = sum(weight for _, weight in ingredients)
    expected = theirs.mixed([(one, weight / total) for one, weight in ingredients])
    mix = tuple(f"{one if isinstance(one, str) else 'photo.png'}:{weight}" for one, weight in ingredients)
    request = resolve(ImageRequest(seed=3, mix=mix, **STEPS), ours.checkpoint)
    [made] = [one for one in generate(ours, request, named={"photo.png": photo}) if isinstance(one, Picture)]
    assert_same(made.image, expected)
    assert made.request.mix == mix


def test_what_is_held_and_asked(root, theirs):
    loaded, checkpoint = [], stages.add_prior(opened(root / "decoder"), opened(root / "prior"))
    pipeline = load(checkpoint, device="cpu", loading=loaded.append)
    request = resolve(ImageRequest(prompt="apple", seed=1, **STEPS), checkpoint)
    list(generate(pipeline, request))
    parts = ("prior: image_encoder", "prior: text_encoder", "prior: prior", "decoder: unet")
    assert loaded == ["decoder: movq", *parts]
    plans = stages.plan(resolve(ImageRequest(prompt="apple", seed=1), checkpoint), checkpoint)
    assert [(one.stage.name, len(one.steps), one.request.guidance) for one in plans] == [
        ("prior", 25, 4.0),
        ("base", 100, 4.0),
    ]
    assert resolve(ImageRequest(prompt="a", init="a.png"), checkpoint, (64, 64)).strength == 0.3
    assert plans[1].request.strength is None


def test_what_does_not_go_together(root, theirs, tmp_path):
    decoder, prior = opened(root / "decoder"), opened(root / "prior")
    for checkpoint, message, hint in (
        (decoder, "decoder needs a prior, which makes the embeddings that it draws from", "kandinsky-2-2-prior"),
        (
            prior,
            "prior is a prior: it makes embeddings, from which a decoder draws images",
            "name it with --prior, beside a decoder",
        ),
    ):
        with pytest.raises(GencliError, match=message) as raised:
            stages.check_reads_text(checkpoint)
        assert hint in raised.value.hint
    with pytest.raises(GencliError, match="--prior decoder is not a prior"):
        stages.add_prior(decoder, decoder)
    with pytest.raises(GencliError, match="--prior is for decoders without a prior of their own, and prior is not one"):
        stages.add_prior(prior, prior)
    with pytest.raises(GencliError, match="--prior is for decoders without a prior of their own, and whole is not one"):
        stages.add_prior(opened(root / "whole"), prior)
    other = shutil.copytree(root / "decoder", tmp_path / "decoder")
    rewrite_json(other / "unet" / "config.json", lambda config: config | {"encoder_hid_dim": 48})
    with pytest.raises(GencliError, match="encoder_hid_dim = 48 and a prior with embedding_dim = 32 do not fit"):
        stages.add_prior(opened(other), prior)
    for change, message in (
        ({"in_channels": 9}, "UNet with in_channels = 9 is not supported"),
        ({"addition_embed_type": "image_hint"}, "addition_embed_type = 'image_hint' is not supported"),
    ):
        rewrite_json(other / "unet" / "config.json", lambda config, change=change: config | change)
        with pytest.raises(GencliError, match=message):
            opened(other)
    copy = shutil.copytree(root / "prior", tmp_path / "prior")
    rewrite_json(copy / "image_encoder" / "config.json", lambda config: config | {"projection_dim": 24})
    with pytest.raises(GencliError, match="prior of width 32 and image_encoder of 24 do not fit"):
        opened(copy)
    rewrite_json(copy / "model_index.json", lambda index: index | {"image_encoder": [None, None]})
    with pytest.raises(GencliError, match="KandinskyV22PriorPipeline without image_encoder"):
        opened(copy)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (("a:0",), "expected a text or an image, and its weight"),
        ((":0.5",), "expected a text or an image, and its weight"),
        (("a:nan",), "expected a text or an image, and its weight"),
        (("a:0.5", "b:-0.5"), "the sum of the weights is 0, and must be more than 0"),
    ],
)
def test_refused_mixtures(mix, message):
    with pytest.raises(UsageError, match=message):
        ImageRequest(mix=mix)


def test_mixtures_where_they_cannot_be(root, theirs):
    with pytest.raises(UsageError, match="a prompt beside --mix"):
        resolve(ImageRequest(prompt="a", mix=("b",)), opened(root / "decoder"))


WIDE = {"block_out_channels": [384, 768, 1152, 1536], "layers_per_block": 3, "norm_num_groups": 32}
UNET = RESNETS | {
    **WIDE,
    "addition_embed_type": "image",
    "attention_head_dim": 64,
    "cross_attention_dim": 768,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "in_channels": 4,
    "out_channels": 8,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}
MOVQ = {
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_type": "spatial",
    "num_vq_embeddings": 16384,
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    "vq_embed_dim": 4,
}
BIG_G = {"hidden_size": 1664, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 8192}
BIG_G |= {"patch_size": 14, "image_size": 224, "projection_dim": 1280, "hidden_act": "gelu"}
BIG_G_TEXT = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120}
BIG_G_TEXT |= {"projection_dim": 1280, "hidden_act": "gelu", "architectures": ["CLIPTextModelWithProjection"]}


@pytest.mark.parametrize(
    ("name", "config", "millions"),
    [
        ("PriorTransformer", {"embedding_dim": 1280}, 1026.2),
        ("UNet2DConditionModel", UNET, 1253.1),
        ("VQModel", MOVQ, 67.83),
        ("clip_vision_model", BIG_G, 1844.9),
        ("clip_text_model", BIG_G_TEXT, 694.7),
    ],
)
def test_names_and_shapes(name, config, millions):
    """In the sizes of the hub, without a number in them."""
    module, expected = architecture(name), {}
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(config)).state_dict()
        if name == "clip_vision_model":
            expected = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
        elif name == "clip_text_model":
            known = {key: value for key, value in config.items() if key != "architectures"}
            expected = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**known))
        else:
            expected = getattr(diffusers, name)(**config)
    theirs = {key: one.shape for key, one in expected.state_dict().items() if not key.endswith("position_ids")}
    renamed = {module.LAYOUT.rename(key)[0]: shape for key, shape in theirs.items()}
    assert {key: one.shape for key, one in ours.items()} == renamed
    assert sum(one.numel() for one in ours.values()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_stage_without_its_file(root, theirs, tmp_path):
    """One line says what to fetch: told before any weight is read where a folder is missing."""
    copy = shutil.copytree(root / "whole", tmp_path / "whole")
    (copy / "prior_prior" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(GencliError, match="prior_prior has no weights in safetensors") as raised:
        load(opened(copy), device="cpu")
    assert "fetch model.safetensors or diffusion_pytorch_model.safetensors" in raised.value.hint
    shutil.rmtree(copy / "movq")
    with pytest.raises(GencliError, match="names movq, whose folder is not there") as raised:
        opened(copy)
    assert "fetch movq/ from where the rest came" in raised.value.hint
