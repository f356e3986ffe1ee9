"""What images of other tools say about their making: every tool's form, every coding, and what is none of it.

The texts are written here by hand in the form of each tool's writer; no tool is imported.
"""

import gzip
import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gencli.errors import GencliError
from gencli.image.files import infotext, metadata, pictures, recipes
from gencli.image.files.texts import EXIF_IFD, USER_COMMENT, read_texts, user_comment
from gencli.image.request import ImageRequest

SETTINGS = "Steps: 20, Sampler: {}, CFG scale: 7, Seed: 123, Size: 64x64, Model hash: abc, Model: foo, Version: v1.9.4"
FOREIGN = """a photo of a cat <lora:x:1>, (best:1.2)
in two lines
Negative prompt: ugly, bad
worse
Steps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Clip skip: 2, Lora hashes: "x: abc, y: d", Version: v1.6.0"""


def png(tmp_path, texts, picture=None):
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text if isinstance(text, str) else json.dumps(text))
    (picture or Image.new("RGB", (8, 8))).save(tmp_path / "a.png", pnginfo=info)
    return tmp_path / "a.png"


def read(**texts):
    return recipes.read({key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items()})


@pytest.mark.parametrize(
    ("label", "sampler", "karras"),
    [
        ("Euler a", "euler_a", None),
        ("DPM++ 2M Karras", "dpmpp_2m", True),
        ("DPM++ 2M", "dpmpp_2m", None),
        ("dpm++2m karras", "dpmpp_2m", True),
        ("DDIM", "ddim", None),
        ("k_euler_ancestral", "euler_a", None),
        ("dpmpp_2m_k", "dpmpp_2m", True),
        ("UniPC", "unipc", None),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde", True),
        ("Restart", None, None),
        ("DPM++ 3M SDE Karras", "dpmpp_3m_sde", True),
        ("DPM adaptive Karras", None, None),
    ],
)
def test_the_web_ui(tmp_path, label, sampler, karras):
    found = pictures.read_request(png(tmp_path, {"parameters": FOREIGN.format(sampler=label)}))
    request = ImageRequest(**found.values)
    assert request.prompt == "a photo of a cat , (best:1.2)\nin two lines"
    assert request.negative == "ugly, bad\nworse"
    assert (request.steps, request.guidance, request.seed) == (20, 7.0, 965400086)
    assert (request.width, request.height) == (512, 768)
    assert request.weighted
    assert (request.sampler, request.karras) == (sampler, karras)
    assert set(found.left_out) >= {"Model", "Denoising strength", "Lora hashes", "<lora:x:1>"}
    assert ("Sampler" in found.left_out) == (sampler is None)


@pytest.mark.parametrize(
    ("settings", "left_out", "values"),
    [
        ("Euler a, Eta: 0.67", {"Eta"}, {"sampler": "euler_a"}),
        ("Euler a, Schedule type: Karras", {"Schedule type"}, {"sampler": "euler_a"}),
        ("DDIM, Schedule type: Karras", {"Schedule type"}, {"sampler": "ddim"}),
        ("DPM++ 2M SDE, Schedule type: Karras, Eta: 1", {"Eta"}, {"sampler": "dpmpp_2m_sde", "karras": True}),
        ("DPM fast, Schedule type: Karras, Eta: 1", {"Sampler", "Schedule type", "Eta"}, {"sampler": None}),
        ("DDIM, Schedule type: Automatic", set(), {"sampler": "ddim", "karras": None}),
        ("DDIM, Eta DDIM: 0.5", set(), {"sampler": "ddim", "eta": 0.5}),
        ("DPM++ 2M, Schedule type: Karras", set(), {"sampler": "dpmpp_2m", "karras": True}),
        ("DPM++ 2M, Schedule type: Exponential", {"Schedule type"}, {"sampler": "dpmpp_2m", "karras": None}),
    ],
)
def test_what_a_sampler_of_another_tool_has_and_ours_lacks_is_left_out(settings, left_out, values):
    found = read(parameters="a cat\n" + SETTINGS.format(settings))
    assert set(found.left_out) == {"Model"} | left_out
    request = ImageRequest(**found.values)
    assert {name: getattr(request, name) for name in values} == values and request.seed == 123


def test_options_of_our_own_samplers_are_refused_as_before():
    """What gencli wrote itself is taken at its word."""
    found = read(parameters="a cat\nSteps: 2, Sampler: Euler a, Seed: 1, Eta: 0.5, Model: emoji, Version: gencli 0.1")
    assert found.values["eta"] == 0.5 and found.values["model"] == "emoji" and found.left_out == ()


def test_stable_diffusion_cpp():
    text = (
        "a cat\nNegative prompt: bad\nSteps: 20, CFG scale: 7.000000, Skip layers: [7, 8, 9], Guidance: 3.500000, "
        "Eta: 0.000000, Seed: 42, Size: 512x512, Model: x.safetensors, RNG: cuda, Sampler: dpm++2m karras, "
        "Version: stable-diffusion.cpp\n"
    )
    found = read(parameters=text)
    request = ImageRequest(**found.values)
    assert (request.prompt, request.negative, request.seed, request.guidance) == ("a cat", "bad", 42, 7.0)
    assert (request.sampler, request.karras) == ("dpmpp_2m", True)
    assert {"Eta", "Guidance", "RNG", "Model"} <= set(found.left_out)


@pytest.mark.parametrize("cfg", ["1", "1.0", "2"])
def test_the_guidance_that_flux_is_told_by_forge(cfg):
    """Real guidance beside it, which gencli has not, is left out."""
    text = (
        f"a cat\nSteps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: {cfg}, Distilled CFG Scale: 3.5, Seed: 1"
    )
    found = read(parameters=text)
    assert ImageRequest(**found.values).guidance == 3.5
    assert ("CFG scale: 2" in found.words) == (cfg == "2") and "CFG scale" not in found.usual


def test_values_that_cannot_be_read_are_left_out_by_themselves():
    found = read(parameters="a cat\nSteps: many, Sampler: Foo Bar, CFG scale: NaN, Seed: -1, Size: 64")
    assert found.values == {"prompt": "a cat", "weighted": True}
    assert found.words == ["Steps: many", "Sampler: Foo Bar", "CFG scale: NaN", "Seed: -1", "Size: 64"]
    assert [*found.usual] == ["Steps", "Sampler", "CFG scale", "Size"]
    found = read(parameters="a cat\nSteps: 3, Sampler: Restart, Seed: 1, Model: x")
    assert found.words == ["Sampler: Restart", "Model: x"] and found.usual == {"Sampler": "sampler"}


def test_the_guidance_that_flux_is_told_by_comfyui():
    graph = {
        **{key: value for key, value in PARTED.items() if key not in ("4", "7", "10", "11")},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cat", "clip": ["13", 0]}},
        "12": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
        "13": {"class_type": "DualCLIPLoader", "inputs": {"type": "flux"}},
        "14": {"class_type": "FluxGuidance", "inputs": {"guidance": 2.5, "conditioning": ["6", 0]}},
        "21": {"class_type": "BasicGuider", "inputs": {"model": ["12", 0], "conditioning": ["14", 0]}},
    }
    found = read(prompt=json.dumps(graph))
    request = ImageRequest(**found.values)
    assert (request.prompt, request.guidance, request.steps) == ("a red cat", 2.5, 5)
    assert "FluxGuidance" not in found.left_out and "Model" in found.left_out


@pytest.mark.parametrize(
    "text",
    [
        "a cat\nNegative prompt: bad\n{}\nTemplate: a {{cat|dog}}\nNegative Template: bad",
        "a cat\nNegative prompt: bad\n{}\nTemplate: a cat\nSteps: 9, Sampler: DDIM, Seed: 5, Size: 8x8",
        "a cat\nNegative prompt: bad\n{}\n\n",
        "a cat\nNegative prompt: bad\n{}\nSomething that an extension adds",
    ],
)
def test_what_follows_the_settings_is_no_prompt(text):
    found = read(parameters=text.format(SETTINGS.format("Euler a")))
    request = ImageRequest(**found.values)
    assert (request.prompt, request.negative, request.sampler, request.seed) == ("a cat", "bad", "euler_a", 123)
    follows = text.rstrip().split("\n")[3:]
    assert len([key for key in found.left_out if key != "Model"]) == len(follows)


def test_pieces_of_values_without_quotes_are_no_keys():
    more = ', Civitai resources: [{"type":"checkpoint","Seed":5, "Steps": 3}], Tiled: {"Method": 1}'
    found = read(parameters="a cat\n" + SETTINGS.format("DDIM") + more)
    assert (found.values["seed"], found.values["steps"]) == (123, 20)
    assert set(found.left_out) == {"Model", "Civitai resources", "Tiled"}


def test_sd_next():
    text = (
        "a cat\nNegative prompt: bad\nSteps: 20, Size: 512x512, Sampler: Euler, Seed: 7, CFG scale: 6, "
        "CFG rescale: 0.7, Batch: 1x4, App: SD.Next, Version: 1234567, Pipeline: StableDiffusionPipeline, "
        "Operations: txt2img, Model: foo, Index: 1x2, Init image size: 64x64, Embeddings: a"
    )
    found = read(parameters=text)
    request = ImageRequest(**found.values)
    assert (request.sampler, request.guidance_rescale, request.batch, request.embedding) == ("euler", 0.7, 1, ())
    assert {"Batch", "Operations", "Embeddings", "Model"} <= set(found.left_out)


SWARM = {"sui_image_params": {
    "prompt": "a red cat", "negativeprompt": "bad", "model": "x", "seed": 1, "steps": 5, "cfgscale": 4.0, "width": 64,
    "height": 32, "sampler": "euler_ancestral", "scheduler": "karras", "swarm_version": "0.9", "loras": ["a"],
}, "sui_extra_data": {}}  # fmt: skip
FOOOCUS = {
    "prompt": "a red cat", "negative_prompt": "bad", "seed": "1", "steps": 5, "guidance_scale": 4.0,
    "resolution": "(64, 32)", "sampler": "euler_ancestral", "scheduler": "karras", "styles": "['Fooocus V2']",
    "base_model": "x", "version": "Fooocus v2.5", "metadata_scheme": "fooocus",
}  # fmt: skip
INVOKE = {
    "generation_mode": "txt2img", "positive_prompt": "a red cat", "negative_prompt": "bad", "width": 64, "height": 32,
    "seed": 1, "rand_device": "cpu", "cfg_scale": 4.0, "steps": 5, "scheduler": "euler_a", "model": {"name": "x"},
    "app_version": "5.0", "loras": [{"model": {"name": "y"}}],
}  # fmt: skip
INVOKE_2 = {"app_id": "invoke-ai/InvokeAI", "image": {
    "prompt": [{"prompt": "a red cat [bad]", "weight": 1.0}], "steps": 5, "cfg_scale": 4.0, "seed": 1, "width": 64,
    "height": 32, "sampler": "k_euler_a", "type": "txt2img", "variations": [],
}}  # fmt: skip
NOVELAI = {
    "prompt": "a red cat", "steps": 5, "height": 32, "width": 64, "scale": 4.0, "seed": 1, "n_samples": 1,
    "noise_schedule": "karras", "sampler": "k_euler_ancestral", "uc": "bad", "sm": False, "uncond_scale": 1.0,
}  # fmt: skip
EASY = {
    "prompt": "a red cat", "negative_prompt": "bad", "seed": "1", "num_inference_steps": "5", "guidance_scale": "4.0",
    "width": "64", "height": "32", "sampler_name": "euler_a", "use_stable_diffusion_model": "x",
}  # fmt: skip
COMFY = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 1, "steps": 5, "cfg": 4.0, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cat", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "y.safetensors", "strength_model": 1.0, "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "PrimitiveString", "inputs": {"value": "bad"}},
}  # fmt: skip
PARTED = {
    **{key: COMFY[key] for key in ("4", "5", "6", "7", "8", "9", "10", "11")},
    "3": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["23", 0], "latent_image": ["5", 0]}},
    "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
    "21": {"class_type": "CFGGuider", "inputs": {
        "cfg": 4.0, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0]}},
    "22": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler_ancestral"}},
    "23": {"class_type": "BasicScheduler", "inputs": {
        "scheduler": "karras", "steps": 5, "denoise": 1.0, "model": ["10", 0]}},
}  # fmt: skip
HIRES = {
    **COMFY,
    "30": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 128, "height": 64}},
    "31": {"class_type": "KSampler", "inputs": {
        "seed": 9, "steps": 9, "cfg": 9.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 0.5,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["30", 0]}},
}  # fmt: skip
TOOLS = {
    "SwarmUI": ({"parameters": SWARM}, {"Schedule type", "Model", "loras"}),
    "SwarmUI's JPEG": ({"UserComment": SWARM}, {"Schedule type", "Model", "loras"}),
    "Fooocus": ({"parameters": FOOOCUS}, {"Schedule type", "Model", "styles"}),
    "InvokeAI": ({"invokeai_metadata": INVOKE}, {"Model", "loras"}),
    "InvokeAI 2": ({"sd-metadata": INVOKE_2}, set()),
    "NovelAI": ({"Software": "NovelAI", "Comment": NOVELAI}, {"Schedule type", "uncond_scale"}),
    "NovelAI's pixels": ({"stealth": {"Software": "NovelAI", "Comment": json.dumps(NOVELAI)}}, {"Schedule type"}),
    "Easy Diffusion": (EASY, {"Model"}),
    "Easy Diffusion's JPEG": ({"UserComment": EASY}, {"Model"}),
    "ComfyUI": ({"prompt": COMFY, "workflow": {"last_node_id": 9}}, {"Schedule type", "Model", "y.safetensors"}),
    "ComfyUI's parts": ({"prompt": PARTED}, {"Schedule type", "Model"}),
    "ComfyUI's second sampler": ({"prompt": HIRES}, {"KSampler", "Model"}),
    "ComfyUI's WebP": ({"Make": "workflow:{}", "Model": "prompt:" + json.dumps(COMFY)}, {"Model"}),
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_in_its_own_form(tool):
    texts, left_out = TOOLS[tool]
    found = read(**texts)
    request = ImageRequest(**found.values)
    assert (request.prompt, request.negative) == ("a red cat", "bad")
    assert (request.seed, request.steps, request.guidance) == (1, 5, 4.0)
    assert (request.width, request.height, request.sampler, request.karras) == (64, 32, "euler_a", None)
    assert left_out <= set(found.left_out)
    assert request.weighted == (tool.split("'")[0] in ("SwarmUI", "Fooocus", "ComfyUI"))
    assert request.model == ImageRequest().model and request.lora == ()


def without(graph, **changes):
    return {**graph, **changes}


REFUSED = {
    "two samplers": ({"prompt": without(COMFY, x=COMFY["3"])}, "ComfyUI, and its graph has 2 samplers"),
    "no empty latent": ({"prompt": without(COMFY, **{"5": {"class_type": "VAEEncode", "inputs": {}}})}, "ComfyUI"),
    "a prompt of several": (
        {"prompt": without(COMFY, **{"6": {"class_type": "ConditioningCombine", "inputs": {
            "conditioning_1": ["7", 0], "conditioning_2": ["7", 0]}}})}, "ConditioningCombine"),
    "a circle": (
        {"prompt": without(COMFY, **{"6": {"class_type": "X", "inputs": {"conditioning": ["6", 0]}}})}, "ComfyUI"),
    "the editor's graph": ({"workflow": {"last_node_id": 9, "nodes": []}}, "editor's graph of ComfyUI"),
    "JSON of no tool": ({"parameters": {"a": 1}}, "JSON of no known tool"),
    "broken JSON": ({"parameters": '{"sui_image_params": {"prompt": '}, "no generation settings"),
    "a screenshot": ({"UserComment": "Screenshot"}, "has no generation settings"),
    "a comment": ({"comment": "style: photo, light: soft, mood: calm"}, "no generation settings"),
    "Midjourney": ({"Description": "a cat --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"}, "Midjourney"),
    "Draw Things": ({"XML:com.adobe.xmp": "<xmp:CreatorTool>Draw Things</xmp:CreatorTool>"}, "Draw Things"),
    "a broken InvokeAI": ({"invokeai_metadata": "{"}, "InvokeAI"),
    "an old InvokeAI of two prompts": (
        {"sd-metadata": {"image": {"prompt": [{"prompt": "a"}, {"prompt": "b"}]}}}, "InvokeAI, and its prompt"),
    "a broken NovelAI": ({"Software": "NovelAI", "Comment": "?"}, "NovelAI"),
    "an empty text": ({"parameters": " "}, "neither prompt nor settings"),
    "nothing": ({}, "no generation settings"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(what):
    texts, match = REFUSED[what]
    with pytest.raises(GencliError, match=match) as caught:
        read(**texts)
    assert caught.value.hint and len(caught.value.message) < 400


def test_weights_that_only_their_tool_knows_are_told():
    assert "weights in its prompt" in read(Software="NovelAI", Comment={**NOVELAI, "prompt": "{{red}} cat"}).left_out
    assert "weights in its prompt" in read(invokeai_metadata={**INVOKE, "positive_prompt": "red++ cat"}).left_out


def test_prompts_without_settings():
    """The key `parameters` says that it is a prompt, whatever its colons."""
    text = "style: photo, light: soft, mood: calm"
    found = read(parameters=text)
    assert found.values["prompt"] == text and "weighted" not in found.values
    assert read(parameters="{masterpiece}, cat").values["prompt"] == "{masterpiece}, cat"


def test_how_brackets_are_read_is_said_as_the_web_ui_says_it():
    """Emphasis: Original is its way, None takes brackets for text; a prompt without any needs no word of it."""
    for prompt, weighted, said in [("a (red) cat", False, "None"), ("[a]", True, "Original"), ("a cat", False, None)]:
        text = metadata.to_infotext(ImageRequest(prompt=prompt, weighted=weighted, steps=3))
        assert (f"Emphasis: {said}" in text) if said else ("Emphasis" not in text)
        found = read(parameters=text)
        assert ImageRequest(**found.values).weighted == weighted and found.left_out == ()
    foreign = FOREIGN.format(sampler="DDIM")
    assert read(parameters=foreign).values["weighted"] is True
    assert read(parameters=f"{foreign}, Emphasis: None").values["weighted"] is False
    assert "Emphasis" in read(parameters=f"{foreign}, Emphasis: No norm").left_out


# Where a text may lie, and in what coding.

RED = "red apple, 猫 on the sun\n" + SETTINGS.format("DDIM")
CODINGS = {
    "UTF-16, big-endian": b"UNICODE\0" + RED.encode("utf-16-be"),
    "UTF-16, little-endian": b"UNICODE\0" + RED.encode("utf-16-le"),
    "UTF-16 with its mark": b"UNICODE\0" + RED.encode("utf-16"),
    "UTF-16 with the other mark": b"UNICODE\0\xfe\xff" + RED.encode("utf-16-be"),
    "UTF-8 that says UNICODE": b"UNICODE\0" + RED.encode(),
    "ASCII": b"ASCII\0\0\0" + RED.encode(),
    "no code": RED.encode(),
    "no code, and a mark": RED.encode("utf-8-sig"),
    "undefined": b"\0" * 8 + RED.encode(),
    "undefined, and a mark": b"\0" * 8 + RED.encode("utf-16"),
    "JIS": b"JIS\0\0\0\0\0" + RED.encode("iso2022_jp"),
    "Shift JIS": b"JIS\0\0\0\0\0" + RED.encode("shift_jis"),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_user_comments_in_every_coding(tmp_path, coding):
    exif = Image.Exif()
    exif[EXIF_IFD] = {USER_COMMENT: CODINGS[coding]}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert pictures.read_request(tmp_path / "a.jpg").values["prompt"] == "red apple, 猫 on the sun"


def test_a_comment_of_latin_1_alone():
    assert user_comment("blé".encode("latin-1")) == "blé"


def test_a_comment_beside_its_table(tmp_path):
    """As Fooocus writes it: a text, in the first table."""
    exif = Image.Exif()
    exif[USER_COMMENT] = json.dumps(FOOOCUS)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert pictures.read_request(tmp_path / "a.jpg").values["prompt"] == "a red cat"


def test_a_jpeg_comment(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", comment=RED.encode())
    assert pictures.read_request(tmp_path / "a.jpg").values["seed"] == 123


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "latin-1"])
def test_plain_chunks_of_a_png(tmp_path, coding):
    """Latin-1 by the standard, UTF-8 by many writers."""
    prompt = "a blé, naïve" if coding == "latin-1" else "a cat, 猫"
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    raw, body = out.getvalue(), b"parameters\0" + f"{prompt}\n{SETTINGS.format('DDIM')}".encode(coding)
    at = raw.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(raw[:at] + chunk(b"tEXt", body) + raw[at:])
    assert pictures.read_request(tmp_path / "a.png").values["prompt"] == prompt


@pytest.mark.parametrize("channels", ["A", "RGB"])
@pytest.mark.parametrize("packed", [True, False])
def test_texts_in_the_pixels(tmp_path, channels, packed):
    """The lowest bits, column by column: a name of the form, the length in bits, the text."""
    data = gzip.compress(RED.encode()) if packed else RED.encode()
    name = f"stealth_{'png' if channels == 'A' else 'rgb'}{'comp' if packed else 'info'}".encode()
    bits = np.unpackbits(np.frombuffer(name + (8 * len(data)).to_bytes(4, "big") + data, np.uint8))
    pixels = np.full((40, 60, 4), 254, np.uint8)
    plane = pixels[..., 3:] if channels == "A" else pixels[..., :3]
    flat = np.swapaxes(plane, 0, 1).reshape(-1).copy()
    flat[: len(bits)] |= bits
    plane[:] = np.swapaxes(flat.reshape(60, 40, -1), 0, 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert pictures.read_request(tmp_path / "a.png").values["prompt"] == "red apple, 猫 on the sun"


@pytest.mark.slow
def test_a_hidden_text_that_claims_too_much(tmp_path):
    bomb = gzip.compress(b" " * 2**26)
    for data, length in [(b"x", 2**32 - 1), (bomb, 8 * len(bomb))]:
        bits = np.unpackbits(np.frombuffer(b"stealth_pngcomp" + length.to_bytes(4, "big") + data, np.uint8))
        side = int(len(bits) ** 0.5) + 1
        alpha = np.full(side * side, 254, np.uint8)
        alpha[: len(bits)] |= bits
        pixels = np.zeros((side, side, 4), np.uint8)
        pixels[..., 3] = alpha.reshape(side, side).T
        Image.fromarray(pixels).save(tmp_path / "a.png")
        picture = pictures.open_picture(tmp_path / "a.png")
        assert len(read_texts(picture).get("stealth", "")) <= 2**20


def test_a_long_prompt_is_read_again(tmp_path):
    """Each character of JSON takes up to twelve: a prompt as long as any may be fits."""
    request = ImageRequest(prompt="猫" * 200_000, negative="🍎" * 100_000)
    (tmp_path / "a.png").write_bytes(pictures.encode(Image.new("RGB", (8, 8)), "png", pictures.describe(request)))
    assert ImageRequest(**pictures.read_request(tmp_path / "a.png").values) == request


# Texts that mean harm.

HOSTILE = {  # each repeated up to a million characters
    "no quote ends": 'a:"\\,',
    "tabs in quotes": 'a:"\tx",',
    "quotes that are never closed": 'a:"x,',
    "escapes": '\\"a:"\\\\',
    "colons": ":",
    "commas": "a:b,",
    "blanks": "a:" + " " * 1000 + ",",
    "commas and blanks": "," + " " * 50,
    "brackets": 'a:"[[[{{{',
    "lines": "a:b\nNegative prompt:\n",
    "templates": "Steps: 1, a: 1, b: 1\nTemplate: x\n",
    "tags": "<lora:",
    "square brackets": "[",
    "many keys": None,
    "digits": "Steps: " + "9" * 5000 + ", ",
    "nested lists": "LoRA: " + json.dumps("[" * 5000) + ", ",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_texts_take_little_time(what):
    unit = HOSTILE[what]
    text = ", ".join(f"k{i}: {i}" for i in range(75_000)) if unit is None else unit * (2**20 // len(unit) - 2)
    began = time.process_time()
    for texts in ({"parameters": f"a prompt\n{text}"}, {"parameters": f"{text}\n{SETTINGS.format('DDIM')}, {text}"},
                  {"sd-metadata": json.dumps({"image": {"prompt": text}})}):  # fmt: skip
        try:
            assert "prompt" in recipes.read(texts).values
        except GencliError as error:
            assert len(error.message) < 2000
    assert time.process_time() - began < 3


def test_values_in_quotes_are_read_as_json_reads_them():
    line = 'Steps: 20, A: "x, y: \\"z\\" \\u00e9", B: "not\tclosed, C: "\\q", D: "a" b, E: ""'
    expected = [("Steps", "20"), ("A", 'x, y: "z" é'), ("B", '"not\tclosed'), ("C", '"\\q"'), ("D", "a"), ("E", "")]
    assert list(infotext.pairs(line)) == expected
