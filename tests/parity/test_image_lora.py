"""LoRA files merged into picture models: diffusers' weights and pictures in every naming, and refusals by name."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from tests.oracles.additions_parity import measure
from tests.oracles.image_lora import (
    ALL,
    ATTENTION,
    PROJECTIONS,
    SCALE,
    assert_same_weights,
    by_diffusers,
    changed_by,
    opened,
    parts_of,
    wanted,
)
from tests.oracles.libraries import diffusers, peft
from tests.tiny.image import make_stable_diffusion
from tests.tiny.lora import (
    bare_processor_name,
    diffusers_name,
    dotted_name,
    draw_layers,
    kohya_name,
    original_names,
    processor_name,
    with_layers,
    with_text_model,
    write,
)

CONVOLUTIONS = re.compile(r".*(conv1|conv2|conv_shortcut|time_emb_proj|samplers\.0\.conv)|conv_in|conv_out|time_emb.*")
KINDS = ["sd15", "sd21"]  # projections as 1×1 convolutions, and as linear layers


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """kind → folder and the same in diffusers."""
    root = tmp_path_factory.mktemp("bases")
    return {kind: (root / kind, make_stable_diffusion(root / kind, kind)) for kind in KINDS}


# naming → which modules the files of that time change, and whether they have alphas
FORMS = {
    "diffusers": (diffusers_name, (ATTENTION, PROJECTIONS), False),
    "diffusers with convolutions": (diffusers_name, (ATTENTION, CONVOLUTIONS), False),
    "diffusers 0.19": (dotted_name, (ATTENTION,), False),
    "diffusers 0.15": (processor_name, (ATTENTION,), False),
    "kohya": (kohya_name, (ATTENTION, PROJECTIONS), True),
    "kohya with convolutions": (
        kohya_name,
        (ATTENTION, PROJECTIONS, re.compile(r".*(conv1|conv2|conv_shortcut)")),
        True,
    ),
}


@pytest.mark.parametrize(
    ("form", "kind"), [(form, "sd15") for form in FORMS] + [(form, "sd21") for form in ("diffusers", "kohya")]
)
def test_weights_are_those_that_diffusers_fuses(bases, tmp_path, form, kind):
    folder, pipe = bases[kind]
    name, patterns, alphas = FORMS[form]
    layers = draw_layers(parts_of(pipe), wanted(*patterns, even=True), alpha=2.0 if alphas else None)
    if alphas and kind == "sd21":  # kohya's linear projections are linear in the file too
        assert any(layer.path.endswith("proj_in") and layer.down.dim() == 2 for layer in layers)
    file = write(tmp_path / "lora.safetensors", layers, name)
    theirs = by_diffusers(pipe, file)
    assert_same_weights(opened(folder, LoraRef(file, SCALE)), theirs, pipe, changed_by(layers))


@pytest.mark.parametrize("form", ["kohya", "original"])
def test_every_linear_and_convolutional_module(bases, tmp_path, form):
    """Time embeddings, samplers and both ends too, of which diffusers reads some names only: against the formula."""
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe), wanted(ALL), own=True)
    name = kohya_name if form == "kohya" else original_names(pipe.unet)
    file = write(tmp_path / "lora.safetensors", layers, name)
    assert (form == "original") == ("lora_unet_input_blocks_2_0_op.alpha" in load_file(file))
    assert_same_weights(
        opened(folder, LoraRef(file, SCALE)), with_layers(pipe, layers, SCALE), pipe, changed_by(layers)
    )


def test_bare_names_of_the_first_files(bases, tmp_path):
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe, ["unet"]), wanted(ATTENTION), alpha=None)
    file = write(tmp_path / "pytorch_lora_weights.safetensors", layers, bare_processor_name)
    assert_same_weights(
        opened(folder, LoraRef(tmp_path, SCALE)), with_layers(pipe, layers, SCALE), pipe, changed_by(layers)
    )
    assert next(iter(load_file(file))).startswith(("down_blocks.", "mid_block.", "up_blocks."))


def adapt(model, seed=0, **settings):
    """A copy of a model with an adapter of peft's, its values drawn."""
    made = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return made


PATTERNS = {
    "target_modules": ["to_q", "to_out.0", "conv1", "net.2"],
    "rank_pattern": {"conv1": 2, "attn2.to_q": 5},
    "alpha_pattern": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 9, "net.2": 1},
}


@pytest.mark.parametrize("settings", [PATTERNS, {"target_modules": ["to_k", "conv_in"], "use_rslora": True}])
def test_a_folder_of_peft(bases, tmp_path, settings):
    folder, pipe = bases["sd15"]
    adapted = adapt(pipe.unet, **settings)
    adapted.save_pretrained(tmp_path)
    theirs = copy.deepcopy(pipe)
    theirs.unet = adapted.merge_and_unload()
    ours = opened(folder, LoraRef(tmp_path))
    changed = {
        ("unet", re.sub(r"^base_model\.model\.|\.lora_A\.weight$", "", name))
        for name in load_file(tmp_path / "adapter_model.safetensors")
    }
    assert_same_weights(ours, theirs, pipe, {one for one in changed if "lora_B" not in one[1]})


def test_settings_in_the_header(bases, tmp_path):
    """What diffusers' save_lora_weights writes: alpha, rank-stabilised or not, by patterns, of each part."""
    folder, pipe = bases["sd21"]
    unet = adapt(pipe.unet, **PATTERNS)
    text = adapt(pipe.text_encoder, target_modules=["q_proj", "fc1"], use_rslora=True, lora_alpha=3)
    configs = {part: model.peft_config["default"].to_dict() for part, model in (("unet", unet), ("text_encoder", text))}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=peft.get_peft_model_state_dict(unet),
        text_encoder_lora_layers=peft.get_peft_model_state_dict(text),
        unet_lora_adapter_metadata=configs["unet"],
        text_encoder_lora_adapter_metadata=configs["text_encoder"],
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    renamed = {
        re.sub(r"(unet|text_encoder)\.base_model\.model\.", r"\1.", name): value for name, value in tensors.items()
    }
    from safetensors import safe_open

    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    assert "lora_adapter_metadata" in metadata
    save_file(renamed, file, metadata)
    theirs = copy.deepcopy(pipe)
    theirs.unet, theirs.text_encoder = unet.merge_and_unload(), text.merge_and_unload()
    changed = {
        (name.split(".")[0], name.split(".", 1)[1].removesuffix(".lora_A.weight").removeprefix("text_model."))
        for name in renamed
        if "lora_A" in name
    }
    assert_same_weights(opened(folder, LoraRef(file)), theirs, pipe, changed)


def test_several_files_add_up(bases, tmp_path):
    folder, pipe = bases["sd15"]
    files, scales = [], (0.75, -0.5)
    for i in range(2):
        layers = draw_layers(parts_of(pipe), wanted(ATTENTION, even=True), seed=i)
        files.append(write(tmp_path / f"{i}.safetensors", layers, kohya_name))
    theirs = by_diffusers(pipe, *files, scales=scales)
    ours = opened(folder, *map(LoraRef, files, scales))
    assert_same_weights(ours, theirs, pipe, changed_by(layers))


def test_figures_of_the_table(tmp_path):
    """States, the UNet's output and pictures, with LoRA, with an embedding and with weights."""
    measured = list(measure(tmp_path))
    assert len(measured) == 3
    for row in measured:
        assert row.component <= 1e-4 and row.picture <= 2, row


def test_the_files_stay_as_they_are(bases, tmp_path):
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe), wanted(ATTENTION))
    file = write(tmp_path / "a.safetensors", layers, kohya_name)
    before = {path: path.read_bytes() for path in [file, *folder.rglob("*.safetensors")]}
    changed = opened(folder, LoraRef(file))
    untouched = opened(folder)
    assert {path: path.read_bytes() for path in before} == before
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(changed.main.network.get_parameter(name), untouched.main.network.get_parameter(name))


def test_half_precision_on_disk(bases, tmp_path):
    """The sum is made in float32 and rounded once, whatever the file's precision."""
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe, ["unet"]), wanted(ATTENTION))
    for layer in layers:
        layer.down, layer.up = layer.down.bfloat16(), layer.up.half()
    file = write(tmp_path / "a.safetensors", layers, kohya_name)
    checkpoint = open_image_checkpoint(Source(folder.name, folder, "folder"))
    ours = load(checkpoint, device="cpu", dtype="float16", loras=[LoraRef(file)])
    for layer in layers:
        layer.down, layer.up = layer.down.float(), layer.up.float()
        exact = pipe.unet.get_submodule(layer.path).weight.half().float() + layer.delta
        torch.testing.assert_close(
            ours.main.network.get_submodule(layer.path).weight, exact.half(), atol=1e-6, rtol=1e-3
        )


def test_an_alpha_may_be_a_whole_number(bases, tmp_path):
    """As older files of kohya's trainer have it where none was asked for."""
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe, ["text_encoder"]), wanted(ATTENTION))
    tensors = load_file(write(tmp_path / "a.safetensors", layers, kohya_name))
    whole = {name: value.long() if name.endswith("alpha") else value for name, value in tensors.items()}
    save_file(whole, tmp_path / "a.safetensors")
    ours = opened(folder, LoraRef(tmp_path / "a.safetensors", SCALE))
    assert_same_weights(ours, with_layers(pipe, layers, SCALE), pipe, changed_by(layers))


def error_of(folder, *adapters, **more):
    with pytest.raises(GencliError) as caught:
        opened(folder, *adapters, **more)
    assert "\n" not in caught.value.message
    return f"{caught.value.message} — {caught.value.hint}"


def simple_file(file, tensors):
    save_file(tensors, file)
    return file


Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
GOOD = {f"{Q}.lora_down.weight": torch.ones(2, 32), f"{Q}.lora_up.weight": torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{Q}.hada_w1_a": torch.ones(2, 2)}, "no hada_w1_b and no hada_w2_a and no hada_w2_b beside it"),
        ({f"{Q}.lokr_w1": torch.ones(2, 2)}, "has no lokr_w2_a and no lokr_w2_b beside it"),
        ({f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(3, 2)}, "does not fit"),
        ({**GOOD, f"{Q}.dora_scale": torch.ones(31)}, "does not fit"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(32)}, "has no down and no up beside it"),
        ({**GOOD, f"{Q}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "does not fit"),
        ({**GOOD, f"{Q}.diff": torch.ones(32, 32)}, "changes of whole weights"),
        ({f"{Q}.oft_blocks": torch.ones(2, 2)}, "OFT is not supported"),
        ({**GOOD, "something.else": torch.ones(1)}, "1 of 3 names are of no LoRA for images"),
        ({"transformer.blocks.0.to_q.lora_A.weight": torch.ones(2, 2)}, "changes the transformer, and sd15 has none"),
        ({"model.layers.0.q_proj.lora_A.weight": torch.ones(2, 2)}, "no LoRA for images"),
        ({}, "0 of 0 names"),
        ({**GOOD, f"{Q}_x.lora_up.weight": torch.ones(2, 2)}, "1 of 2 modules for the unet are none of this model"),
        ({"lora_te2_text_model_x.lora_up.weight": torch.ones(2, 2)}, "changes the text_encoder_2, and sd15 has none"),
        ({f"{Q}.lora_down.weight": torch.ones(2, 32)}, "has no up beside it"),
        ({f"{Q}.alpha": torch.ones(())}, "has no down and no up beside it"),
        ({**GOOD, f"{Q}.lora_up.weight": torch.ones(32, 3)}, "is [2, 32], its partner [32, 3], and unet.mid_block"),
        ({**GOOD, f"{Q}.lora_up.weight": torch.ones(32)}, "its partner [32]"),
        ({**GOOD, f"{Q}.lora_down.weight": torch.ones(2, 32, 3, 3)}, "is [2, 32, 3, 3]"),
        ({f"{Q}.lora_down.weight": torch.ones(0, 32), f"{Q}.lora_up.weight": torch.ones(32, 0)}, "is [0, 32]"),
        ({**GOOD, f"{Q}.lora_down.weight": torch.ones(2, 32, dtype=torch.int8)}, "stored as I8"),
        ({**GOOD, f"{Q}.alpha": torch.ones(3)}, "not one number"),
        ({**GOOD, f"{Q}.alpha": torch.tensor(float("nan"))}, "alpha is nan"),
        (
            {**GOOD, f"{Q.replace('mid_block_attentions_0', 'middle_block_1')}.lora_down.weight": torch.ones(2, 32)}
            | {f"{Q.replace('mid_block_attentions_0', 'middle_block_1')}.lora_up.weight": torch.ones(32, 2)},
            "are one module",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(bases, tmp_path, tensors, says):
    folder, _ = bases["sd15"]
    file = simple_file(tmp_path / "a.safetensors", tensors)
    message = error_of(folder, LoraRef(file))
    assert says in message and str(file) in message


def test_a_file_for_another_model_says_for_which(bases, tmp_path):
    folder, _ = bases["sd15"]
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_{}_attn2_to_k"
    xl = {f"{key.format(i)}.lora_down.weight": torch.ones(2, 2048) for i in range(2)}
    xl |= {f"{key.format(i)}.lora_up.weight": torch.ones(32, 2) for i in range(2)}
    assert "made for Stable Diffusion XL" in error_of(folder, LoraRef(simple_file(tmp_path / "xl.safetensors", xl)))
    one = {name: value for name, value in xl.items() if "blocks_0_attn2" in name}
    message = error_of(folder, LoraRef(simple_file(tmp_path / "wide.safetensors", one)))
    assert "[2, 2048]" in message and "[32, 24]" in message and "Stable Diffusion XL" in message
    save_file(xl, tmp_path / "said.safetensors", {"ss_base_model_version": "sd_v2_v"})
    assert "made for sd_v2_v" in error_of(folder, LoraRef(tmp_path / "said.safetensors"))


def test_files_and_folders_that_are_none(bases, tmp_path):
    folder, _ = bases["sd15"]
    assert "no such file or folder" in error_of(folder, LoraRef(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "has no pytorch_lora_weights.safetensors" in error_of(folder, LoraRef(tmp_path / "empty"))
    for name in "ab":
        simple_file(tmp_path / f"{name}.safetensors", GOOD)
    assert "2 files that may be the LoRA (a.safetensors, b.safetensors)" in error_of(folder, LoraRef(tmp_path))
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-9])
    assert "broken" in error_of(folder, LoraRef(tmp_path / "a.safetensors"))
    save_file(GOOD, tmp_path / "b.safetensors", {"lora_adapter_metadata": "[1"})
    assert "not valid JSON" in error_of(folder, LoraRef(tmp_path / "b.safetensors"))
    save_file(GOOD, tmp_path / "b.safetensors", {"lora_adapter_metadata": json.dumps({"unet.lora_bias": True})})
    assert "lora_bias" in error_of(folder, LoraRef(tmp_path / "b.safetensors"))


def test_pickles_are_opened_when_that_is_said(bases, tmp_path):
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe), wanted(ATTENTION), alpha=None)
    tensors = load_file(write(tmp_path / "a.safetensors", layers, processor_name))
    (tmp_path / "a.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    assert "--allow-pickle" in error_of(folder, LoraRef(tmp_path))
    ours = opened(folder, LoraRef(tmp_path), allow_pickle=True)
    assert_same_weights(ours, with_layers(pipe, layers, 1.0), pipe, changed_by(layers))


def test_text_encoders_are_found_by_either_name(bases, tmp_path):
    """Of transformers before 5, under `text_model`, and since."""
    folder, pipe = bases["sd15"]
    layers = draw_layers(parts_of(pipe, ["text_encoder"]), wanted(ATTENTION), alpha=None)
    for prefix in (True, False):

        def name(part, path, side, prefix=prefix):
            path = with_text_model(part, path)
            return (
                diffusers_name(part, path, side).replace("text_model.", "text_model." if prefix else "")
                if side != "alpha"
                else None
            )

        file = write(tmp_path / "a.safetensors", layers, name)
        assert_same_weights(
            opened(folder, LoraRef(file, SCALE)), with_layers(pipe, layers, SCALE), pipe, changed_by(layers)
        )
