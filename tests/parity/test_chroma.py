"""Chroma against diffusers: what its small network reads within 1e-6, texts within 1e-4, whole images within 2/255; its
real sizes without a number in them. `test_flow.py` has the rest of what it shares with its relatives."""

import importlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest
from gencli.image.resolve import resolve
from gencli.kernels.packed import Packed
from gencli.models import architecture
from tests.oracles.flow import NEGATIVE, PROMPT, SIZE, chroma_texts, draw_chroma
from tests.oracles.libraries import diffusers
from tests.oracles.pipelines import assert_same, draw, half_mask, opened, picture
from tests.tiny import flow
from tests.tiny.image import rewrite_json

SETTINGS = {"prompt": PROMPT, "negative": NEGATIVE, "steps": 4, **SIZE}
REAL = flow.CHROMA | {
    "approximator_hidden_dim": 5120, "approximator_layers": 5, "attention_head_dim": 128, "num_attention_heads": 24,
    "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 4096, "num_layers": 19, "num_single_layers": 38,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chroma") / "chroma"
    pipe = flow.make_chroma(folder)
    return folder, pipe, opened(folder)


@pytest.fixture(scope="module")
def tensors(made):
    return load_file(made[0] / "transformer" / "diffusion_pytorch_model.safetensors")


def image_of(file):
    pipeline = load(open_image_checkpoint(Source(file.name, file, "file")), device="cpu")
    return draw(file, pipeline=pipeline, **SETTINGS)[0].image


@torch.no_grad()
def test_texts(made):
    """The states of T5 without its padding, and one token of that for the network."""
    folder, pipe, _ = made
    conditioner = opened(folder).main.conditioner
    tokenizer = conditioner.tokenizer
    for text in ("", 'A "Fox"\n and 你好  ', "the red apple " * 25):
        ours = conditioner.encode([text], ImageRequest())
        states, mask = chroma_texts(pipe, tokenizer, text)
        assert ours["lengths"].tolist() == mask.sum(1).tolist()
        torch.testing.assert_close(ours["caption"][mask], states[mask], atol=1e-4, rtol=0)
    ours = conditioner.encode(["apple " * 600], ImageRequest(truncate="right"))
    assert ours["lengths"].tolist() == [512]
    with pytest.raises(GencliError, match="reads at most 511"):
        conditioner.encode(["apple " * 600], ImageRequest())


def test_what_the_small_network_reads():
    """For all 344 outputs of the real one, whose angles are up to 343,000."""
    module = architecture("ChromaTransformer2DModel")
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(REAL))
    chroma = importlib.import_module("diffusers.models.transformers.transformer_chroma")
    theirs = chroma.ChromaCombinedTimestepTextProjEmbeddings(num_channels=16, out_dim=ours.config.modulations)
    t = torch.tensor([1000.0, 431.0, 17.25])
    found = ours._of_each(t)
    assert found.shape == (3, 344, 64)
    torch.testing.assert_close(found, theirs(t), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["ChromaImg2ImgPipeline", "ChromaInpaintPipeline"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@torch.no_grad()
def test_from_an_image(made, monkeypatch, kind, strength):
    """These pipelines make numbers of masks, of which attention makes no mask, and one asks for a key that Chroma's
    config has not: both are set right first."""
    _, pipe, pipeline = made
    pipe = getattr(diffusers, kind)(**pipe.components)
    monkeypatch.setattr(type(pipe), "_prepare_attention_mask", diffusers.ChromaPipeline._prepare_attention_mask)
    pipe.transformer.register_to_config(guidance_embeds=False)
    pipe.set_progress_bar_config(disable=True)
    masks = {"mask_image": half_mask()} if kind == "ChromaInpaintPipeline" else {}
    given = {"image": picture(), "strength": strength, "steps": 4, "guidance": 3.0, **masks}
    theirs = draw_chroma(pipe, pipeline.checkpoint.tokenizer(), **given)
    mask = half_mask() if masks else None
    [ours] = draw(None, init=picture(), mask=mask, pipeline=pipeline, **SETTINGS, strength=strength, guidance=3.0)
    assert_same(ours.image, theirs)


def test_defaults(made):
    request = resolve(ImageRequest(prompt="a"), made[2].checkpoint)
    assert (request.steps, request.guidance, request.sampler, request.negative) == (35, 5.0, "euler", "")
    assert (request.width, request.height, made[2].checkpoint.multiple) == (1024, 1024, 16)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_of_the_transformer(made, tensors, prefix):
    file = flow.write_single(made[0] / "one.safetensors", flow.as_original(dict(tensors)), prefix)
    assert_same(image_of(file), draw(None, pipeline=made[2], **SETTINGS)[0].image, tolerance=1)


def test_gguf(made, tensors):
    """Equal to what the packed matrices stand for; they stay packed in memory."""
    original = flow.as_original(dict(tensors))
    seen = flow.write_gguf(made[0] / "Q8_0.gguf", original, "Q8_0", "flux")
    assert sum(seen[one] is not original[one] for one in seen) > 15
    plain = flow.write_single(made[0] / "exact.safetensors", seen)
    packed_file = load(open_image_checkpoint(Source("x", made[0] / "Q8_0.gguf", "file")), device="cpu")
    assert isinstance(packed_file.main.network.transformer_blocks[0].attn.to_k.weight, Packed)
    assert_same(draw(None, pipeline=packed_file, **SETTINGS)[0].image, image_of(plain))


def test_files_that_are_none(made, tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    original = flow.as_original(dict(tensors))
    lone = flow.write_single(tmp_path / "chroma.safetensors", original)
    with pytest.raises(GencliError, match="is Chroma's transformer without the other parts") as refusal:
        open_image_checkpoint(Source("x", lone, "file"))
    assert "models pull lodestones/Chroma1-HD" in (refusal.value.hint or "")
    less = {name: one for name, one in original.items() if name != "distilled_guidance_layer.norms.1.scale"}
    for said, changed in {
        "lacks tensors: distilled_guidance_layer.norms.1.weight": less,
        "Chroma Radiance, which draws in pixels": {**original, "nerf_image_embedder.weight": torch.ones(1)},
    }.items():
        with pytest.raises(GencliError, match=said):
            image_of(flow.write_single(made[0] / "broken.safetensors", changed))


def test_lora_of_a_fused_name(made, tensors, tmp_path):
    """Those of FLUX.1's code, of which one has q, k, v and a feed-forward network's input."""
    whole = flow.as_original(dict(tensors))["single_blocks.1.linear1.weight"]
    down, up = torch.randn(4, whole.shape[1]), torch.randn(len(whole), 4)
    name = "lora_unet_single_blocks_1_linear1"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    changed = opened(made[0], loras=[LoraRef(tmp_path / "lora.safetensors")]).main.network.state_dict()
    names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    found = torch.cat([changed[f"single_transformer_blocks.1.{name}.weight"] for name in names])
    torch.testing.assert_close(found, whole + up @ down, atol=1e-5, rtol=1e-5)
    assert sum(not torch.equal(changed[key], tensors[key]) for key in tensors) == 4


def test_names_and_counts():
    """The 8.9 billion parameters."""
    module, own = architecture("ChromaTransformer2DModel"), {k: v for k, v in REAL.items() if not k.startswith("_")}
    with torch.device("meta"):
        ours = module.Model(module.Config.from_dict(REAL)).state_dict()
        theirs = diffusers.ChromaTransformer2DModel(**own).state_dict()
    assert {name: one.shape for name, one in ours.items()} == {name: one.shape for name, one in theirs.items()}
    assert sum(one.numel() for one in ours.values()) / 1e9 == pytest.approx(8.9, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"in_channels": 32}, "in_channels"),
        ({"out_channels": 32}, "out_channels"),
        ({"joint_attention_dim": 96}, "joint_attention_dim"),
        ({"axes_dims_rope": [8, 8, 8]}, "axes_dims_rope"),
        ({"approximator_num_channels": 60}, "approximator_num_channels"),
        ({"approximator_layers": 0}, "approximator_layers"),
        ({"nonesuch": 3}, "nonesuch"),
    ],
)
def test_keys_that_are_not_supported_are_refused_by_name(made, tmp_path, changes, said):
    shutil.copytree(made[0], tmp_path / "chroma")
    rewrite_json(tmp_path / "chroma" / "transformer" / "config.json", lambda raw: raw | changes)
    with pytest.raises(GencliError, match=said):
        opened(tmp_path / "chroma")
