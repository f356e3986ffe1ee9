"""--quantize of image models: what is packed and what stays, images with it, the copies, what is refused."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gencli.checkpoints import packed_cache
from gencli.checkpoints.assets import LoraRef
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.safetensors_file import SafetensorsFile
from gencli.errors import GencliError, UsageError
from gencli.image.drawers import open_drawer
from gencli.image.files import metadata
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.pipeline import Pipeline
from gencli.image.request import ImageRequest
from gencli.kernels.packed import Packed
from tests.oracles.flow import PROMPT
from tests.oracles.pipelines import draw
from tests.tiny import flow
from tests.tiny.image import make_stable_diffusion
from tests.tiny.janus import make_janus
from tests.tiny.qwen_image import make_qwen_image

SETTINGS: dict[str, Any] = {"prompt": PROMPT, "steps": 2, "width": 64, "height": 64}
NAMES = ("z-turbo", "klein", "sigma", "sd")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints whose matrices are wide enough, but for some: 48 and 24 numbers are no whole blocks of 32."""
    folder = tmp_path_factory.mktemp("packed")
    flow.make_z_image(folder / "z-turbo", axes_dims=[8, 12, 12], dim=96)
    flow.make_klein(folder / "klein", attention_head_dim=32, axes_dims_rope=[8, 8, 8, 8])
    flow.make_pixart(folder / "sigma")
    make_qwen_image(folder / "qwen-image")
    make_stable_diffusion(folder / "sd")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    return tmp_path / "cache" / "gencli"


def opened(path: Path, **how: Any) -> Pipeline:
    kind = "file" if path.is_file() else "folder"
    return load(open_image_checkpoint(Source(path.name, path, kind)), device="cpu", **how)


def modules(pipeline: Pipeline) -> dict[str, nn.Module]:
    conditioner = pipeline.main.conditioner
    assert conditioner is not None
    return {"network": pipeline.main.network, "text": conditioner.text_encoders[0][1]}


def unpack(packed: Pipeline, plain: Pipeline) -> int:
    """Give a pipeline the numbers that another one's packed matrices stand for. Return how many those are."""
    count = 0
    theirs = modules(plain)
    for part, module in modules(packed).items():
        for name, value in module.named_parameters():
            if isinstance(value.data, Packed):
                target = theirs[part].get_parameter(name)
                owner, _, attribute = name.rpartition(".")
                whole = nn.Parameter(value.data.values().to(target.dtype), requires_grad=False)
                setattr(theirs[part].get_submodule(owner), attribute, whole)
                count += 1
    return count


@pytest.mark.parametrize(
    ("name", "mix"), [("z-turbo", "q8_0"), ("klein", "q4_0"), ("qwen-image", "q8_0"), ("sigma", "q8_0"), ("sd", "q5_1")]
)
def test_images_are_those_of_the_numbers_that_are_packed(root, cache, name, mix):
    """But for the rounding of products, whose activations have 8 bits; the layers that are too narrow are whole."""
    packed, plain = opened(root / name, quantize=mix), opened(root / name)
    network = packed.main.network
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):
            assert isinstance(module.weight.data, Packed) == (module.weight.shape[1] % 32 == 0), path
        elif isinstance(module, nn.Conv2d):
            assert not isinstance(module.weight.data, Packed)
    (exact,) = draw(None, pipeline=plain, **SETTINGS)
    assert unpack(packed, plain) > (10 if name != "sigma" else 4)
    latents = {}
    for key, pipeline in (("packed", packed), ("plain", plain)):
        pipeline.main.conditioner_part.get()
        latents[key] = x0_of(pipeline)
    off, size = (latents["packed"] - latents["plain"]).std(), latents["plain"].std()
    assert off < 0.1 * size, (off, size)
    assert exact.image.size == (64, 64)


def x0_of(pipeline: Pipeline) -> torch.Tensor:
    """What the last step makes of noise."""
    from gencli.image.generate import Denoised, generate
    from gencli.image.resolve import resolve

    request = resolve(ImageRequest(seed=3, **SETTINGS), pipeline.checkpoint)
    with torch.inference_mode():
        return [event.x0 for event in generate(pipeline, request) if isinstance(event, Denoised)][-1].clone()


def test_a_copy_is_made_once_for_each_part(root, cache):
    told: list[tuple[str, str]] = []
    how = {"quantize": "q4_0", "packing": lambda part, tensor, done, total: told.append((part, tensor))}
    modules(opened(root / "z-turbo", **how))
    first = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(first) == 2 and {part for part, _ in told} == {"transformer", "text_encoder"}
    count = len(told)
    modules(opened(root / "z-turbo", **how))
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == first and len(told) == count
    assert len(packed_cache.copies(root / "z-turbo")) == 2
    whole = (root / "z-turbo" / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert min(path.stat().st_size for path in first) < whole / 3


def test_a_file_with_fused_matrices(root, cache):
    lone = root / "z-turbo" / "one.safetensors"
    flow.write_single(lone, flow.original_names(root / "z-turbo" / "transformer"))
    packed = opened(lone, quantize="q8_0")
    assert isinstance(packed.main.network.layers[0].attention.to_k.weight.data, Packed)


def test_memory_is_let_go_of_tensor_by_tensor(root, cache, monkeypatch):
    """So that the whole is never held beside the copy."""
    order: list[str] = []
    forget = SafetensorsFile.forget
    monkeypatch.setattr(SafetensorsFile, "forget", lambda file: (order.append("forget"), forget(file))[1])
    told = {"packing": lambda part, tensor, done, total: order.append(tensor)}
    modules(opened(root / "klein", quantize="q8_0", **told))
    tensors = [one for one in order if one != "forget"]
    assert len(tensors) > 50
    assert all(before == "forget" for before, name in itertools.pairwise(order) if name != "forget")


def test_a_lora_goes_on_top(root, cache, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    name = "transformer.layers.1.attention.to_q"
    sides = {f"{name}.lora_A.weight": torch.randn(4, 96), f"{name}.lora_B.weight": torch.randn(96, 4)}
    save_file(sides, tmp_path / "lora.safetensors")
    lora = {"loras": [LoraRef(tmp_path / "lora.safetensors", 0.5)]}
    packed, plain, base = (
        opened(root / "z-turbo", quantize=mix, **how).main.network.layers[1].attention
        for mix, how in (("q8_0", lora), (None, lora), ("q8_0", {}))
    )
    assert isinstance(packed.to_q.weight.data, Packed) and not packed.to_k.beside
    x = torch.randn(1, 7, 96)
    change = 0.5 * x @ sides[f"{name}.lora_A.weight"].T @ sides[f"{name}.lora_B.weight"].T
    torch.testing.assert_close(packed.to_q(x), base.to_q(x) + change, atol=1e-4, rtol=1e-4)
    assert (packed.to_q(x) - plain.to_q(x)).std() < 0.02 * plain.to_q(x).std()
    sides = {f"{name}.lokr_w1": torch.randn(2, 2), f"{name}.lokr_w2": torch.randn(48, 48)}  # of no low rank
    save_file(sides, tmp_path / "lora.safetensors")
    unpacked = opened(root / "z-turbo", quantize="q8_0", **lora).main.network.layers[1].attention.to_q
    assert not isinstance(unpacked.weight.data, Packed) and not unpacked.beside


@torch.no_grad()
def test_the_language_model_of_janus(cache, tmp_path):
    make_janus(tmp_path / "janus")
    drawer = open_drawer(open_checkpoint(Source("janus", tmp_path / "janus", "folder")))
    told: list[str] = []
    model = drawer.load(device="cpu", quantize="q8_0", packing=lambda name, done, total: told.append(name))
    packed = [name for name, one in model.module.named_parameters() if isinstance(one.data, Packed)]
    assert "model.layers.0.self_attn.q_proj.weight" in packed and "model.embed_tokens.weight" in packed
    assert "generation_embeddings.weight" not in packed  # entries of 8 numbers
    plain = drawer.load(device="cpu").module
    ids = torch.arange(20)[None]
    exact, rounded = plain(ids), model.module(ids)
    assert told and (rounded - exact).std() < 0.05 * exact.std()
    assert not any(isinstance(one.data, Packed) for one in model.others[0].parameters())  # the autoencoder
    request = drawer.resolve(ImageRequest(prompt="a dog", seed=1, quantize="q8_0"))
    *_, picture = model.generate(request)
    assert (picture.request.quantize, picture.request.dtype) == ("q8_0", None)


def test_what_is_refused(root, cache, tmp_path):
    tensors = flow.original_names(root / "klein" / "transformer")
    shutil.copytree(root / "klein", tmp_path / "klein")
    flow.write_gguf(tmp_path / "klein" / "k.gguf", tensors, "Q4_0", "lumina2")
    half = opened(tmp_path / "klein" / "k.gguf", quantize="q8_0")  # its text encoder is packed
    kinds = {part: first_kind(module) for part, module in modules(half).items()}
    assert kinds == {"network": "Q4_0", "text": "Q8_0"}
    with pytest.raises(UsageError, match="--dtype float32 holds them in another type"):
        ImageRequest(quantize="q8_0", dtype="float32")
    with pytest.raises(UsageError, match="no such type of weights"):
        ImageRequest(quantize="q9")
    part = open_image_checkpoint(Source("z", root / "z-turbo", "folder")).opened.parts["transformer"]
    with pytest.raises(GencliError, match="packed weights run on the CPU, not on cuda"):
        packed_cache.open_packed(part, part.config, "q8_0", lambda *told: None, device="cuda")


def first_kind(module: nn.Module) -> str:
    """The type of a matrix in a layer."""
    packed = {name: one.data for name, one in module.named_parameters() if isinstance(one.data, Packed)}
    return next(one.kind for name, one in packed.items() if "attn" in name)


def test_images_say_it(root):
    request = ImageRequest(prompt="a", seed=1, quantize="Q4_K", width=64, height=64)
    assert request.quantize == "q4_k_m" and request.item(0, dtype="float32").dtype is None
    back = metadata.from_json(metadata.to_json(request)).values
    assert back["quantize"] == "q4_k_m" and ImageRequest(**back).quantize == "q4_k_m"
    assert "Quantize: q4_k_m" in metadata.to_infotext(request)
