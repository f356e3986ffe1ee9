"""Whole pictures against diffusers' pipelines, from the same seed: at most 2/255 apart at any pixel.

Where diffusers' DDIM takes a wrong previous timestep (trailing, at step counts that do not divide T) the formula of
DDIM, written out in `by_formula`, is the oracle.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.guidance import Denoiser
from gencli.image.generate import Denoised, generate
from gencli.image.open import open_image_checkpoint
from gencli.image.prompts.stable_diffusion import token_ids
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
    opened_once,
    picture,
    with_scheduler,
)
from tests.tiny.image import SCHEDULER, make_ddpm, make_stable_diffusion, rewrite_json

SETTINGS = [
    ("ddim", {}),
    ("ddim", {"eta": 0.5}),
    ("ddpm", {}),
    ("euler", {}),
    ("euler", {"karras": True}),
    ("euler_a", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_2m", {"karras": True}),
]


def names(value):
    """The name of a test: options read better than dictionaries."""
    return ("-".join(f"{k}={v}" for k, v in value.items()) or "plain") if isinstance(value, dict) else str(value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint a kind, and the same in diffusers."""
    root = tmp_path_factory.mktemp("checkpoints")
    pipes = {kind: make_stable_diffusion(root / kind, kind) for kind in ("sd15", "sd21")}
    pipes["fp16"] = make_stable_diffusion(root / "fp16", "sd15", variant="fp16", hub_names=False)
    pipes["ddpm"] = make_ddpm(root / "ddpm")
    return {kind: (root / kind, pipe) for kind, pipe in pipes.items()}


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize(("sampler", "options"), SETTINGS, ids=names)
@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_text_to_image(folders, kind, sampler, options, guidance):
    folder, pipe = folders[kind]
    ours = draw(
        folder, prompt=PROMPT, negative=NEGATIVE, sampler=sampler, guidance=guidance, steps=5, **options, **SIZE
    )
    theirs = with_scheduler(pipe, sampler, options.get("karras", False))(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=guidance,
        num_inference_steps=5,
        eta=options.get("eta", 0.0),
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)


@pytest.mark.parametrize(
    ("sampler", "options", "guidance"),
    [
        ("ddim", {}, 1.0),
        ("ddim", {"eta": 0.5}, 7.5),
        ("ddpm", {}, 7.5),
        ("euler", {}, 7.5),
        ("euler_a", {}, 1.0),
        ("dpmpp_2m", {}, 7.5),
    ],
    ids=names,
)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_image_to_image(folders, sampler, options, guidance, strength):
    folder, pipe = folders["sd15"]
    ours = draw(
        folder,
        init=picture(),
        prompt=PROMPT,
        sampler=sampler,
        guidance=guidance,
        strength=strength,
        steps=5,
        **options,
    )
    theirs = with_scheduler(pipe, sampler, kind=diffusers.StableDiffusionImg2ImgPipeline)(
        PROMPT,
        image=picture(),
        strength=strength,
        guidance_scale=guidance,
        num_inference_steps=5,
        eta=options.get("eta", 0.0),
        generator=generator(),
    ).images[0]
    assert_same(ours[0].image, theirs)


@pytest.mark.parametrize(
    ("sampler", "options"), [("ddim", {}), ("ddim", {"eta": 0.5}), ("euler", {}), ("euler_a", {}), ("dpmpp_2m", {})]
)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting(folders, sampler, options, strength):
    folder, pipe = folders["sd21"]
    ours = draw(
        folder,
        init=picture(),
        mask=half_mask(),
        prompt=PROMPT,
        sampler=sampler,
        strength=strength,
        steps=5,
        **options,
        **SIZE,
    )
    theirs = with_scheduler(pipe, sampler, kind=diffusers.StableDiffusionInpaintPipeline)(
        PROMPT,
        image=picture(),
        mask_image=half_mask(),
        strength=strength,
        num_inference_steps=5,
        eta=options.get("eta", 0.0),
        generator=generator(),
        **SIZE,
    ).images[0]
    assert_same(ours[0].image, theirs)


def test_pictures_of_other_sizes_are_resized_alike(folders):
    folder, pipe = folders["sd15"]
    big, mask = picture(size=(150, 130)), half_mask().resize((75, 131))
    ours = draw(folder, init=big, mask=mask, prompt=PROMPT, steps=3, guidance=1.0, **SIZE)
    theirs = with_scheduler(pipe, "ddim", kind=diffusers.StableDiffusionInpaintPipeline)(
        PROMPT, image=big, mask_image=mask, num_inference_steps=3, guidance_scale=1.0, generator=generator(), **SIZE
    ).images[0]
    assert_same(ours[0].image, theirs)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_unconditional(folders, sampler, eta):
    folder, pipe = folders["ddpm"]
    if sampler == "ddpm":
        ours = draw(folder, sampler="ddpm", steps=10)
        theirs = pipe(generator=generator(), num_inference_steps=10).images[0]
    else:
        ours = draw(folder, eta=eta, steps=10)
        scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
        ddim = diffusers.DDIMPipeline(pipe.unet, scheduler)
        ddim.set_progress_bar_config(disable=True)
        theirs = ddim(generator=generator(), num_inference_steps=10, eta=eta).images[0]
    assert_same(ours[0].image, theirs)


def test_half_precision_files(folders):
    """fp16 variants without a plain file; names as today's libraries save them."""
    folder, pipe = folders["fp16"]
    assert not list(folder.glob("*/*model.safetensors"))
    ours = draw(folder, prompt=PROMPT, steps=4, **SIZE)
    theirs = with_scheduler(pipe, "ddim")(PROMPT, num_inference_steps=4, generator=generator(), **SIZE).images[0]
    assert_same(ours[0].image, theirs)
    assert ours[0].request.dtype == "float32"


def test_guidance_rescale(folders):
    folder, pipe = folders["sd21"]
    ours = draw(folder, prompt=PROMPT, steps=4, guidance_rescale=0.7, **SIZE)
    theirs = with_scheduler(pipe, "ddim")(
        PROMPT, num_inference_steps=4, guidance_rescale=0.7, generator=generator(), **SIZE
    ).images[0]
    assert_same(ours[0].image, theirs)


@pytest.mark.parametrize("end", [0.4, 0.5, 0.79])
def test_guidance_ends(folders, end):
    """As diffusers' documentation ends it, by a callback."""
    folder, pipe = folders["sd21"]

    def callback(pipe, step, timestep, values):
        if step + 1 == int(end * pipe.num_timesteps):
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    ours = draw(folder, prompt=PROMPT, steps=5, guidance_end=end, **SIZE)
    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    theirs = with_scheduler(pipe, "ddim")(PROMPT, num_inference_steps=5, generator=generator(), **more, **SIZE)
    assert_same(ours[0].image, theirs.images[0])


@pytest.mark.parametrize(("start", "end"), [(0.2, 1.0), (0.35, 0.8), (0.0, 0.5), (0.99, 1.0), (0.0, 0.0)])
def test_the_steps_of_guidance(folders, monkeypatch, start, end):
    """Those of diffusers' guiders; the model gets twice as much in these alone."""
    folder, _ = folders["sd15"]
    theirs = diffusers.guiders.ClassifierFreeGuidance(start=start, stop=end)
    expected = []
    for step in range(7):
        theirs.set_state(step, 7, torch.tensor(0))
        expected.append(theirs.num_conditions)
    found = []
    real = Denoiser.__init__

    def init(self, model, *args, **kwargs):
        real(self, lambda x, *rest: found.append(len(x)) or model(x, *rest), *args, **kwargs)

    monkeypatch.setattr(Denoiser, "__init__", init)
    draw(folder, prompt=PROMPT, steps=7, guidance_start=start, guidance_end=end, **SIZE)
    assert found == expected and {*found} <= {1, 2}


def test_size_of_the_checkpoint_and_odd_levels(folders):
    folder, pipe = folders["sd15"]
    assert draw(folder, prompt=PROMPT, steps=1)[0].image.size == (128, 128)
    ours = draw(folder, prompt=PROMPT, steps=2, width=72, height=120)
    theirs = with_scheduler(pipe, "ddim")(
        PROMPT, num_inference_steps=2, width=72, height=120, generator=generator()
    ).images[0]
    assert_same(ours[0].image, theirs)


def by_formula(pipe, steps, eta=0.0):
    """DDIM as its paper has it (equations 12 and 16), on the trailing grid, by the reference's parts."""
    T = 1000
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    grid = [round(float(t)) - 1 for t in np.arange(T, 0, -T / steps)[:steps]]
    ids = pipe.tokenizer([PROMPT], padding="max_length", max_length=77, return_tensors="pt").input_ids
    context = pipe.text_encoder(ids).last_hidden_state
    draws = generator()
    x = torch.randn((1, 4, 8, 12), generator=draws)
    for t, p in zip(grid, [*grid[1:], None], strict=True):
        a, b = alphas[t].item(), alphas[0].item() if p is None else alphas[p].item()
        v = pipe.unet(x, t, encoder_hidden_states=context).sample
        x0, eps = a**0.5 * x - (1 - a) ** 0.5 * v, a**0.5 * v + (1 - a) ** 0.5 * x
        sigma = eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        x = b**0.5 * x0 + (1 - b - sigma**2) ** 0.5 * eps
        if sigma:
            x = x + sigma * torch.randn((1, 4, 8, 12), generator=draws)
    decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample[0]
    return Image.fromarray(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("eta", [0.0, 0.5])
@torch.no_grad()
def test_where_diffusers_strays_the_formula_holds(folders, eta):
    """Trailing with 15 steps: diffusers' t − T//S is not the next timestep of its own list."""
    folder, pipe = folders["sd21"]
    ours = draw(folder, prompt=PROMPT, steps=15, spacing="trailing", eta=eta, guidance=1.0, **SIZE)
    assert_same(ours[0].image, by_formula(pipe, 15, eta))


def test_each_of_several_alone_and_in_every_batch(folders):
    """Picture i has seed + i, and the same noise whatever it is made with."""
    folder, _ = folders["sd15"]
    values = {"prompt": PROMPT, "steps": 3, "eta": 0.5, "count": 3, **SIZE}
    together = draw(folder, batch=3, **values)
    two = draw(folder, batch=2, **values)
    assert [picture.index for picture in two] == [0, 1, 2]
    for i, made in enumerate(together):
        alone = draw(folder, **{**values, "seed": 3 + i, "count": 1})
        assert made.request.seed == 3 + i
        assert_same(made.image, alone[0].image, tolerance=1)
        assert_same(two[i].image, alone[0].image, tolerance=1)
    assert np.abs(np.asarray(together[0].image).astype(int) - np.asarray(together[1].image)).max() > 10


def test_prompts_of_several_lines_share_batches(folders):
    folder, _ = folders["sd15"]
    made = draw(folder, prompts=iter(["a red apple", "blue dog", ""]), count=2, batch=4, steps=2, **SIZE)
    assert [picture.request.prompt for picture in made] == ["a red apple"] * 2 + ["blue dog"] * 2 + [""] * 2
    assert [picture.request.seed for picture in made] == [3, 4, 5, 6, 7, 8]
    alone = draw(folder, prompt="blue dog", seed=6, steps=2, **SIZE)
    assert_same(made[3].image, alone[0].image, tolerance=1)


def test_steps_come_before_pictures(folders):
    folder, _ = folders["sd15"]
    pipeline = opened_once(folder)
    request = resolve(ImageRequest(prompt="", seed=0, steps=3, count=2, **SIZE), pipeline.checkpoint)
    events = [
        (event.index, event.total, event.first) if isinstance(event, Denoised) else event.index
        for event in generate(pipeline, request)
    ]
    assert events == [(0, 3, 0), (1, 3, 0), (2, 3, 0), 0, (0, 3, 1), (1, 3, 1), (2, 3, 1), 1]


def test_tiles_of_the_decoder_change_little(folders):
    """A picture no larger than a tile is the same; a larger one nearly."""
    folder, _ = folders["sd15"]
    values = {"prompt": PROMPT, "steps": 1, "guidance": 1.0}
    small = [draw(folder, vae_tiling=tiling, **values, **SIZE)[0].image for tiling in (False, True)]
    assert_same(*small, tolerance=0)


def test_too_long_a_prompt_is_never_cut_silently(folders):
    folder, pipe = folders["sd15"]
    prompt = "apple " * 74 + "dog cat"
    with pytest.raises(GencliError, match=r"76 tokens.*at most 75"):
        draw(folder, prompt=prompt, steps=1)
    with pytest.raises(GencliError, match="76 tokens"):
        draw(folder, prompt="a", negative=prompt, steps=1)
    tokenizer, encoder = opened_once(folder).main.conditioner.text_encoders[0]
    theirs = pipe.tokenizer(prompt, padding="max_length", truncation=True).input_ids
    right, left = (token_ids(tokenizer, encoder, [prompt], side)[0].tolist() for side in ("right", "left"))
    assert right == theirs
    assert left[1:-1] == tokenizer.encode(prompt)[2:-1]


def test_nan_is_an_error_and_no_picture(folders):
    folder, _ = folders["sd15"]
    pipeline = opened(folder)
    with torch.no_grad():
        pipeline.main.network.conv_out.bias.copy_(torch.full((4,), float("nan")))
    for more, hint in [({}, "models check"), ({"lora": ("x.safetensors",)}, "--lora")]:
        with pytest.raises(GencliError, match="NaN") as caught:
            draw(folder, pipeline=pipeline, prompt="a", steps=2, **SIZE, **more)
        assert hint in caught.value.hint and "float32" not in caught.value.hint
    pipeline = opened(folder)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.copy_(torch.full((3,), float("nan")))
    with pytest.raises(GencliError, match="not numbers") as caught:
        draw(folder, pipeline=pipeline, prompt="a", steps=2, **SIZE)
    assert "float32" not in caught.value.hint  # in which it was


def test_settings_come_from_the_request_then_the_checkpoint_then_the_defaults(folders, tmp_path):
    folder = shutil.copytree(folders["sd15"][0], tmp_path / "tuned")
    (folder / "generation_config.json").write_text(json.dumps({"guidance_scale": 3, "num_inference_steps": 20, "x": 1}))
    checkpoint = open_image_checkpoint(Source("tuned", folder, "folder"))
    plain = open_image_checkpoint(Source("plain", folders["sd15"][0], "folder"))
    request = resolve(ImageRequest(), checkpoint)
    assert (request.steps, request.guidance) == (20, 3)
    request = resolve(ImageRequest(steps=7, guidance=1.5), checkpoint)
    assert (request.steps, request.guidance) == (7, 1.5)
    request = resolve(ImageRequest(), plain)
    assert (request.steps, request.guidance, request.sampler, request.eta) == (50, 7.5, "ddim", 0.0)
    assert (request.width, request.height, request.spacing) == (128, 128, "leading")
    (folder / "generation_config.json").write_text(json.dumps({"num_inference_steps": -1}))
    with pytest.raises(GencliError, match=r"generation_config.json: steps -1"):
        resolve(ImageRequest(), open_image_checkpoint(Source("tuned", folder, "folder")))


def test_requests_that_do_not_fit_the_checkpoint(folders):
    plain = open_image_checkpoint(Source("plain", folders["sd15"][0], "folder"))
    ddpm = open_image_checkpoint(Source("ddpm", folders["ddpm"][0], "folder"))
    for request, checkpoint, match in [
        (ImageRequest(width=70), plain, "--width 70: must be a multiple of 8"),
        (ImageRequest(height=21), ddpm, "--height 21: must be a multiple of 2"),
        (ImageRequest(steps=1001), plain, "1 to 1000"),
        (ImageRequest(sampler="euler", eta=0.5), plain, "no option eta"),
        (ImageRequest(karras=True), plain, "no option karras"),
        (ImageRequest(sampler_options={"use_clipped_model_output": "x"}), plain, "expected true or false"),
        (ImageRequest(sampler="ddpm", sampler_options={"variance_type": 3.0}), plain, "expected a name"),
        (ImageRequest(sampler="ddpm", sampler_options={"variance_type": "wide"}), plain, "expected one of fixed_small"),
        (ImageRequest(sampler_options={"foo": 1}), plain, "no option foo"),
        (ImageRequest(steps=2, init="x.png", strength=0.3), plain, "leaves no step"),
        (ImageRequest(prompt="a cat"), ddpm, "without a prompt"),
        (ImageRequest(guidance=3.0), ddpm, "--cfg-scale"),
    ]:
        with pytest.raises(UsageError, match=match):
            resolve(request, checkpoint)


def test_size_of_the_picture_to_start_from(folders):
    plain = open_image_checkpoint(Source("plain", folders["sd15"][0], "folder"))
    for size, expected in [((200, 100), (200, 96)), ((1000, 500), (176, 88)), ((5, 5), (8, 8))]:
        request = resolve(ImageRequest(init="x.png"), plain, size)
        assert (request.width, request.height) == expected
        assert request.strength == 0.8


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2"),
        ("model_index.json", {"unet": [None, None]}, "without unet"),
        ("vae/config.json", {"_class_name": "AutoencoderDC"}, "AutoencoderDC"),
        ("unet/config.json", {"in_channels": 5}, "in_channels = 5"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ("unet/config.json", {"sample_size": "x"}, "sample_size"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
    ],
)
def test_folders_that_are_not_supported_are_refused_by_name(folders, tmp_path, file, change, match):
    folder = shutil.copytree(folders["sd15"][0], tmp_path / "odd")
    rewrite_json(folder / file, lambda raw: raw | change)
    with pytest.raises(GencliError, match=match):
        resolve(ImageRequest(), open_image_checkpoint(Source("odd", folder, "folder")))


def test_odd_entries_of_the_index(folders, tmp_path):
    folder = shutil.copytree(folders["sd15"][0], tmp_path / "odd")
    extra = {"image_encoder": [None, None], "requires_safety_checker": True, "_name_or_path": "x", "strange": 3}
    rewrite_json(folder / "model_index.json", lambda raw: raw | extra)
    checkpoint = open_image_checkpoint(Source("odd", folder, "folder"))
    assert checkpoint.prompt == "text"
    assert [note for note in checkpoint.notes if "safety checker" in note]
    assert [note for note in checkpoint.notes if "strange" in note]


def test_a_unet_and_its_scheduler_alone(folders, tmp_path):
    """Without a model_index.json: what training scripts of small models leave."""
    folder = shutil.copytree(folders["ddpm"][0], tmp_path / "bare")
    (folder / "model_index.json").unlink()
    assert_same(draw(folder, steps=3)[0].image, draw(folders["ddpm"][0], steps=3)[0].image, tolerance=0)


def test_parts_in_folders_of_their_own(folders, tmp_path):
    """Unconditional pipelines as save_pretrained writes them."""
    folder, pipe = tmp_path / "saved", folders["ddpm"][1]
    pipe.save_pretrained(folder)
    assert_same(draw(folder, steps=3)[0].image, draw(folders["ddpm"][0], steps=3)[0].image, tolerance=0)


def test_other_models_are_refused(tmp_path, folders):
    with pytest.raises(GencliError, match="no model_index"):
        open_image_checkpoint(Source("empty", tmp_path, "folder"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(GencliError, match="gpt2"):
        open_image_checkpoint(Source("text", tmp_path, "folder"))
    with pytest.raises(GencliError, match="not an image model"):
        open_image_checkpoint(Source("part", folders["sd15"][0] / "unet", "folder"))
    assert SCHEDULER["sd15"]["_class_name"] == "PNDMScheduler"  # a class that gencli has no sampler for
