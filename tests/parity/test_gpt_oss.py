"""gpt-oss's files as OpenAI writes them: experts in MXFP4, of which transformers makes floats in another way."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load
from gencli.checkpoints.checkpoint import Contents, folder_part
from gencli.checkpoints.find import find
from gencli.errors import GencliError
from gencli.kernels.packed import Packed
from gencli.models import step
from gencli.text.convert import convert
from gencli.text.load import open_model
from tests.oracles.decoders import reference, token_ids
from tests.shell.process import gencli
from tests.tiny.decoder_cases import CASES
from tests.tiny.decoders import make_decoder
from tests.tiny.text import make_tokenizer

CASE = next(case for case in CASES if case.name == "gpt-oss")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "swiglu_limit": 7.0}
PACKED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]}


def make_packed(folder, plain, **changes):
    """Write a checkpoint in MXFP4, and in `plain` the same numbers in float32, unpacked by transformers."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    make_decoder(folder, CASE, **SIZES, quantization_config=PACKED, **changes)
    make_decoder(plain, CASE, **SIZES, **changes)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    floats = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        count, inputs, outputs = tensors.pop(name).shape
        shape = (count, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 124, shape, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        floats[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(floats, plain / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_packed_experts_are_the_references(tmp_path):
    """Their numbers are the very same; the C library's products round activations to 8 bits."""
    folder = make_packed(tmp_path / "packed", tmp_path / "plain")
    model = load(folder, dtype=torch.float32, layerwise_casting=True)
    plain, theirs, ids = load(tmp_path / "plain"), reference(tmp_path / "plain"), token_ids(2, 40)
    for name, weight in model.named_parameters():
        assert isinstance(weight, Packed) == (".experts." in name and name.endswith("weight"))
        assert torch.equal(weight, plain.get_parameter(name)), name
    with torch.inference_mode():
        wanted = theirs(ids).logits
        torch.testing.assert_close(plain(ids), wanted, atol=1e-4, rtol=0)
        cache, bound = model.new_cache(2, 40), 0.02 * wanted.abs().mean()
        steps = torch.cat([model(ids[:, i : i + 1], cache) for i in range(40)], dim=1)
        assert step.of(model) is not None
        for ours in (model(ids), steps):
            assert 0 < (ours - wanted).abs().mean() < bound  # at most: one position may choose another expert


def test_a_file_says_what_it_holds(tmp_path):
    folder = make_packed(tmp_path / "packed", tmp_path / "plain")
    part = folder_part(Contents(find(str(folder))), "", folder)
    tensors, name = part.tensors(), "model.layers.1.mlp.experts.3.{}_proj.weight"
    assert tensors.dtype(name.format("up")) == "MXFP4" and tensors.shape(name.format("up")) == (96, 64)
    assert tensors.shape(name.format("down")) == (64, 96)
    assert b"packed already (MXFP4)" in gencli("text", "-m", folder, "--quantize", "q8_0", "a").stderr
    shown = gencli("models", "show", folder).stdout
    assert b"MXFP4" in shown and b"gpt_oss" in shown


@pytest.mark.parametrize("mix", ["f16", "q4_k_m"])
def test_experts_stay_in_mxfp4(tmp_path, mix):
    """No type of weights is better for what was trained so; the rest is packed."""
    folder = make_packed(tmp_path / "packed", tmp_path / "plain", vocab_size=384)
    make_tokenizer(folder)
    source = open_model(find(str(folder)))
    convert(source, mix, tmp_path / "m.gguf")
    found = dict(open_model(find(str(tmp_path / "m.gguf"))).module.named_parameters())
    for name, weight in source.module.named_parameters():
        if ".experts." in name:
            assert torch.equal(found[name], weight), name
    assert found["model.layers.0.mlp.experts.1.up_proj.weight"].data.kind == "MXFP4"
    assert isinstance(found["lm_head.weight"].data, Packed) == (mix != "f16")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("down_proj_scales", lambda tensor: tensor[:, :-1]),
        ("down_proj_scales", lambda tensor: None),
        ("gate_up_proj_blocks", lambda tensor: tensor[..., :8]),
        ("gate_up_proj_blocks", lambda tensor: tensor.float()),
        ("gate_up_proj_bias", lambda tensor: tensor[0]),
        ("gate_up_proj_blocks", lambda tensor: tensor[:0]),
    ],
)
def test_broken_experts(tmp_path, name, change):
    folder = make_packed(tmp_path / "packed", tmp_path / "plain")
    tensors = load_file(folder / "model.safetensors")
    full = f"model.layers.2.mlp.experts.{name}"
    tensors[full] = change(tensors[full])
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GencliError, match="which are no experts"):
        load(folder)


def test_other_packings_are_refused(tmp_path):
    folder = make_decoder(tmp_path, CASE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(GencliError, match=r"quantization_config = .* is not supported"):
        load(folder)
