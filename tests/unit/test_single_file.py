"""Files that are no Stable Diffusion, or a broken one: each ends in one clear line of `gencli image`."""

import json
import math
import struct

import pytest
import torch
from safetensors.torch import save_file

from gencli.__main__ import main
from gencli.checkpoints.formats.stable_diffusion_keys import FAMILIES
from gencli.checkpoints.formats.stable_diffusion_schedule import alphas_cumprod
from gencli.checkpoints.safetensors_file import SafetensorsFile
from gencli.errors import GencliError
from tests.opening import configs, open_file
from tests.tiny import single as tiny

UNET, VAE = tiny.PREFIXES["unet"], tiny.PREFIXES["vae"]
KINDS = ("sd1", "sd2", "sdxl", "refiner")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Kind → names and shapes of a whole file, but for the noise schedule's."""
    root = tmp_path_factory.mktemp("shapes")
    found = {}
    for kind in KINDS:
        tensors = tiny.original(tiny.make_folder(root / kind, kind), kind)
        found[kind] = {name: tuple(t.shape) for name, t in tensors.items() if name not in ("betas", "alphas_cumprod")}
    return found


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """What `gencli image -m model.safetensors` says of a file, and its hint: one line each, and nothing on stdout."""
    monkeypatch.chdir(tmp_path)

    def refused(*more, name="model.safetensors"):
        code = main(["image", "-m", name, "a red apple", "--steps", "1", "--size", "64x64", "-o", "out.png", *more])
        out, err = capsys.readouterr()
        assert code == 1 and not out and not (tmp_path / "out.png").exists(), (out, err)
        lines = err.splitlines()
        assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "hint"]), err
        assert name in lines[0] and len(lines[0]) < 500
        return lines[0], lines[1] if len(lines) > 1 else ""

    return refused


def changed(shapes, kind, **more):
    return {**shapes[kind], **more}


def without(shapes, kind, start):
    return {name: shape for name, shape in shapes[kind].items() if not name.startswith(start)}


# --- what it is not --------------------------------------------------------------------------------------------------

OTHERS = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "it is a LoRA",
    "unet.down_blocks.0.attentions.0.proj_in.lora.down.weight": "it is a LoRA",
    "base_model.model.down_blocks.0.attn1.to_q.lora_A.weight": "it is a LoRA",
    "emb_params": "it is a textual inversion embedding",
    "<cat-toy>": "it is a textual inversion embedding",
    "clip_g": "it is a textual inversion embedding",
    "control_model.input_blocks.0.0.weight": "it is a ControlNet",
    "model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": "it is a Stable Diffusion 3",
    "double_blocks.0.img_attn.norm.key_norm.scale": "it is a FLUX",
    "double_blocks.0.img_attn_qkv.weight": "it is a HunyuanVideo",
    "model.diffusion_model.blocks.0.self_attn.norm_q.weight": "it is a Wan",
    "noise_refiner.0.attention.qkv.weight": "it is a Lumina 2",
    "model.double_layers.0.attn.w1q.weight": "it is an AuraFlow",
    "double_stream_blocks.0.block.ff_i.gate.weight": "it is a HiDream",
    "blocks.0.cross_attn.kv_linear.weight": "it is a PixArt or Sana",
    "text_model.embeddings.token_embedding.weight": "it is a text encoder, one part",
    "model.embed_tokens.weight": "it is a text model",
    "transformer.h.0.attn.c_attn.weight": "it is a text model",
    "first_stage_model.decoder.conv_in.weight": "it is an autoencoder, one part",
    "decoder.mid_block.resnets.0.conv1.weight": "it is an autoencoder, one part",
    "down_blocks.0.resnets.0.conv1.weight": "it is one part of a model in diffusers' layout",
    "something.else": "its keys are of no model for images that gencli knows (something.else)",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_called_by_their_name(refusal, tmp_path, name):
    tiny.write_header(tmp_path / "model.safetensors", {name: (8, 8)})
    error, _ = refusal()
    assert OTHERS[name] in error and name in error


@pytest.mark.slow
def test_a_unet_of_two_text_encoders_in_a_refiners_place(refusal, tmp_path, shapes):
    """The refiner's one text encoder is SDXL's second, in the place of the first."""
    names = {n.replace("embedders.1", "embedders.0"): s for n, s in shapes["sdxl"].items() if "embedders.0" not in n}
    tiny.write_header(tmp_path / "model.safetensors", names)
    error, _ = refusal()
    assert "its UNet reads texts that are 192 wide, and its text encoder makes 128" in error
    tiny.write_header(tmp_path / "model.safetensors", {"conditioner.embedders.0.model.ln_final.weight": (8,)})
    error, _ = refusal()
    assert "it has the text encoder of Stable Diffusion XL's refiner, and no UNet" in error


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("sd1", "sd2"), ("sd1", "sdxl"), ("sd2", "sdxl"), ("sdxl", "refiner")])
def test_keys_of_two_families(refusal, tmp_path, shapes, first, second):
    tiny.write_header(tmp_path / "model.safetensors", {**shapes[first], **shapes[second]})
    error, _ = refusal()
    assert f"keys of {FAMILIES[first].title} (" in error and f" and {FAMILIES[second].title} (" in error


PARTS = {
    "cond_stage_model.": "it has a UNet (model.diffusion_model.",
    VAE: "it is a Stable Diffusion 1 with no autoencoder in it (first_stage_model.*)",
    UNET: "and no UNet (model.diffusion_model.*)",
}


@pytest.mark.slow
@pytest.mark.parametrize("start", PARTS)
def test_parts_that_are_missing(refusal, tmp_path, shapes, start):
    names = without(shapes, "sd1", start)
    if start == UNET:  # and no autoencoder, which would be called one
        names = {name: shape for name, shape in names.items() if name.startswith("cond_stage_model.")}
    tiny.write_header(tmp_path / "model.safetensors", names)
    error, _ = refusal()
    assert PARTS[start] in error
    assert ("no text encoder in it" in error) == (start == "cond_stage_model.")


def test_a_pickle_is_not_opened(refusal, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model.ckpt")
    error, _ = refusal(name="model.ckpt")
    assert "model.ckpt is a pickle" in error


@pytest.mark.slow
def test_a_pickle_is_read_when_that_is_said(tmp_path, shapes, capsys):
    """A .ckpt as training wrote it: the weights under `state_dict`, beside numbers that are none."""
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes["sd1"].items()}
    tensors["alphas_cumprod"] = torch.tensor(alphas_cumprod("scaled_linear"))
    torch.save({"epoch": 1, "state_dict": tensors}, tmp_path / "model.ckpt")
    single = open_file(tmp_path / "model.ckpt", allow_pickle=True)
    save_file(tensors, tmp_path / "model.safetensors")
    assert configs(tmp_path / "model.ckpt", allow_pickle=True) == configs(tmp_path / "model.safetensors")
    assert torch.equal(single.parts["unet"].tensors().get("conv_out.bias"), tensors[f"{UNET}out.2.bias"])
    call = [str(tmp_path / "model.ckpt"), "--allow-pickle", "--json"]
    assert main(["models", "show", *call]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "StableDiffusionPipeline"
    main(["models", "check", *call])
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "its text encoder knows 544 tokens" in problem  # no tokenizer lies beside it; nothing else is amiss
    tensors["alphas_cumprod"] **= 2
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    with pytest.raises(GencliError, match="alphas_cumprod are not those"):
        open_file(tmp_path / "model.ckpt", allow_pickle=True)


# --- broken files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path, shapes):
    """A file whose tensors are all zeros."""
    return tiny.write_header(tmp_path / "model.safetensors", shapes["sd1"])


HEADERS = {
    "empty file": b"",
    "no room for a header": b"\x08\x00",
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10_000) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
    "nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a shape of words": b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 0]}}',
    "a shape below zero": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}',
    "no offsets": b'{"a": {"dtype": "F32", "shape": [0]}}',
    "an end after the file's": b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
    "a tensor that is a number": b'{"a": 7}',
    "metadata that is a list": b'{"__metadata__": [1]}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_broken_headers(refusal, tmp_path, what):
    content = HEADERS[what]
    if content.startswith(b"{"):
        content = struct.pack("<Q", len(content)) + content
    (tmp_path / "model.safetensors").write_bytes(content)
    error, _ = refusal()
    assert "is broken or no safetensors file" in error


@pytest.mark.slow
@pytest.mark.parametrize("keep", [5, 1000, -1])
def test_a_truncated_file(refusal, good, keep):
    """In the header, and one byte before the end."""
    with good.open("r+b") as file:
        file.truncate(keep if keep > 0 else good.stat().st_size + keep)
    error, _ = refusal()
    assert "is broken or no safetensors file" in error


def rewrite(file, change):
    """Change the header and leave the tensors."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


@pytest.mark.slow
def test_tensors_that_lie_on_each_other(refusal, good):
    """What the header reader lets through, the library that opens it does not."""
    name = f"{UNET}out.2.bias"
    rewrite(good, lambda header: header[name].update(data_offsets=[0, 8]))
    error, _ = refusal()
    assert "is broken or no safetensors file" in error


# --- keys and shapes that do not fit ---------------------------------------------------------------------------------

LAYER = f"{UNET}input_blocks.1.1.transformer_blocks.0."
TEXT = "cond_stage_model.transformer.text_model."
WRONG = {
    f"{UNET}input_blocks.0.0.weight": ((32, 4), "must have 4 dimensions"),
    f"{UNET}input_blocks.1.0.out_layers.3.weight": ((48, 48, 3, 3), "is not of one width and one kind of block"),
    f"{UNET}input_blocks.2.0.emb_layers.1.weight": ((32, 127), "does not fit its config: "),
    f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (
        (64, 96),
        "its UNet reads texts that are 96 wide, and its text encoder makes 64",
    ),
    f"{LAYER}attn2.to_v.weight": ((32, 96), "does not fit its config: down_blocks.0.attentions.0"),
    f"{VAE}decoder.conv_in.weight": ((64, 5, 3, 3), "first_stage_model.*|channels|in_channels"),
    f"{VAE}encoder.mid.attn_1.q.weight": ((64, 64, 3, 3), "does not fit its config: encoder.mid_block.attentions.0"),
    f"{TEXT}embeddings.token_embedding.weight": ((49408, 96), "is 96 wide, no multiple of CLIP's heads of 64"),
    f"{TEXT}encoder.layers.0.mlp.fc1.weight": ((64,), "must have 2 dimensions"),
    f"{UNET}label_emb.0.0.weight": ((128, 256), "it has label_emb (model.diffusion_model.label_emb.0.0.weight)"),
    f"{UNET}input_blocks.1.2.weight": ((8,), "it has tensors that a Stable Diffusion 1 has not"),
    f"{UNET}input_blocks.13.0.weight": ((8,), "input_blocks.12 is missing"),
    f"{UNET}input_blocks.99999999999999999999.0.weight": ((8,), "it has tensors that a Stable Diffusion 1 has not"),
    f"{VAE}decoder.up.7.block.0.norm1.weight": ((8,), "it has tensors that a Stable Diffusion 1 has not"),
    f"{VAE}encoder.down.0.attn.0.q.weight": ((8,), "first_stage_model.encoder.down.0.attn.0.q.weight"),
    f"{TEXT}encoder.layers.9.mlp.fc1.bias": ((8,), "encoder.layers.3 is missing"),
    "depth_model.conv.weight": ((8, 8), "it has tensors that a Stable Diffusion 1 has not: depth_model.conv.weight"),
    "a\nb\x1b[31m": ((1,), "a tensor is called 'a\\nb\\x1b[31m'"),
    f"{UNET}{'x' * 1000}": ((1,), "a tensor is called 'model.diffusion_model.xxxxxx"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_tensor_of_another_shape_or_name(refusal, tmp_path, shapes, name):
    shape, says = WRONG[name]
    names = changed(shapes, "sd1", **{name: shape})
    names[f"{TEXT}embeddings.token_embedding.weight"] = names[f"{TEXT}embeddings.token_embedding.weight"][:0] + (
        (49408, 64) if name != f"{TEXT}embeddings.token_embedding.weight" else shape
    )
    tiny.write_header(tmp_path / "model.safetensors", names)
    error, _ = refusal()
    assert any(one in error for one in says.split("|")), error


LOST = {
    f"{UNET}time_embed.2.bias": "lacks tensors: time_embedding.linear_2.bias",
    f"{UNET}input_blocks.3.0.op.weight": "input_blocks.3.0.out_layers.3.weight is missing",
    f"{UNET}input_blocks.4.": "input_blocks.4 is missing",
    f"{UNET}output_blocks.11.": "its UNet has 11 blocks up for 12 wanted",
    f"{UNET}middle_block.1.": "transformer blocks in the middle|middle_block",
    f"{VAE}encoder.conv_in.weight": "encoder.conv_in.weight is missing",
    f"{VAE}decoder.up.2.": "lacks tensors: decoder.up_blocks.1",
    f"{TEXT}embeddings.position_embedding": "embeddings.position_embedding.weight is missing",
}


@pytest.mark.slow
@pytest.mark.parametrize("start", LOST)
def test_tensors_that_are_missing(refusal, tmp_path, shapes, start):
    names = without(shapes, "sd1", start)
    names[f"{TEXT}embeddings.token_embedding.weight"] = (49408, 64)
    tiny.write_header(tmp_path / "model.safetensors", names)
    error, _ = refusal()
    assert any(one in error for one in LOST[start].split("|")), error


@pytest.mark.slow
def test_layers_of_sd2_are_counted(refusal, tmp_path, shapes):
    names = without(shapes, "sd2", "cond_stage_model.model.transformer.resblocks.2")
    tiny.write_header(tmp_path / "model.safetensors", names)
    error, _ = refusal("--prediction", "epsilon")
    assert "resblocks.2 is missing" in error


@pytest.mark.slow
def test_sdxl_label_and_text_at_odds(refusal, tmp_path, shapes):
    names = changed(shapes, "sdxl", **{f"{UNET}label_emb.0.0.weight": (256, 101)})
    tiny.write_header(tmp_path / "model.safetensors", names)
    error, _ = refusal()
    assert "label_emb.0.0.weight is [256, 101], which does not fit a text of 64 numbers" in error


@pytest.mark.slow
def test_a_vocabulary_that_is_not_clips(refusal, good):
    """Without a tokenizer beside it there is CLIP's own, which this text encoder cannot read."""
    error, hint = refusal()
    assert "knows 544 tokens, and CLIP's vocabulary has 49408" in error and "a folder called tokenizer" in hint


@pytest.mark.slow
def test_quantised_files(refusal, tmp_path, shapes):
    shapes = changed(shapes, "sd1", **{f"{TEXT}embeddings.token_embedding.weight": (49408, 64)})
    tensors = {name: torch.zeros(shape, dtype=torch.int8) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    error, _ = refusal()
    assert "is stored as" in error


# --- what keys do not say --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sd2_is_not_guessed(refusal, tmp_path, shapes):
    tiny.write_header(tmp_path / "model.safetensors", shapes["sd2"])
    error, hint = refusal()
    assert "do not say what a Stable Diffusion 2 predicts: --prediction is needed" in error
    assert "--prediction v_prediction for models of 768×768" in hint and "--prediction epsilon" in hint


@pytest.mark.slow
def test_a_prediction_that_is_none(tmp_path, shapes, capsys):
    assert main(["image", "-m", "nothing.safetensors", "x", "--prediction", "velocity"]) == 2
    assert "expected one of epsilon, v_prediction, sample" in capsys.readouterr().err


SAYING = {
    "nothing": ("sdxl", {}, {}, "epsilon", 128),
    "a mark": ("sdxl", {"v_pred": (0,)}, {}, "v_prediction", 128),
    "metadata": ("sd2", {}, {"modelspec.prediction_type": "v"}, "v_prediction", 96),
    "metadata of a base": ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, "epsilon", 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SAYING)
def test_what_a_file_says_of_its_prediction(tmp_path, shapes, what):
    """Marks and metadata are believed, and the user more."""
    kind, more, metadata, predicts, size = SAYING[what]
    file = tiny.write_header(tmp_path / "a.safetensors", changed(shapes, kind, **more), metadata=metadata)
    single = open_file(file)
    assert single.parts["scheduler"].config["prediction_type"] == predicts
    assert single.parts["unet"].config["sample_size"] == size
    assert open_file(file, prediction="sample").parts["scheduler"].config["prediction_type"] == "sample"


@pytest.mark.slow
def test_the_mark_of_zero_snr(tmp_path, shapes):
    file = tiny.write_header(tmp_path / "a.safetensors", changed(shapes, "sdxl", v_pred=(0,), ztsnr=(0,)))
    scheduler = open_file(file).parts["scheduler"].config
    assert scheduler["rescale_betas_zero_snr"] is True and scheduler["timestep_spacing"] == "trailing"


@pytest.mark.slow
def test_a_schedule_of_its_own(tmp_path, shapes):
    """ᾱ in the file are compared, in any precision; others need a word of the user."""
    names = {name: torch.zeros(shape) for name, shape in shapes["sd1"].items()}
    usual = torch.tensor(alphas_cumprod("scaled_linear"))
    linear = torch.tensor(alphas_cumprod("linear"))
    file = tmp_path / "model.safetensors"
    for own in (usual, usual.half(), usual.double()):
        save_file({**names, "alphas_cumprod": own}, file)
        assert open_file(file).parts["scheduler"].config["beta_schedule"] == "scaled_linear"
    for own in (linear, usual[:500], torch.zeros(1000)):
        save_file({**names, "alphas_cumprod": own}, file)
        with pytest.raises(GencliError, match="its alphas_cumprod are not those of Stable Diffusion's") as caught:
            open_file(file)
        assert "--betas scaled_linear|linear" in caught.value.hint
        assert open_file(file, betas="linear").parts["scheduler"].config["beta_schedule"] == "linear"


@pytest.mark.parametrize(("betas", "zero_snr"), [("scaled_linear", False), ("linear", False), ("scaled_linear", True)])
def test_alphas_are_the_schedules(betas, zero_snr):
    from gencli.image.diffusion.schedule import NoiseSchedule

    raw = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": betas, "rescale_betas_zero_snr": zero_snr}
    wanted = torch.as_tensor(NoiseSchedule.from_config(raw).alphas_cumprod).double()
    torch.testing.assert_close(
        torch.tensor(alphas_cumprod(betas, zero_snr=zero_snr)).double(), wanted, atol=1e-5, rtol=1e-4
    )


PIPELINES = {
    ("sd1", 4): "StableDiffusionPipeline",
    ("sd1", 8): "StableDiffusionInstructPix2PixPipeline",
    ("sd2", 9): "StableDiffusionInpaintPipeline",
    ("sdxl", 9): "StableDiffusionXLInpaintPipeline",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "channels"), PIPELINES)
def test_variants_are_told_by_their_channels(tmp_path, shapes, kind, channels):
    width = shapes[kind][f"{UNET}input_blocks.0.0.weight"][0]
    names = changed(shapes, kind, **{f"{UNET}input_blocks.0.0.weight": (width, channels, 3, 3)})
    single = open_file(tiny.write_header(tmp_path / "a.safetensors", names), prediction="epsilon")
    assert single.family == PIPELINES[kind, channels]
    assert single.parts["unet"].config["in_channels"] == channels


@pytest.mark.slow
def test_what_goes_unused_is_told(tmp_path, shapes):
    file = tiny.write_header(tmp_path / "a.safetensors", shapes["sd1"])
    assert open_file(file).notes == ("its EMA weights go unused",)
    shapes = SafetensorsFile(file).shapes
    assert not any(name.startswith("model_ema") for name in open_file(file).parts["unet"].tensors().stored())
    counted = {name for part in ("unet", "vae") for name in open_file(file).parts[part].tensors().stored()}
    assert sum(map(math.prod, shapes.values())) > sum(math.prod(shapes[name]) for name in counted)


# --- models show, models check ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_models_show(tmp_path, shapes, capsys):
    file = tiny.write_header(tmp_path / "xl.safetensors", shapes["sdxl"], metadata={"modelspec.license": "openrail++"})
    assert main(["models", "show", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["family"], shown["licence"]) == ("image", "StableDiffusionXLPipeline", "openrail++")
    parts = {part["name"]: part for part in shown["components"]}
    assert set(parts) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert parts["unet"]["config"]["cross_attention_dim"] == 192 and parts["unet"]["dtypes"] == ["F16"]
    assert shown["parameters"] == sum(part["parameters"] for part in parts.values())


@pytest.mark.slow
def test_models_check(tmp_path, shapes, capsys):
    """A whole file is well, whatever it predicts; a tensor that is wrong, or not finite, is named."""
    names = changed(shapes, "sd2", **{"cond_stage_model.model.token_embedding.weight": (49408, 64)})
    file = tiny.write_header(tmp_path / "a.safetensors", names)
    assert main(["models", "check", str(file)]) == 0, capsys.readouterr()
    assert "OK" in capsys.readouterr().out
    tiny.write_header(file, without({"sd2": names}, "sd2", f"{UNET}out.2.bias"))
    assert main(["models", "check", str(file)]) == 1
    assert "lacks tensors: conv_out.bias" in capsys.readouterr().out
    tensors = {name: torch.zeros(shape) for name, shape in names.items()}
    tensors[f"{UNET}out.2.bias"][1] = float("nan")
    save_file(tensors, file)
    assert main(["models", "check", str(file)]) == 1
    assert "conv_out.bias has 1 values that are NaN or infinite" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, "plain", "zero"])
@pytest.mark.parametrize("said", [None, True, False])
def test_zero_terminal_snr(shapes, tmp_path, own, said):
    """Told by the file's own noise schedule, or by --zero-snr; the first step is then the noisiest there is."""
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes["sd1"].items()}
    if own is not None:
        tensors["alphas_cumprod"] = torch.tensor(alphas_cumprod("scaled_linear", zero_snr=own == "zero"))
    save_file(tensors, tmp_path / "a.safetensors")
    config = configs(tmp_path / "a.safetensors", prediction="v_prediction", zero_snr=said)["scheduler"]
    wanted = said if said is not None else own == "zero"
    assert config.get("rescale_betas_zero_snr", False) is wanted
    assert (config.get("timestep_spacing") == "trailing") is wanted


@pytest.mark.slow
def test_a_scheduler_beside_the_file(shapes, tmp_path):
    """As its tokenizer may lie there."""
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes["sd1"].items()}
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "scheduler").mkdir()
    beside = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(beside))
    assert configs(tmp_path / "a.safetensors")["scheduler"] == beside
    found = configs(tmp_path / "a.safetensors", prediction="epsilon", zero_snr=False)["scheduler"]
    assert found == {**beside, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}
