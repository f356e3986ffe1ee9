"""guided-diffusion's UNet against its definition (`tests.oracles.guided_reference`) and diffusers' UNet2DModel.

Whole images are held against the formulas of its sampling: learned variance, cosine betas, clipped x0.
"""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.checkpoints.formats import guided_diffusion
from gencli.errors import GencliError, UsageError
from gencli.image.diffusion.schedule import NoiseSchedule
from gencli.image.generate import Picture, generate
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.models import guided_classifier, guided_unet
from tests.opening import open_part
from tests.oracles.guided_reference import Reference
from tests.oracles.guided_sampling import alphas, picture, sample, sample_ddim
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import assert_same
from tests.tiny.classes import FLAGS, make_class_unet, make_guided, write

NETWORKS = {
    "adm": {},
    "classes and the new order": {"new_order": True, "classes": 5},
    "four heads": {"head": None, "heads": 4, "mult": (1, 2, 2), "attended": (2, 4)},
    "convolutions resize": {"updown": False, "mult": (1, 2, 2), "attended": (4,), "depth": 2},
    "no scale": {"scale_shift": False, "depth": 2, "attended": (1, 2), "outputs": 3},
    "a half level": {"channels": 64, "mult": (0.5, 1), "attended": ()},
    "one level": {"mult": (1,), "attended": (), "inputs": 1, "outputs": 2},
}


def flags_of(network, **more):
    heads = {"num_heads": network.heads} if network.head is None else {"num_head_channels": network.head}
    return {"image_size": 16, "use_new_attention_order": network.new_order, **heads, **more}


def opened(file, *, allow_pickle=False):
    return load(open_image_checkpoint(Source(file.name, file, "file"), allow_pickle=allow_pickle), device="cpu")


def draw(pipeline, prompts=None, **values):
    request = resolve(ImageRequest(**{"seed": 3, **values}), pipeline.checkpoint)
    return [event.image for event in generate(pipeline, request, prompts) if isinstance(event, Picture)]


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_network_and_what_its_tensors_tell(tmp_path, kind):
    """From a file of each shape, with no more said than what no tensor tells."""
    network = Reference(**{"head": 16, **NETWORKS[kind]})
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, network.inputs, 16, 16, generator=generator)
    t, y = torch.tensor([3.0, 721.5]), None if network.classes is None else torch.tensor([0, 4])
    expected = network.unet(x, t, y)
    write(tmp_path / "unet.safetensors", network.state)
    (tmp_path / "unet.json").write_text(json.dumps(flags_of(network)))
    config, tensors = open_part(tmp_path / "unet.safetensors", "unet")
    ours = build.load(tmp_path, config=config, tensors=tensors)
    torch.testing.assert_close(ours(x, t, y), expected, atol=1e-4, rtol=1e-5)
    assert config["num_res_blocks"] == network.depth
    assert tuple(config["channel_mult"]) == network.mult
    assert tuple(config["attention_resolutions"]) == network.attended
    assert config["resblock_updown"] == (network.updown and len(network.mult) > 1)
    assert config["num_classes"] == network.classes


@pytest.mark.parametrize("wrong", [{"use_new_attention_order": True}, {"num_head_channels": 32}])
@torch.no_grad()
def test_what_no_tensor_tells_makes_a_difference(tmp_path, wrong):
    """The order of heads and their width leave no trace in names and shapes: hence the rule that they are told."""
    network = make_guided(tmp_path / "unet.safetensors", FLAGS | wrong)
    config, tensors = open_part(tmp_path / "unet.safetensors", "unet")
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    ours = build.load(tmp_path, config=config, tensors=tensors)(x, torch.tensor([7.0]))
    assert (ours - network.unet(x, torch.tensor([7.0]))).abs().max() > 1e-3


def diffusers_name(name):
    """A name of ours in a UNet2DModel of two levels, one block each, where blocks resize."""
    places = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding", "input_blocks.0.0": "conv_in",
        "input_blocks.1.0": "down_blocks.0.resnets.0", "input_blocks.2.0": "down_blocks.0.downsamplers.0",
        "input_blocks.3.0": "down_blocks.1.resnets.0", "input_blocks.3.1": "down_blocks.1.attentions.0",
        "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "output_blocks.0.0": "up_blocks.0.resnets.0", "output_blocks.0.1": "up_blocks.0.attentions.0",
        "output_blocks.1.0": "up_blocks.0.resnets.1", "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.1.2": "up_blocks.0.upsamplers.0",
        "output_blocks.2.0": "up_blocks.1.resnets.0", "output_blocks.3.0": "up_blocks.1.resnets.1",
        "out.0": "conv_norm_out", "out.2": "conv_out",
    }  # fmt: skip
    inner = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2"}
    inner |= {"out_layers.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0"}
    module, _, kind = name.rpartition(".")
    place = next(one for one in sorted(places, key=len, reverse=True) if module == one or module.startswith(one + "."))
    return ".".join(part for part in (places[place], inner.get(module[len(place) + 1 :]), kind) if part)


@torch.no_grad()
def test_diffusers_unet_of_the_same_shape(tmp_path):
    """As diffusers runs OpenAI's consistency models, which are this network (new order of q, k and v)."""
    network = make_guided(tmp_path / "unet.safetensors", FLAGS | {"use_new_attention_order": True}, classes=5)
    config, tensors = open_part(tmp_path / "unet.safetensors", "unet")
    ours = build.load(tmp_path, config=config, tensors=tensors)
    theirs = diffusers.UNet2DModel(
        sample_size=16, out_channels=6, layers_per_block=1, num_class_embeds=5, block_out_channels=(32, 64),
        attention_head_dim=16, norm_num_groups=32, attn_norm_num_groups=32, resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet",
    ).eval()  # fmt: skip
    state = {}
    for name, tensor in network.state.items():
        if ".qkv." in name:
            for part, cut in zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=True):
                new = diffusers_name(name.replace("qkv", "norm")).replace("group_norm", part)
                state[new] = cut.flatten(1) if cut.ndim == 3 else cut
        else:
            state[diffusers_name(name)] = tensor.flatten(1) if ".proj_out.weight" in name else tensor
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    t, y = torch.tensor([3.0, 721.0]), torch.tensor([0, 4])
    torch.testing.assert_close(ours(x, t, y), theirs(x, t, class_labels=y).sample, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("64x64_diffusion", {"channels": 192, "mult": (1, 2, 3, 4), "depth": 3, "attended": (2, 4, 8)}, 296),
        ("128x128_diffusion", {"channels": 256, "mult": (1, 1, 2, 3, 4), "depth": 2, "attended": (4, 8, 16)}, 422),
        ("256x256_diffusion", {"channels": 256, "mult": (1, 1, 2, 2, 4, 4), "depth": 2, "attended": (8, 16, 32)}, 554),
        ("512x512_diffusion", {"channels": 256, "mult": (0.5, 1, 1, 2, 2, 4, 4), "depth": 2, "attended": (16, 32, 64)},
         559),
        ("64x64_classifier", {"channels": 128, "mult": (1, 2, 3, 4), "depth": 4, "attended": (2, 4, 8)}, 65),
        ("256x256_classifier", {"channels": 128, "mult": (1, 1, 2, 2, 4, 4), "depth": 2, "attended": (8, 16, 32)}, 54),
    ],
)  # fmt: skip
def test_published_files_have_the_sizes_of_the_paper(name, shape, millions):
    """Networks of the published flags on `meta`, and their configs told again by names and shapes alone."""
    flags = guided_diffusion.flags(name, None)
    classifier = "classifier" in name
    module = guided_classifier if classifier else guided_unet
    config = {
        "image_size": flags["image_size"], "model_channels": shape["channels"], "num_res_blocks": shape["depth"],
        "attention_resolutions": list(shape["attended"]), "channel_mult": list(shape["mult"]),
        "use_scale_shift_norm": True, "resblock_updown": True, "out_channels": 1000 if classifier else 6,
        "in_channels": 3, **{key: flags[key] for key in guided_diffusion.HEADS if key in flags},
    }  # fmt: skip
    config |= {"pool": "attention"} if classifier else {"num_classes": 1000}
    with torch.device("meta"):
        model = module.Model(module.Config.from_dict(config))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert round(sum(map(math.prod, shapes.values())) / 1e6) == millions
    told = (guided_diffusion.classifier_config if classifier else guided_diffusion.unet_config)(shapes, flags)
    assert {**told, "_class_name": None} == {**config, "_class_name": None}


@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_pictures(tmp_path, betas):
    """With and without a class; a JSON beside the file; safetensors and a pickle; ancestral steps and DDIM."""
    classes = 5 if betas == "cosine" else None
    file = tmp_path / ("unet.pt" if classes else "unet.safetensors")
    network = make_guided(file, FLAGS | {"noise_schedule": betas}, classes=classes)
    pipeline = opened(file, allow_pickle=True)
    asked = {"prompt": "4"} if classes else {}
    label = 4 if classes else None
    ours = draw(pipeline, sampler="ddpm", steps=5, spacing="linspace", **asked)[0]
    grid = [round(i * 999 / 4) for i in (4, 3, 2, 1, 0)]  # guided-diffusion's timestep_respacing
    assert_same(ours, sample(network, grid, betas, label))
    ours = draw(pipeline, steps=5, **asked)[0]
    assert_same(ours, sample_ddim(network, [800, 600, 400, 200, 0], betas, label))  # and its ddim5


def test_file_known_by_its_name(tmp_path):
    """64x64_diffusion.pt: cosine betas, heads of 64 in the new order, 1000 classes, with nothing beside it."""
    file = tmp_path / "64x64_diffusion.pt"
    network = make_guided(file, head=64, new_order=True, classes=1000, side=16)
    pipeline = opened(file, allow_pickle=True)
    assert pipeline.checkpoint.size == (64, 64)
    ours = draw(pipeline, prompt="999", steps=2, sampler="ddpm")[0]
    assert_same(ours, sample(network, [500, 0], "cosine", 999, side=64))
    with pytest.raises(UsageError, match="no names of its classes"):
        draw(pipeline, prompt="golden retriever")


def test_schedules_are_the_original_ones():
    for kind in ("linear", "cosine"):
        told = guided_diffusion.scheduler_config({"in_channels": 3, "out_channels": 6}, {"noise_schedule": kind})
        schedule = NoiseSchedule.from_config(told)
        np.testing.assert_allclose(np.asarray(schedule.alphas_cumprod), alphas(kind), rtol=1e-9)
        assert schedule.variance_type == "learned_range"
    fixed = guided_diffusion.scheduler_config({"in_channels": 3, "out_channels": 3}, {"diffusion_steps": 4000})
    schedule = NoiseSchedule.from_config(fixed)
    assert schedule.variance_type == "fixed_large"
    np.testing.assert_allclose(np.asarray(schedule.betas), np.linspace(0.25 * 0.0001, 0.25 * 0.02, 4000))


def test_names_of_classes_beside_the_file(tmp_path):
    labels = {"0": "cat, house cat", "1": "dog"}
    make_guided(tmp_path / "pets.safetensors", FLAGS | {"id2label": labels}, classes=2)
    pipeline = opened(tmp_path / "pets.safetensors")
    assert_same(draw(pipeline, prompt="House Cat", steps=1)[0], draw(pipeline, prompt="0", steps=1)[0], tolerance=0)
    one, other = draw(pipeline, prompts=["cat", "dog"], batch=2, steps=1)
    assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() > 5
    with pytest.raises(UsageError, match="no class is named") as error:
        draw(pipeline, steps=1)
    assert "0 to 1" in error.value.hint
    with pytest.raises(UsageError, match="has no class that stands for none: --cfg-scale"):
        draw(pipeline, prompt="cat", guidance=3.0)
    with pytest.raises(UsageError, match="must be a multiple of 2"):
        draw(pipeline, prompt="cat", width=17)


@pytest.mark.parametrize(
    ("flags", "shape", "match"),
    [
        (None, {}, "does not say its size of images"),
        ({"image_size": 16}, {}, "must say image_size, and num_heads"),
        (FLAGS | {"rescale_timesteps": True}, {}, "not supported: rescale_timesteps"),
        (FLAGS | {"noise_schedule": "sqrt"}, {}, "noise_schedule = 'sqrt'"),
        (FLAGS | {"diffusion_steps": "many"}, {}, "diffusion_steps"),
        (FLAGS | {"num_head_channels": 24}, {}, "do not come out even"),
        (FLAGS | {"image_size": "large"}, {}, "is not an image size"),
        (FLAGS, {"inputs": 6}, "an upsampler"),
        (FLAGS | {"id2label": {"7": "x"}}, {"classes": 5}, "names a class 7"),
    ],
)
def test_files_that_are_refused(tmp_path, flags, shape, match):
    file = tmp_path / "unet.safetensors"
    make_guided(file, flags, **shape)
    with pytest.raises(GencliError, match=match) as error:
        draw(opened(file), prompt="1" if shape.get("classes") else "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("input_blocks.1.0.emb_layers.1.weight"), "input_blocks.1.0.emb_layers.1.weight is"),
        (lambda state: state.pop("middle_block.1.qkv.bias"), r"lacks tensors: middle_block.1.qkv.bias"),
        (lambda state: state.update({"ema.x": torch.zeros(2)}), "that its config does not explain: ema.x"),
        (lambda state: state.update({"input_blocks.9.0.x": torch.zeros(2)}), "input_blocks.4 is missing"),
        (lambda state: state.update({"time_embed.0.weight": torch.zeros(2)}), "time_embed.0.weight is"),
        (lambda state: state.update({"out.2.bias": torch.zeros(7)}), "does not fit its config"),
    ],
)
def test_broken_files_end_in_one_line(tmp_path, change, match):
    file = tmp_path / "unet.safetensors"
    network = make_guided(file, FLAGS)
    state = dict(network.state)
    change(state)
    save_file(state, file)
    with pytest.raises(GencliError, match=match):
        opened(file)


def test_unet_2d_with_classes(tmp_path):
    """Our steps around diffusers' network: its own DDPMPipeline cannot tell it a class."""
    unet = make_class_unet(tmp_path)
    pipeline = load(open_image_checkpoint(Source("classes", tmp_path, "folder")), device="cpu")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    t, y = torch.tensor([3, 721]), torch.tensor([0, 9])
    with torch.no_grad():
        expected = unet(x, t, class_labels=y).sample
        torch.testing.assert_close(pipeline.main.network(x, t, class_labels=y), expected, atol=1e-4, rtol=1e-5)
        ours = draw(pipeline, prompt="j", steps=2)[0]
        x = torch.randn((1, 3, 32, 32), generator=torch.Generator("cpu").manual_seed(3))
        scheduler = diffusers.DDIMScheduler.from_config(json.loads((tmp_path / "scheduler_config.json").read_text()))
        scheduler.set_timesteps(2)
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=torch.tensor([9])).sample, t, x).prev_sample
    assert_same(ours, picture(x))
