"""Latent diffusion from before Stable Diffusion against diffusers' pipelines and transformers' tokenizer.

diffusers' LDMPipeline divides latents by 0.18215 where a VQModel's config has no scaling factor, as that of
CompVis/ldm-celebahq-256 has none, and so turns its pictures into noise (its issue 6725): Latent Diffusion did not scale
latents of VQ autoencoders (Rombach et al. 2022, D.1). The reference here has 1.0; a factor that a config names counts.
"""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.checkpoints import layout
from gencli.checkpoints.build import load as load_module
from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.models.ldmbert import LDMBertConfig
from gencli.tokens import load_tokenizer
from tests.oracles.ldm_parity import measure
from tests.oracles.padding import encode_padded
from tests.oracles.pipelines import assert_equal_images, assert_same, generator
from tests.tiny.image import rewrite_json
from tests.tiny.ldm import (
    BERT,
    make_bert,
    make_ldm,
    make_ldm_text,
    make_wordpiece,
    to_pickles,
    with_scheduler,
)

TOLERANCE = {"atol": 2e-5, "rtol": 0}
PROMPT, NEGATIVE = "a painting of a squirrel eating a burger", "blue dogs"
TEXTS = [
    "",
    PROMPT,
    "A Red APPLE, on the sun!",
    "apples catted staring",
    "zyx unknown123 words?",
    "café CAFÉ 中文 中",
    "tab\tand\nnewline\x00 \u200b soft\xad",
    "[MASK] [SEP] the [CLS]",
    "x" * 101,
    "don't it's",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint a kind, and the same in diffusers."""
    root = tmp_path_factory.mktemp("checkpoints")
    pipes = {"vq": make_ldm(root / "vq"), "text": make_ldm_text(root / "text")}
    pipes["scaled"] = make_ldm(root / "scaled", vq={"scaling_factor": 0.6, "vq_embed_dim": 5}, unet={
        "in_channels": 5, "out_channels": 5})  # fmt: skip
    pipes["kl"] = make_ldm(root / "kl", unet={"in_channels": 4, "out_channels": 4}, kl=True)
    return {kind: (root / kind, pipe) for kind, pipe in pipes.items()}


def opened(folder, **kwargs):
    return load(open_image_checkpoint(Source(folder.name, folder, "folder"), **kwargs), device="cpu")


@functools.cache
def opened_once(folder):
    return opened(folder)


def draw(folder, pipeline=None, init=None, **values):
    """Our finished pictures."""
    pipeline = pipeline or opened_once(folder)
    request = ImageRequest(**{"seed": 3, "init": None if init is None else "init.png", **values})
    request = resolve(request, pipeline.checkpoint, None if init is None else init.size)
    return [event.image for event in generate(pipeline, request, init=init) if isinstance(event, Picture)]


# --- without a prompt


@pytest.mark.parametrize(("kind", "eta"), [("vq", 0.0), ("vq", 0.7), ("scaled", 0.0), ("kl", 0.7)])
def test_unconditional(folders, kind, eta):
    folder, pipe = folders[kind]
    torch.manual_seed(3)  # LDMPipeline hands no generator to the scheduler
    theirs = pipe(num_inference_steps=5, eta=eta).images[0]
    assert_same(draw(folder, steps=5, eta=eta)[0], theirs)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("euler", "EulerDiscreteScheduler"),
        ("euler_a", "EulerAncestralDiscreteScheduler"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
        ("ddpm", "DDPMScheduler"),
    ],
)
def test_unconditional_by_other_samplers(folders, sampler, scheduler):
    """With an autoencoder that has no codes: between two of them rounding may decide."""
    folder, pipe = folders["kl"]
    torch.manual_seed(3)
    theirs = with_scheduler(pipe, scheduler)(num_inference_steps=5, eta=0.0).images[0]
    assert_same(draw(folder, sampler=sampler, steps=5)[0], theirs)


def test_several_pictures(folders):
    folder, pipe = folders["vq"]
    theirs = pipe(2, num_inference_steps=4, generator=[generator(3), generator(4)]).images
    for ours, expected in zip(draw(folder, steps=4, count=2, batch=2), theirs, strict=True):
        assert_same(ours, expected)


def test_a_config_without_a_scaling_factor_does_not_scale(folders):
    """What diffusers makes of the hub's file, and what its weights were trained for."""
    folder, pipe = folders["vq"]
    assert "scaling_factor" not in json.loads((folder / "vqvae/config.json").read_text())
    theirs = type(pipe.vqvae).from_pretrained(folder / "vqvae")
    assert theirs.config.scaling_factor == 0.18215
    assert opened_once(folder).vae.config.scaling_factor == 1.0
    assert opened_once(folders["scaled"][0]).vae.config.scaling_factor == 0.6


@torch.no_grad()
def test_from_a_picture(folders):
    """Latents of a VQ autoencoder have a mean alone: nothing is drawn for them."""
    folder, pipe = folders["scaled"]
    small = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
    encoded = opened_once(folder).codec.encode(picture)
    x = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
    latents = pipe.vqvae.encode(x).latents * 0.6
    assert encoded.std is None
    torch.testing.assert_close(encoded.mean, latents, **TOLERANCE)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(8)
    noise = torch.randn(1, 5, 16, 16, generator=generator())
    latents = scheduler.add_noise(latents, noise, scheduler.timesteps[4:5])
    for t in scheduler.timesteps[4:]:
        latents = scheduler.step(pipe.unet(latents, t).sample, t, latents).prev_sample
    expected = pipe.vqvae.decode(latents / 0.6).sample / 2 + 0.5
    theirs = pipe.numpy_to_pil(expected.clamp(0, 1).permute(0, 2, 3, 1).numpy())[0]
    assert_same(draw(folder, init=picture, strength=0.5, steps=8)[0], theirs)


def test_prompts_are_for_others(folders):
    pipeline = opened_once(folders["vq"][0])
    with pytest.raises(UsageError, match="draws without a prompt"):
        resolve(ImageRequest(prompt="a cat"), pipeline.checkpoint)
    with pytest.raises(UsageError, match="--width 30: must be a multiple of 16"):
        resolve(ImageRequest(width=30), pipeline.checkpoint)


def test_previews(folders):
    for kind in ("vq", "scaled"):
        pipeline = opened_once(folders[kind][0])
        channels = pipeline.codec.latent_shape(64, 64)[0]
        assert pipeline.codec.sketch(torch.randn(1, channels, 48, 48)).size == (96, 96)


# --- of a text


@pytest.mark.parametrize(("guidance", "eta"), [(1.0, 0.3), (5.0, 0.0)])
def test_text_to_image(folders, guidance, eta):
    folder, pipe = folders["text"]
    ours = draw(folder, prompt=PROMPT, guidance=guidance, eta=eta, steps=4)[0]
    torch.manual_seed(3)
    theirs = pipe(PROMPT, guidance_scale=guidance, eta=eta, num_inference_steps=4).images[0]
    assert_same(ours, theirs)


class Negative:
    """diffusers' pipeline has no negative prompt, and reads an empty text where there would be one."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts, **kwargs):
        return self.tokenizer([text or NEGATIVE for text in texts] if texts == [""] else texts, **kwargs)


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("ddim", "DDIMScheduler"), ("dpmpp_2m", "DPMSolverMultistepScheduler")]
)
def test_negative_prompt_and_size(folders, sampler, scheduler):
    folder, pipe = folders["text"]
    size = {"width": 96, "height": 56}
    pipe = with_scheduler(pipe, scheduler)
    pipe.tokenizer = Negative(pipe.tokenizer)
    theirs = pipe(PROMPT, guidance_scale=5.0, num_inference_steps=4, generator=generator(), **size).images[0]
    values = {"prompt": PROMPT, "guidance": 5.0, "steps": 4, "sampler": sampler, **size}
    assert_same(draw(folder, negative=NEGATIVE, **values)[0], theirs)
    with pytest.raises(AssertionError):  # it counts
        assert_same(draw(folder, **values)[0], theirs)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("euler", "EulerDiscreteScheduler"),
        ("euler_a", "EulerAncestralDiscreteScheduler"),
        ("ddpm", "DDPMScheduler"),
    ],
)
@torch.no_grad()
def test_text_by_other_samplers(folders, sampler, scheduler):
    """diffusers' pipeline neither scales the noise nor what the UNet is told, so its loop is written out."""
    folder, pipe = folders["text"]
    scheduler = with_scheduler(pipe, scheduler).scheduler
    scheduler.set_timesteps(4)
    noise = generator()
    x = torch.randn(1, 4, 8, 8, generator=noise) * scheduler.init_noise_sigma
    ids = pipe.tokenizer(["", PROMPT], padding="max_length", max_length=77, return_tensors="pt").input_ids
    context = pipe.bert(ids)[0]
    for t in scheduler.timesteps:
        told = scheduler.scale_model_input(torch.cat([x, x]), t)
        empty, text = pipe.unet(told, t, context).sample.chunk(2)
        x = scheduler.step(empty + 5 * (text - empty), t, x, generator=noise).prev_sample
    expected = pipe.vqvae.decode(x / 0.18215).sample / 2 + 0.5
    theirs = pipe.numpy_to_pil(expected.clamp(0, 1).permute(0, 2, 3, 1).numpy())[0]
    values = {"prompt": PROMPT, "guidance": 5.0, "steps": 4, "sampler": sampler, "width": 64, "height": 64}
    assert_same(draw(folder, **values)[0], theirs)


def test_defaults(folders):
    request = resolve(ImageRequest(prompt=PROMPT), opened_once(folders["text"][0]).checkpoint)
    assert (request.guidance, request.steps, request.negative, request.eta) == (6.0, 50, "", 0.0)


def test_too_long_a_prompt(folders):
    folder, pipe = folders["text"]
    prompt = "red " * 74 + "apple dog"
    with pytest.raises(GencliError, match=r"76 tokens.*at most 75") as error:
        draw(folder, prompt=prompt, steps=1)
    assert "--weighted" not in (error.value.hint or "")  # which is for CLIP's
    with pytest.raises(UsageError, match="--weighted would have no effect on"):
        draw(folder, prompt="(red:1.2)", weighted=True)
    theirs = pipe(prompt, num_inference_steps=1, generator=generator()).images[0]
    assert_same(draw(folder, prompt=prompt, truncate="right", guidance=1.0, steps=1)[0], theirs)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"activation_function": "gelu_new", "encoder_layers": 1, "head_dim": 16}])
def test_text_encoder(tmp_path, changes):
    reference, model = make_bert(tmp_path, changes), load_module(tmp_path)
    ids = torch.randint(0, BERT["vocab_size"], (2, 77), generator=generator())
    ids[1, 20:] = 0  # padding is read too
    expected = reference(ids)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(model(ids), expected, **TOLERANCE)
    torch.testing.assert_close(model(ids[:, :9]), reference(ids[:, :9])[0], **TOLERANCE)
    assert not any("to_logits" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "mish"}, "activation_function = 'mish'"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"encoder_layers": 10**9}, "encoder_layers"),
        ({"head_dim": 0}, "head_dim"),
        ({"relative_attention": True}, "relative_attention"),
    ],
)
def test_text_encoders_that_are_refused(changes, message):
    with pytest.raises(GencliError, match=message):
        LDMBertConfig.from_dict({**BERT, **changes})


# --- the tokenizer


@pytest.mark.parametrize(
    "changes", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}], ids=str
)
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_tokenizer(tmp_path, form, changes):
    reference = make_wordpiece(tmp_path, **changes)
    if form == "tokenizer.json":
        shutil.rmtree(tmp_path)
        reference.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (2, (3,), 0)
    assert tokenizer.max_length == 512
    for text in TEXTS:
        ids = reference(text).input_ids
        assert tokenizer.encode(text) == ids, text
        padded = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert encode_padded(tokenizer, text, 77)[0] == padded
        expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids) == expected, text


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("vocab.txt", b"", "vocab.txt holds no vocabulary"),
        ("vocab.txt", b"\xff\xfe", "vocab.txt is not UTF-8"),
        ("vocab.txt", b"a\nb\n", r"lacks the token '\[UNK\]'"),
        ("tokenizer_config.json", b'{"tokenizer_class": "BertJapaneseTokenizer"}', "'BertJapaneseTokenizer'"),
        ("tokenizer_config.json", b'{"do_basic_tokenize": false}', "do_basic_tokenize"),
        ("tokenizer_config.json", b'{"do_lower_case": "no"}', "do_lower_case = 'no'"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path, file, change, says):
    make_wordpiece(tmp_path)
    (tmp_path / file).write_bytes(change)
    with pytest.raises(GencliError, match=says):
        load_tokenizer(tmp_path)


def test_an_odd_end_of_the_vocabulary(tmp_path):
    reference = make_wordpiece(tmp_path)
    vocab = (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_bytes(vocab.removesuffix("\n").replace("\n", "\r\n").encode())
    assert load_tokenizer(tmp_path).encode(PROMPT) == reference(PROMPT).input_ids


# --- files


def test_pickles(folders, tmp_path):
    """What most of these have on the hub: opened when the user says so, and not otherwise."""
    for kind, values in (("vq", {}), ("text", {"prompt": PROMPT, "width": 64, "height": 64})):
        folder = shutil.copytree(folders[kind][0], tmp_path / kind)
        to_pickles(folder)
        with pytest.raises(GencliError, match="no weights in safetensors"):
            opened(folder)
        pipeline = opened(folder, allow_pickle=True)
        same = draw(folders[kind][0], steps=1, **values)[0]
        assert_equal_images(draw(folder, pipeline, steps=1, **values)[0], same)


def test_what_a_download_takes(folders):
    """The vocabulary too, and pickles with permission alone."""
    folder = folders["text"][0]
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    chosen = layout.choose(names, lambda name: json.loads((folder / name).read_text()))
    assert set(chosen) == set(names)
    bare = [name.replace("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin") for name in names]
    bare = [name.replace("model.safetensors", "pytorch_model.bin") for name in bare]
    with pytest.raises(GencliError, match="no weights in safetensors"):
        layout.choose(bare, lambda name: json.loads((folder / name).read_text()))
    chosen = layout.choose(bare, lambda name: json.loads((folder / name).read_text()), allow_pickle=True)
    assert set(chosen) == set(bare)


@pytest.mark.parametrize(
    ("kind", "file", "change", "match"),
    [
        ("vq", "model_index.json", {"vqvae": [None, None]}, "without vqvae"),
        ("vq", "model_index.json", {"bert": ["latent_diffusion", "LDMBertModel"]}, "with bert is not supported"),
        ("vq", "vqvae/config.json", {"_class_name": "AutoencoderDC"}, "AutoencoderDC"),
        ("vq", "vqvae/config.json", {"vq_embed_dim": 7}, "in_channels = 3 is not supported"),
        ("vq", "unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("text", "bert/config.json", {"model_type": "bert"}, "bert is a 'bert'"),
        ("text", "bert/config.json", {"d_model": 32}, "cross_attention_dim = 24 .* d_model = 32"),
    ],
)
def test_folders_that_are_refused(folders, tmp_path, kind, file, change, match):
    folder = shutil.copytree(folders[kind][0], tmp_path / "odd")
    rewrite_json(folder / file, lambda raw: raw | change)
    with pytest.raises(GencliError, match=match):
        open_image_checkpoint(Source("odd", folder, "folder"))


def test_the_readmes_figures(tmp_path):
    for measured in measure(tmp_path):
        assert 0 <= measured.component <= 1e-4, measured
        assert measured.picture <= 2, measured
