"""ControlNets against diffusers' own: the model, and whole pictures drawn with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from gencli.checkpoints.build import load
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.controlnet import load_control, open_control, window
from gencli.image.diffusion import samplers
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.generate import Picture, generate
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.models.controlnet import ControlNetConfig
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import (
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
from tests.tiny.control import CONTROLNET, SMALL_CONTROLNET, edges, make_controlnet, make_inpaint
from tests.tiny.image import make_ddpm, make_stable_diffusion, make_unet, rewrite_json

TOLERANCE = {"atol": 2e-5, "rtol": 0}


@torch.no_grad()
def check(reference, model, unet=None, height=16, width=16):
    """Everything that a ControlNet says, and what a UNet makes of it."""
    torch.manual_seed(1)
    x = torch.randn(2, reference.config.in_channels, height, width)
    context = torch.randn(2, 9, reference.config.cross_attention_dim)
    factor = 2 ** (len(reference.config.conditioning_embedding_out_channels) - 1)
    picture = torch.rand(2, reference.config.conditioning_channels, height * factor, width * factor)
    t = torch.tensor([981.0, 20.0])
    down, middle = model(x, t, context, model.embed(picture))
    expected = reference(x, t, encoder_hidden_states=context, controlnet_cond=picture)
    assert all(state.std() > 0.1 for state in expected.down_block_res_samples)
    torch.testing.assert_close(down, expected.down_block_res_samples, **TOLERANCE)
    torch.testing.assert_close(middle, expected.mid_block_res_sample, **TOLERANCE)
    assert len(down) == len(model.config.skip_channels)
    if unet is None:
        return
    theirs, ours = unet
    made = ours(x, t, context, down, middle)
    wanted = theirs(
        x,
        t,
        encoder_hidden_states=context,
        down_block_additional_residuals=expected.down_block_res_samples,
        mid_block_additional_residual=expected.mid_block_res_sample,
    ).sample
    torch.testing.assert_close(made, wanted, **TOLERANCE)
    assert (made - ours(x, t, context)).abs().max() > 0.1
    without = [ours(x, t, context, down_residuals=down), ours(x, t, context, mid_residual=middle)]
    assert all((made - other).abs().max() > 1e-3 for other in without)


def test_equals_diffusers(tmp_path):
    reference, model = make_controlnet(tmp_path / "c"), load(tmp_path / "c")
    unet = make_unet(tmp_path / "u"), load(tmp_path / "u")
    check(reference, model, unet)
    check(reference, model, unet, height=9, width=13)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_linear_projection": True, "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 32},  # SD 2.1
        {"controlnet_conditioning_channel_order": "bgr", "flip_sin_to_cos": False, "freq_shift": 1},
        {"global_pool_conditions": True, "addition_embed_type_num_heads": 64, "mid_block_type": "UNetMidBlock2D"},
        {"conditioning_embedding_out_channels": [8, 16], "conditioning_channels": 1, "layers_per_block": 1},
        {"resnet_time_scale_shift": "scale_shift", "transformer_layers_per_block": 2, "mid_block_scale_factor": 1.5},
        {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "block_out_channels": [16, 40]},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_configs(tmp_path, changes):
    reference = make_controlnet(tmp_path, changes)
    check(reference, load(tmp_path))


def test_half_precision_file(tmp_path):
    reference = make_controlnet(tmp_path, variant="fp16")
    check(reference, load(tmp_path, dtype=torch.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_embed_type": "text_image"}, "addition_embed_type = 'text_image'"),
        ({"encoder_hid_dim": 4096}, "encoder_hid_dim = 4096"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"only_cross_attention": True}, "only_cross_attention = True"),
        ({"controlnet_conditioning_channel_order": "hsv"}, "channel_order = 'hsv'"),
        ({"conditioning_embedding_out_channels": 16}, "conditioning_embedding_out_channels"),
        ({"conditioning_embedding_out_channels": [16, 10**6]}, "conditioning_embedding_out_channels"),
        ({"conditioning_channels": 10**6}, "conditioning_channels"),
        ({"global_pool_conditions": "yes"}, "neither true nor false"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"down_block_types": 4}, "down_block_types"),
        ({"strange": 1}, "strange = 1"),
    ],
)  # fmt: skip
def test_refused_by_name(changes, message):
    with pytest.raises(GencliError, match=message):
        ControlNetConfig.from_dict({**CONTROLNET, **changes})


# --- pictures

PLAIN, OTHER, POOLED = "canny", "depth", "shuffle"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A checkpoint, three ControlNets, and all of them in diffusers."""
    root = tmp_path_factory.mktemp("control")
    nets = {
        PLAIN: make_controlnet(root / PLAIN, SMALL_CONTROLNET),
        OTHER: make_controlnet(root / OTHER, SMALL_CONTROLNET, seed=70),
        POOLED: make_controlnet(root / POOLED, SMALL_CONTROLNET | {"global_pool_conditions": True}, seed=80),
    }
    return root, make_stable_diffusion(root / "sd"), nets


def with_controls(root, names, images, **values):
    """Our finished pictures."""
    pipeline = opened_once(root / "sd")
    opens = [open_control(Source(name, root / name, "folder"), pipeline.checkpoint) for name in names]
    controls = [(load_control(one, pipeline), image) for one, image in zip(opens, images, strict=True)]
    files = {"control": tuple(names), "control_image": ("c.png",) * len(names)}
    init = values.pop("init", None)
    given = {"init": None if init is None else "init.png"}
    request = ImageRequest(**{"seed": 3, "prompt": PROMPT, "steps": 5, **files, **given, **values})
    request = resolve(request, pipeline.checkpoint, None if init is None else init.size)
    events = generate(pipeline, request, init=init, controls=controls)
    return [event.image for event in events if isinstance(event, Picture)]


def theirs(pipe, nets, sampler="ddim", kind="StableDiffusionControlNetPipeline", **values):
    made = getattr(diffusers, kind)(
        **{name: part for name, part in pipe.components.items() if name != "image_encoder"},
        controlnet=nets,
        requires_safety_checker=False,
    )
    made.scheduler = with_scheduler(pipe, sampler).scheduler
    made.set_progress_bar_config(disable=True)
    return made(PROMPT, num_inference_steps=5, generator=generator(), **values).images[0]


@pytest.mark.parametrize(
    ("sampler", "guidance", "scale"), [("ddim", 7.5, 1.0), ("euler", 7.5, 0.5), ("dpmpp_2m", 1.0, 1.7)]
)
def test_pictures(parts, sampler, guidance, scale):
    root, pipe, nets = parts
    ours = with_controls(root, [PLAIN], [edges()], sampler=sampler, guidance=guidance, control_scale=(scale,), **SIZE)
    values = {"guidance_scale": guidance, "controlnet_conditioning_scale": scale}
    wanted = theirs(pipe, nets[PLAIN], sampler, image=edges(), **values, **SIZE)
    assert_same(ours[0], wanted)
    plain = draw(root / "sd", prompt=PROMPT, steps=5, sampler=sampler, guidance=guidance, **SIZE)[0].image
    with pytest.raises(AssertionError):
        assert_same(plain, wanted, tolerance=20)


def test_pictures_of_other_sizes_and_several_at_once(parts):
    root, pipe, nets = parts
    odd = edges((131, 77)).convert("L")
    ours = with_controls(root, [PLAIN], [odd], count=2, batch=2, seed=2, **SIZE)
    assert_same(ours[1], theirs(pipe, nets[PLAIN], image=odd, **SIZE))


@pytest.mark.parametrize(("start", "end"), [(0.2, 1.0), (0.0, 0.6), (0.4, 0.8), (0.05, 0.15)])
def test_for_a_share_of_the_steps(parts, start, end):
    root, pipe, nets = parts
    ours = with_controls(root, [PLAIN], [edges()], control_start=(start,), control_end=(end,), **SIZE)
    shares = {"control_guidance_start": start, "control_guidance_end": end}
    assert_same(ours[0], theirs(pipe, nets[PLAIN], image=edges(), **shares, **SIZE))


def test_every_step_is_led_or_not():
    """diffusers' rule, at every step of every number of steps."""
    for num in (1, 7, 30, 75, 200):
        for start, end in [(0.0, 1.0), (0.0, 0.5), (0.3, 1.0), (0.21, 0.68), (0.99, 1.0)]:
            led = window(num, start, end)
            assert [i in led for i in range(num)] == [not (i / num < start or (i + 1) / num > end) for i in range(num)]


def test_steps_of_equal_timesteps_are_told_apart(parts, tmp_path):
    """dpmpp_2m with Karras' σ may have two steps of one timestep, of which one is led and the other not."""
    root, _, _ = parts
    folder = shutil.copytree(root / "sd", tmp_path / "sd")
    rewrite_json(folder / "scheduler" / "scheduler_config.json", lambda raw: raw | {"num_train_timesteps": 10})
    pipeline = opened(folder)
    control = load_control(open_control(Source(PLAIN, root / PLAIN, "folder"), pipeline.checkpoint), pipeline)
    seen: list[float] = []
    control.register_forward_pre_hook(lambda network, given: seen.append(float(given[1][0])))
    asked = ImageRequest(
        prompt="a", seed=1, steps=8, guidance=1, sampler="dpmpp_2m", sampler_options={"karras": True},
        control=(PLAIN,), control_image=("c.png",), control_end=(0.75,), **SIZE,
    )  # fmt: skip
    list(generate(pipeline, resolve(asked, pipeline.checkpoint), controls=[(control, edges())]))
    schedule = NoiseSchedule.from_config(pipeline.checkpoint.configs["scheduler"])
    told = [step.at.t for step in samplers.get("dpmpp_2m").steps(schedule, 8, karras=True)]
    assert seen == told[:6] and told[5] == told[6]


@pytest.mark.parametrize("channels", [4, 9])
def test_where_a_mask_is_white(parts, tmp_path, channels):
    """Beside a UNet that reads the mask, the ControlNet reads the latents alone."""
    root, pipe, nets = parts
    folder = root / "sd" if channels == 4 else tmp_path / "inpaint"
    pipe = pipe if channels == 4 else make_inpaint(folder)
    pipeline = opened_once(folder)
    control = load_control(open_control(Source(PLAIN, root / PLAIN, "folder"), pipeline.checkpoint), pipeline)
    given = {
        "init": "i.png",
        "mask": "m.png",
        "control": (PLAIN,),
        "control_image": ("c.png",),
        "strength": 0.8,
        "paste": False,
    }
    request = resolve(ImageRequest(prompt=PROMPT, seed=3, steps=5, **given, **SIZE), pipeline.checkpoint, (96, 64))
    events = generate(pipeline, request, init=picture(), mask=half_mask(), controls=[(control, edges())])
    ours = next(event.image for event in events if isinstance(event, Picture))
    images = {"image": picture(), "mask_image": half_mask(), "control_image": edges(), "strength": 0.8}
    images |= {"controlnet_conditioning_scale": 1.0}  # its default is half
    assert_same(ours, theirs(pipe, nets[PLAIN], kind="StableDiffusionControlNetInpaintPipeline", **images, **SIZE))


def test_two_at_once(parts):
    root, pipe, nets = parts
    images = [edges(), edges(seed=1)]
    ours = with_controls(root, [PLAIN, OTHER], images, control_scale=(0.6, 1.2), control_end=(1.0, 0.5), **SIZE)
    shares = {"control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0, 0.5]}
    scales = {"controlnet_conditioning_scale": [0.6, 1.2]}
    assert_same(ours[0], theirs(pipe, [nets[PLAIN], nets[OTHER]], image=images, **shares, **scales, **SIZE))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_one_that_speaks_of_the_whole_picture(parts, guidance):
    """Nothing of it is said where guidance leads away from."""
    root, pipe, nets = parts
    ours = with_controls(root, [POOLED], [edges()], guidance=guidance, **SIZE)
    assert_same(ours[0], theirs(pipe, nets[POOLED], image=edges(), guidance_scale=guidance, **SIZE))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_from_a_picture(parts, strength):
    root, pipe, nets = parts
    ours = with_controls(root, [PLAIN], [edges()], init=picture(), strength=strength, control_end=(0.7,), eta=0.5)
    wanted = theirs(
        pipe,
        nets[PLAIN],
        kind="StableDiffusionControlNetImg2ImgPipeline",
        image=picture(),
        control_image=edges(),
        strength=strength,
        control_guidance_end=0.7,
        controlnet_conditioning_scale=1.0,
        eta=0.5,
    )
    assert_same(ours[0], wanted)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cross_attention_dim": 32}, "does not fit sd: its cross_attention_dim is 32, not 24"),
        ({"block_out_channels": [16, 64]}, "block_out_channels"),
        ({"layers_per_block": 2}, "its layers_per_block is 2, not 1"),
        ({"in_channels": 9}, "its in_channels is 9, not 4"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "its pixels a latent is 2, not 8"),
        ({"conditioning_channels": 6}, "6 channels"),
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel, no ControlNet"),
        ({"strange": 1}, "strange = 1"),
    ],
)
def test_one_that_does_not_fit_is_refused(parts, tmp_path, changes, match):
    raw = {"_class_name": "ControlNetModel", **CONTROLNET, **SMALL_CONTROLNET, **changes}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(GencliError, match=match):
        open_control(Source("odd", tmp_path, "folder"), opened_once(parts[0] / "sd").checkpoint)


def test_models_that_none_fits(parts, tmp_path):
    make_ddpm(tmp_path / "ddpm")
    checkpoint = open_image_checkpoint(Source("ddpm", tmp_path / "ddpm", "folder"))
    with pytest.raises(GencliError, match="no UNet that a ControlNet could lead"):
        open_control(Source(PLAIN, parts[0] / PLAIN, "folder"), checkpoint)
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(GencliError, match="single files"):
        open_control(Source("a.safetensors", tmp_path / "a.safetensors", "file"), checkpoint)
