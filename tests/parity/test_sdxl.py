"""Pictures of SDXL and of distilled models against diffusers' pipelines, from the same seed: at most 2/255 apart."""

import json
import shutil

import pytest

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
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
    opened,
    picture,
    with_scheduler,
)
from tests.oracles.xl_parity import measure
from tests.tiny.image import rewrite_json
from tests.tiny.sdxl import as_kind, make_lcm, make_sd_turbo, make_sdxl


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint a kind, and the same in diffusers."""
    root = tmp_path_factory.mktemp("xl")
    pipes = {kind: make_sdxl(root / kind, kind) for kind in ("sdxl", "sdxl-turbo", "ssd1b")}
    pipes["sd-turbo"], pipes["lcm"] = make_sd_turbo(root / "sd-turbo"), make_lcm(root / "lcm")
    return {kind: (root / kind, pipe) for kind, pipe in pipes.items()}


def checkpoint(folder):
    return open_image_checkpoint(Source(folder.name, folder, "folder"))


@pytest.mark.parametrize(
    ("sampler", "guidance", "negative"),
    [
        ("ddim", 1.0, None),
        ("ddim", 5.0, None),
        ("ddim", 5.0, NEGATIVE),
        ("ddim", 5.0, ""),  # not the same as none
        ("euler", 5.0, None),
        ("euler_a", 5.0, NEGATIVE),
        ("dpmpp_2m", 5.0, None),
    ],
)
def test_text_to_image(folders, sampler, guidance, negative):
    folder, pipe = folders["sdxl"]
    ours = draw(folder, prompt=PROMPT, negative=negative, sampler=sampler, guidance=guidance, steps=4, **SIZE)
    theirs = with_scheduler(pipe, sampler)(
        PROMPT,
        negative_prompt=negative,
        guidance_scale=guidance,
        num_inference_steps=4,
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_defaults_are_those_of_its_pipeline(folders):
    """Size of the checkpoint, guidance 5, no negative prompt."""
    folder, pipe = folders["sdxl"]
    ours = draw(folder, prompt=PROMPT, steps=2)
    theirs = with_scheduler(pipe, "ddim")(PROMPT, num_inference_steps=2, generator=generator()).images[0]
    assert_same(ours[0].image, theirs)
    request = resolve(ImageRequest(), checkpoint(folder))
    assert (request.sampler, request.steps, request.guidance, request.negative) == ("ddim", 50, 5.0, None)
    assert (request.width, request.height) == (128, 128)


def test_an_empty_negative_prompt_may_be_encoded(folders, tmp_path):
    """force_zeros_for_empty_prompt false: without a negative prompt the empty one is read."""
    folder, _ = folders["sdxl"]
    other = shutil.copytree(folder, tmp_path / "encoded")
    rewrite_json(other / "model_index.json", lambda raw: raw | {"force_zeros_for_empty_prompt": False})
    values = {"prompt": PROMPT, "steps": 2, **SIZE}
    assert_same(draw(other, **values)[0].image, draw(folder, negative="", **values)[0].image, tolerance=0)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_image_to_image(folders, strength):
    folder, pipe = folders["sdxl"]
    ours = draw(folder, init=picture(), prompt=PROMPT, strength=strength, steps=5)
    theirs = with_scheduler(pipe, "ddim", kind=diffusers.StableDiffusionXLImg2ImgPipeline)(
        PROMPT, image=picture(), strength=strength, num_inference_steps=5, guidance_scale=5.0, generator=generator()
    ).images[0]
    assert_same(ours[0].image, theirs)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(folders, strength):
    folder, pipe = folders["sdxl"]
    ours = draw(folder, init=picture(), mask=half_mask(), prompt=PROMPT, strength=strength, steps=5, **SIZE)
    theirs = with_scheduler(pipe, "ddim", kind=diffusers.StableDiffusionXLInpaintPipeline)(
        PROMPT,
        image=picture(),
        mask_image=half_mask(),
        strength=strength,
        num_inference_steps=5,
        guidance_scale=5.0,
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_several_pictures_share_a_batch(folders):
    folder, _ = folders["sdxl"]
    values = {"prompt": PROMPT, "steps": 2, **SIZE}
    together = draw(folder, count=3, batch=3, **values)
    for i, made in enumerate(together):
        assert_same(made.image, draw(folder, **values, seed=3 + i)[0].image, tolerance=1)


def test_layers_left_out(folders):
    folder, pipe = folders["ssd1b"]
    ours = draw(folder, prompt=PROMPT, steps=2, **SIZE)
    theirs = with_scheduler(pipe, "ddim")(PROMPT, num_inference_steps=2, generator=generator(), **SIZE).images[0]
    assert_same(ours[0].image, theirs)


def test_half_precision_files_and_latents_with_statistics(tmp_path):
    """fp16 variants alone; an autoencoder that names mean and deviation of its latents."""
    statistics = {"latents_mean": [0.5, -0.3, 0.0, 0.2], "latents_std": [1.5, 1.2, 0.9, 1.1]}
    pipe = make_sdxl(tmp_path / "fp16", variant="fp16", hub_names=False, vae=statistics)
    assert not list((tmp_path / "fp16").glob("*/*model.safetensors"))
    ours = draw(tmp_path / "fp16", init=picture(), prompt=PROMPT, steps=4, strength=0.5)
    theirs = with_scheduler(pipe, "ddim", kind=diffusers.StableDiffusionXLImg2ImgPipeline)(
        PROMPT, image=picture(), strength=0.5, num_inference_steps=4, guidance_scale=5.0, generator=generator()
    ).images[0]
    assert_same(ours[0].image, theirs)


# --- distilled models


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("kind", "sampler"), [("sdxl-turbo", "euler_a"), ("sd-turbo", "euler")])
def test_turbo(folders, kind, sampler, steps):
    """The sampler that its scheduler names, no guidance."""
    folder, pipe = folders[kind]
    ours = draw(folder, prompt=PROMPT, steps=steps, **SIZE)
    theirs = pipe(PROMPT, num_inference_steps=steps, guidance_scale=0.0, generator=generator(), **SIZE).images[0]
    assert_same(ours[0].image, theirs)
    request = resolve(ImageRequest(), checkpoint(folder))
    assert (request.sampler, request.steps, request.guidance, request.spacing) == (sampler, 4, 1.0, "trailing")


@pytest.mark.parametrize("guidance", [1.0, 8.5])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_latent_consistency(folders, steps, guidance):
    """Guidance is told to the UNet as a number: one call a step, and no negative prompt."""
    folder, pipe = folders["lcm"]
    ours = draw(folder, prompt=PROMPT, negative=NEGATIVE, steps=steps, guidance=guidance, **SIZE)
    theirs = pipe(PROMPT, num_inference_steps=steps, guidance_scale=guidance, generator=generator(), **SIZE).images[0]
    assert_same(ours[0].image, theirs)


@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_latent_consistency_from_a_picture(folders, strength):
    """All steps are made, on the lower share of what the model learned."""
    folder, pipe = folders["lcm"]
    ours = draw(folder, init=picture(), prompt=PROMPT, strength=strength)
    theirs = as_kind(pipe, diffusers.LatentConsistencyModelImg2ImgPipeline)(
        PROMPT, image=picture(), strength=strength, generator=generator()
    ).images[0]
    assert_same(ours[0].image, theirs)
    assert len(opened_steps(folder, strength=strength, steps=4)) == 4


def opened_steps(folder, **values):
    from gencli.image.diffusion import samplers

    pipeline = opened(folder)
    return samplers.get("lcm").steps(pipeline.main.schedule, values["steps"], None, values["strength"])


def test_defaults_of_latent_consistency(folders, tmp_path):
    folder, _ = folders["lcm"]
    request = resolve(ImageRequest(), checkpoint(folder))
    assert (request.sampler, request.steps, request.guidance) == ("lcm", 4, 8.5)
    assert request.sampler_options == {}
    with pytest.raises(UsageError, match="51 steps: sampler lcm can take 1 to 50"):
        resolve(ImageRequest(steps=51), checkpoint(folder))
    with pytest.raises(UsageError, match=r"20 steps: sampler lcm can take 1 to 15 at strength 0\.3"):
        resolve(ImageRequest(steps=20, init="x.png", strength=0.3), checkpoint(folder))


def test_the_sampler_lcm_for_other_models(folders):
    """As with a LoRA that makes any model fast: 4 steps and no guidance unless they are asked for."""
    folder, pipe = folders["sdxl"]
    request = resolve(ImageRequest(sampler="lcm"), checkpoint(folder))
    assert (request.steps, request.guidance) == (4, 1.0)
    ours = draw(folder, prompt=PROMPT, sampler="lcm", steps=3, guidance=2.0, **SIZE)
    scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    theirs = as_kind(pipe, type(pipe), scheduler=scheduler)(
        PROMPT, num_inference_steps=3, guidance_scale=2.0, generator=generator(), **SIZE
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_lcm_reads_its_options_from_the_scheduler(tmp_path):
    pipe = make_lcm(tmp_path / "lcm", original_inference_steps=100)
    rewrite_json(tmp_path / "lcm/scheduler/scheduler_config.json", lambda raw: raw | {"timestep_scaling": 0.001})
    ours = draw(tmp_path / "lcm", prompt=PROMPT, steps=3, **SIZE)
    assert ours[0].request.sampler_options == {"original_inference_steps": 100, "timestep_scaling": 0.001}
    scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config, timestep_scaling=0.001)
    theirs = as_kind(pipe, type(pipe), scheduler=scheduler)(
        PROMPT, num_inference_steps=3, generator=generator(), **SIZE
    ).images[0]
    assert_same(ours[0].image, theirs)


# --- what is refused


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        (
            "model_index.json",
            {"text_encoder": [None, None], "tokenizer": [None, None]},
            "hidden_size = 32 do not",
        ),
        ("model_index.json", {"requires_aesthetics_score": True}, "projection_class_embeddings_input_dim = 68"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "without text_encoder_2"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type = None"),
        ("unet/config.json", {"addition_time_embed_dim": 7}, "projection_class_embeddings_input_dim = 68"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "cross_attention_dim = 2048 .* hidden_size = 56"),
        ("text_encoder_2/config.json", {"architectures": ["CLIPTextModel"]}, "text_encoder_2 has no projection"),
        ("text_encoder_2/config.json", {"projection_dim": "x"}, "projection_dim = 'x'"),
    ],
)
def test_configs_that_do_not_go_together(folders, tmp_path, file, change, match):
    folder = tmp_path / "odd"
    shutil.copytree(folders["sdxl"][0], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    rewrite_json(folder / file, lambda raw: raw | change)
    with pytest.raises(GencliError, match=match):
        checkpoint(folder)


def test_a_single_text_encoder_and_a_unet_that_wants_two(folders, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(folders["sd-turbo"][0], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    rewrite_json(folder / "unet/config.json", lambda raw: raw | {"addition_embed_type": "text_time"})
    with pytest.raises(GencliError, match="addition_embed_type = 'text_time' without text_encoder_2"):
        checkpoint(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_the_table_of_families(tmp_path):
    """What the README's table says: components within 1e-4, pictures within 2 of 255."""
    rows = list(measure(tmp_path))
    assert len(rows) == 7
    for row in rows:
        assert row.component <= 1e-4, row
        assert row.picture <= 2, row
