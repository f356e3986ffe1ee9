"""DDPM checkpoints: google/ddpm-* in both layouts against diffusers, and the originals against formulas written out.

The originals are the files of pesser/pytorch_diffusion (Ho et al.'s weights) and of ermongroup/ddim: see
`tests/oracles/ermongroup.py`.
"""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.find import Source
from gencli.errors import GencliError, UsageError
from gencli.image.files.pictures import to_picture
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from tests.opening import open_file
from tests.oracles import ermongroup
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import assert_same, generator
from tests.tiny.ldm import SMALL_VARIANCE, make_ddpm_256, make_grey, to_pickles, with_scheduler

TOLERANCE = {"atol": 2e-5, "rtol": 0}
LARGE = {"ch": 32, "mult": (1, 1, 2), "blocks": 2, "attends": (1,)}  # attends at 16: pictures of 32


def opened(path, **kwargs):
    kind = "file" if path.is_file() else "folder"
    return load(open_image_checkpoint(Source(path.name, path, kind), **kwargs), device="cpu")


@functools.cache
def opened_once(path):
    return opened(path)


def draw(path, pipeline=None, **values):
    """Our finished pictures."""
    pipeline = pipeline or opened_once(path)
    request = resolve(ImageRequest(**{"seed": 3, **values}), pipeline.checkpoint)
    return [event.image for event in generate(pipeline, request) if isinstance(event, Picture)]


# --- google/ddpm-*


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("ddpm")
    pipes = {kind: make_ddpm_256(root / kind, root=kind == "root") for kind in ("root", "folders")}
    return {kind: (root / kind, pipe) for kind, pipe in pipes.items()}


def test_the_two_layouts(folders):
    root, separate = (folders[kind][0] for kind in ("root", "folders"))
    assert (root / "config.json").is_file()
    assert any(".proj_attn." in name for name in load_file(root / "diffusion_pytorch_model.safetensors"))
    assert (separate / "unet/config.json").is_file()
    assert (separate / "scheduler/scheduler_config.json").is_file()
    assert open_image_checkpoint(Source("root", root, "folder")).multiple == 32


@pytest.mark.parametrize(("kind", "variance"), [("root", "fixed_small"), ("folders", "fixed_large")])
def test_ancestral_sampling(folders, kind, variance):
    folder, pipe = folders[kind]
    pipe = with_scheduler(pipe, "DDPMScheduler", variance_type=variance)
    theirs = pipe(num_inference_steps=6, generator=generator()).images[0]
    options = {"sampler_options": {"variance_type": variance}} if variance != "fixed_small" else {}
    assert_same(draw(folder, sampler="ddpm", steps=6, **options)[0], theirs)


def test_all_thousand_steps(tmp_path):
    """As the model was meant to be drawn from, in the size of CIFAR-10's eighth."""
    pipe = make_grey(tmp_path)
    theirs = pipe(num_inference_steps=1000, generator=generator()).images[0]
    assert_same(draw(tmp_path, sampler="ddpm", steps=1000)[0], theirs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(folders, eta):
    folder, pipe = folders["root"]
    pipe = diffusers.DDIMPipeline(unet=pipe.unet, scheduler=pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(num_inference_steps=6, eta=eta, use_clipped_model_output=False, generator=generator()).images[0]
    assert_same(draw(folder, steps=6, eta=eta)[0], theirs)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("euler", "EulerDiscreteScheduler"),
        ("euler_a", "EulerAncestralDiscreteScheduler"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
    ],
)
def test_other_samplers(folders, sampler, scheduler):
    """diffusers' DDPMPipeline neither scales the noise nor what the model is told, so its loop is written out."""
    folder, pipe = folders["root"]
    scheduler = with_scheduler(pipe, scheduler).scheduler
    scheduler.set_timesteps(6)
    noise = generator()
    x = torch.randn(1, 3, 64, 64, generator=noise) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipe.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, generator=noise).prev_sample
    assert_same(draw(folder, sampler=sampler, steps=6)[0], to_picture(x[0]))


def test_pickles(folders, tmp_path):
    path = tmp_path / "pickled"
    make_ddpm_256(path)
    to_pickles(path)
    assert [file.name for file in path.glob("*.bin")] == ["diffusion_pytorch_model.bin"]
    with pytest.raises(GencliError, match="no weights in safetensors"):
        opened(path)
    same = draw(folders["root"][0], steps=1)[0]
    assert_same(draw(path, opened(path, allow_pickle=True), steps=1)[0], same, tolerance=0)


# --- the originals


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A file as pesser/pytorch_diffusion has it, but in safetensors; and its tensors."""
    weights = ermongroup.weights(**LARGE)
    path = tmp_path_factory.mktemp("original") / "ema_diffusion_cifar10_model.safetensors"
    save_file(weights, path)
    return path, weights


SHAPES = [LARGE, {"ch": 64, "mult": (1, 2), "blocks": 1, "attends": ()}, {"mult": (1, 1, 2, 2), "attends": (0, 2)}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_network(tmp_path, shape):
    weights = ermongroup.weights(**shape)
    save_file(weights, tmp_path / "model.safetensors")
    model = opened(tmp_path / "model.safetensors").main.network
    x, t = torch.randn(2, 3, 16, 24, generator=generator()), torch.tensor([981, 20])
    expected = ermongroup.unet(weights, x, t)
    assert expected.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(model(x, t.float()), expected, **TOLERANCE)
        config = dict(open_file(tmp_path / "model.safetensors").parts["unet"].config)
        config.pop("_class_name")
        reference = diffusers.UNet2DModel(**config)
        reference.load_state_dict(model.state_dict())
        torch.testing.assert_close(reference.eval()(x, t).sample, expected, **TOLERANCE)


def test_what_shapes_tell(original):
    checkpoint = open_image_checkpoint(Source("file", original[0], "file"))
    assert checkpoint.size == (32, 32)
    config, scheduler = checkpoint.configs["unet"], checkpoint.configs["scheduler"]
    assert config["block_out_channels"] == [32, 32, 64]
    assert config["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]
    assert config["layers_per_block"] == 2
    assert scheduler["variance_type"] == "fixed_large"  # as CIFAR-10's


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_from_the_original(original, tmp_path, clip):
    """ermongroup/ddim does not clip x0, Ho et al. and google/ddpm-* do, and so do we unless told otherwise."""
    path, weights = original
    pipeline = opened(path)
    if not clip:
        object.__setattr__(pipeline.main.schedule, "clip_sample", False)
    x = torch.randn(1, 3, 32, 32, generator=generator())
    timesteps = [*range(0, 1000, 250)][::-1]
    expected = ermongroup.ddim_steps(functools.partial(ermongroup.unet, weights), x, timesteps, clip=clip)
    assert_same(draw(path, pipeline, steps=4)[0], to_picture(expected[0]))


@pytest.mark.parametrize("large", [True, False])
def test_ddpm_from_the_original(original, large):
    path, weights = original
    noise = generator()
    x = torch.randn(1, 3, 32, 32, generator=noise)
    timesteps = [*range(0, 1000, 250)][::-1]
    model = functools.partial(ermongroup.unet, weights)
    expected = ermongroup.ddpm_steps(
        model, x, timesteps, lambda: torch.randn(1, 3, 32, 32, generator=noise), large=large
    )
    options = {} if large else {"sampler_options": {"variance_type": "fixed_small"}}
    assert_same(draw(path, sampler="ddpm", steps=4, **options)[0], to_picture(expected[0]))


def test_the_folder_it_becomes_gives_equal_pixels(original, tmp_path):
    path, _ = original
    checkpoint = open_image_checkpoint(Source("file", path, "file"))
    config = dict(checkpoint.configs["unet"])
    model = diffusers.UNet2DModel(**{key: value for key, value in config.items() if key != "_class_name"})
    model.load_state_dict(opened_once(path).main.network.state_dict())
    model.save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(checkpoint.configs["scheduler"]))
    for values in ({"steps": 2}, {"steps": 2, "sampler": "ddpm"}):
        assert_same(draw(tmp_path, **values)[0], draw(path, **values)[0], tolerance=0)


FORMS = {
    "plain.ckpt": lambda weights: weights,
    "wrapped.pt": lambda weights: {"state_dict": weights, "step": 3},
    # ermongroup/ddim's ckpt.pth: the model under DataParallel, the optimizer, epoch, step, averaged weights
    "ckpt.pth": lambda weights: [
        {f"module.{name}": tensor * 2 for name, tensor in weights.items()},
        {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        5,
        100,
        weights,
    ],
    "without_ema.pth": lambda weights: [
        {f"module.{name}": tensor for name, tensor in weights.items()},
        {"state": {}, "param_groups": []},
        5,
        100,
    ],
}


@pytest.mark.parametrize("name", FORMS)
def test_pickles_of_the_originals(original, tmp_path, name):
    path, weights = original
    torch.save(FORMS[name](weights), tmp_path / name)
    with pytest.raises(GencliError, match="is a pickle") as error:
        opened(tmp_path / name)
    assert "--allow-pickle" in (error.value.hint or "")
    network, same = opened(tmp_path / name, allow_pickle=True).main.network, opened_once(path).main.network.state_dict()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, same[key]), key


def test_what_stands_beside_the_file(tmp_path):
    """Where attention does not tell the size, it must be said; and so may what ermongroup's configs say."""
    path = tmp_path / "model.safetensors"
    save_file(ermongroup.weights(mult=(1, 2), attends=()), path)
    with pytest.raises(UsageError, match="does not say its size"):
        draw(path)
    assert draw(path, steps=2, width=16, height=24)[0].size == (16, 24)
    beside = {"image_size": 24, "var_type": "fixedsmall", "beta_schedule": "quad", "num_diffusion_timesteps": 500}
    (tmp_path / "model.json").write_text(json.dumps(beside))
    checkpoint = open_image_checkpoint(Source("file", path, "file"))
    assert checkpoint.size == (24, 24)
    assert checkpoint.configs["scheduler"] | {"beta_start": 0.0001} == checkpoint.configs["scheduler"]
    expected = {"variance_type": "fixed_small", "beta_schedule": "scaled_linear", "num_train_timesteps": 500}
    assert checkpoint.configs["scheduler"] | expected == checkpoint.configs["scheduler"]


@pytest.mark.parametrize(
    ("beside", "match"),
    [
        ({"ema": True}, "model.json: ema is not supported"),
        ({"image_size": "32"}, "model.json: image_size = '32'"),
        ({"image_size": True}, "image_size = True"),
        ({"var_type": "learned"}, "var_type = 'learned'"),
        ({"beta_schedule": "jsd"}, "beta_schedule = 'jsd'"),
        ({"beta_start": 7.0}, "beta_start = 7.0"),
    ],
)
def test_what_may_not_stand_beside_the_file(tmp_path, beside, match):
    path = tmp_path / "model.safetensors"
    save_file(ermongroup.weights(mult=(1, 1)), path)
    (tmp_path / "model.json").write_text(json.dumps(beside))
    with pytest.raises(GencliError, match=match):
        opened(path)


def without(*parts):
    return lambda weights: {name: one for name, one in weights.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("mid.attn_1"), "mid.attn_1.q.weight is missing"),
        (without("downsample", "upsample"), "resamp_with_conv = false"),
        (without("down.1"), r"down.1 is missing"),
        (without("up.1.block.0.norm1"), r"lacks tensors: up_blocks"),
        (lambda weights: weights | {"down.0.block.0.extra.weight": torch.zeros(1)}, "has not: down.0.block.0.extra"),
        (lambda weights: weights | {"x_embedder.proj.weight": torch.zeros(1), "y_embedder.embedding_table.weight":
            torch.zeros(1), "blocks.0.adaLN_modulation.1.weight": torch.zeros(1)}, "two networks, a DiT and DDPM's"),
        (lambda weights: weights | {"mid.block_1.conv1.weight": torch.zeros(64, 64, 5, 5)}, "does not fit its config"),
        (lambda weights: weights | {"conv_in.weight": torch.zeros(16, 3, 3, 3)}, "conv_in 16"),
        (lambda weights: weights | {"down.0.block.1.conv1.weight": torch.zeros(1)}, "2, 1, 1 blocks"),
        (lambda weights: weights | {"conv_in.weight": torch.zeros(32)}, "must have 4 dimensions"),
        (lambda weights: weights | {f"down.{i}.x": torch.zeros(1) for i in range(99)}, "99 levels: at most 8"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path, change, match):
    path = tmp_path / "model.safetensors"
    save_file(change(ermongroup.weights()), path)
    with pytest.raises(GencliError, match=match):
        opened(path)


def test_a_parameter_of_the_loss_goes_unused(original, tmp_path):
    path, weights = original
    save_file(weights | {"logvar": torch.zeros(1000)}, tmp_path / "model.safetensors")
    assert_same(draw(tmp_path / "model.safetensors", steps=1)[0], draw(path, steps=1)[0], tolerance=0)


def test_schedulers_of_the_hub_are_read(folders):
    raw = json.loads((folders["root"][0] / "scheduler_config.json").read_text())
    assert raw == SMALL_VARIANCE
    assert opened_once(folders["root"][0]).main.schedule.variance_type == "fixed_small"
