"""The kinds of inputs of `benchmarks.fuzz`: a folder as it should be, the files to change in it, and a reader."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from benchmarks.fuzz import mutate_bytes, mutate_json
from gencli.checkpoints import ollama
from gencli.checkpoints.assets import EmbeddingRef, LoraRef
from gencli.checkpoints.build import load
from gencli.checkpoints.checkpoint import Contents
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.report import check, describe
from gencli.cli.models_settings import default_settings, judge, small_problems
from gencli.errors import GencliError
from gencli.spec import ModelSpec

Read = Callable[[Path], None]
CPU = ModelSpec(device="cpu")


class Kind:
    """Inputs of one kind: mutations of the files in `root` that `patterns` name.

    apart: each folder in it is one input. parts: the reader is told which part of a model has changed, the others being
    known to be sound.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        make: Callable[[Path], Any],
        read: Callable[..., None],
        *patterns: str,
        apart: bool = False,
        parts: bool = False,
    ):
        self.name, self.root, self._read, self.apart, self.parts = name, root, read, apart, parts
        make(root)
        self.files = sorted(file for pattern in patterns for file in root.rglob(pattern) if file.is_file())
        assert self.files, patterns
        self.contents = {file: file.read_bytes() for file in self.files}
        self.changed: Path | None = None

    def read_whole(self) -> None:
        """Read every input as it is. An error here means that its mutations would be refused for another reason.

        What this imports is then there in every fork.
        """
        for folder in dict.fromkeys(map(self._folder, self.files)):
            self._read(folder)

    def _folder(self, file: Path) -> Path:
        return self.root / file.relative_to(self.root).parts[0] if self.apart else self.root

    def mutate(self, draw: random.Random) -> int:
        """Change a file. Return its size."""
        self.changed = draw.choice(self.files)
        data = mutated(self.changed.suffix, self.contents[self.changed], draw)
        self.changed.write_bytes(data)
        return len(data)

    def read(self) -> None:
        assert self.changed is not None
        folder = self._folder(self.changed)
        more = [self.changed.relative_to(folder).parts[0]] if self.parts else []
        self._read(folder, *more)

    def restore(self) -> None:
        for file, data in self.contents.items():
            if file.read_bytes() != data:
                file.write_bytes(data)


def mutated(suffix: str, data: bytes, draw: random.Random) -> bytes:
    """Return a file changed as its format allows, or else in its bytes."""
    with contextlib.suppress(RecursionError, ValueError):  # too deep to be written: bytes then
        if draw.random() < 0.2:
            return mutate_bytes(data, draw)
        if suffix == ".json":
            return json.dumps(mutate_json(json.loads(data), draw)).encode(errors="surrogatepass")
        if suffix == ".jsonl":
            lines = data.splitlines()
            at = draw.randrange(len(lines))
            lines[at] = json.dumps(mutate_json(json.loads(lines[at]), draw), ensure_ascii=draw.random() < 0.9).encode(
                errors="surrogatepass"
            )
            return b"\n".join(lines)
        if suffix == ".safetensors":
            size = int.from_bytes(data[:8], "little")
            header = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), draw)).encode()
            return struct.pack("<Q", len(header)) + header + data[8 + size :]
        if suffix == ".png" and draw.random() < 0.7:
            return png(mutated_text(draw))
    return mutate_bytes(data, draw)


SAID = (
    "a cat, (dog:1.2), \\(x\\) [b]\nNegative prompt: bad, worse\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, "
    'Seed: 1, Size: 64x64, Model: "a, b", Eta: 0.5, Schedule type: Karras, Lora hashes: "x: 1, y: 2"'
)
REQUEST = {"version": "0", "prompt": "a", "steps": 3, "seed": 1, "width": 64, "control": ["a.png"], "eta": 0.5}
WORDS = [
    "Steps: ",
    ", ",
    ": ",
    "\n",
    '"',
    "\\",
    "(",
    ")",
    "[",
    "]",
    "Negative prompt: ",
    "Size: 1x",
    "9" * 400,
    "🙂",
    "\r",
]


def mutated_text(draw: random.Random) -> dict[str, str]:
    """Return texts of an image."""
    if draw.random() < 0.3:
        return {"gencli": json.dumps(mutate_json(REQUEST, draw))}
    text = SAID
    for _ in range(draw.choice((1, 2, 5, 20))):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(WORDS) * draw.choice((1, 1, 3, 2000)) + text[at + draw.choice((0, 1, 5)) :]
    return {"parameters": text[: 2**20]}


def png(texts: dict[str, str]) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_itxt(key, value.encode("utf-8", "replace").decode(), zip=len(value) > 1000)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def source(root: Path, name: str = "") -> Source:
    path = root / name if name else root
    return Source(path.name, path, "folder" if path.is_dir() else "file")


def show(root: Path, *, name: str = "") -> None:
    """What `models show` does; what is wrong is raised."""
    contents = Contents(source(root, name))
    what = judge(contents, describe(contents))
    default_settings(contents, what)
    if what.problem:
        raise GencliError(what.problem)


def inspect_part(root: Path, part: str | None = None) -> None:
    """What `models show` does with a folder, and open one of its models, or all."""
    contents = Contents(source(root))
    what = judge(contents, describe(contents))
    default_settings(contents, what)
    if what.problem:
        raise GencliError(what.problem)
    for name, model in open_checkpoint(contents).models.items():
        if part in (None, name):
            load(model.path, config=model.config, tensors=model.tensors())


def inspect(root: Path, *, allow_pickle: bool = False, name: str = "") -> None:
    """What `models show` and `models check` do; the longest problem is raised."""
    contents = Contents(source(root, name), allow_pickle=allow_pickle)
    what = judge(contents, describe(contents))
    default_settings(contents, what)
    found = [*check(contents, allow_pickle=allow_pickle).problems, *small_problems(contents, weights_are_fine=True)]
    if found:
        raise GencliError(max(found, key=len))


def load_folder(root: Path) -> None:
    """Open the network of a folder that makes no image alone."""
    load(root)


def continue_text(root: Path) -> None:
    """Open a language model and take two tokens."""
    from gencli.text.generate import generate
    from gencli.text.load import open_model
    from gencli.text.request import TextRequest

    list(generate(open_model(source(root), CPU), TextRequest("Once a", max_tokens=2, seed=1)))


def take_steps(root: Path, name: str = "") -> None:
    """Open a decoder, of a folder or of a GGUF file in it, and read ids by steps of the C library."""
    model: Any = _of_gguf(root / name) if name else load(root, dtype=torch.float32)
    cache = model.new_cache(2, 24)
    with torch.inference_mode():
        for start in (0, 8, 16):
            model(torch.arange(start, start + 8).expand(2, -1) % 90 + 3, cache)


def _of_gguf(file: Path) -> Any:
    from tests.opening import open_part

    config, tensors = open_part(file)
    return load(file, dtype=torch.float32, layerwise_casting=True, config=config, tensors=tensors)


def prompt_cache(root: Path) -> None:
    gpt2(root)
    read_prompt_cache(root)


def read_prompt_cache(root: Path) -> None:
    """Take two tokens after a prompt that was kept."""
    from gencli.text.generate import generate
    from gencli.text.load import open_model
    from gencli.text.prompt_file import PromptFile
    from gencli.text.request import TextRequest

    model = open_model(source(root), CPU)
    kept = PromptFile(root / "kept.cache", model.module)
    list(generate(model, TextRequest("Once a time", max_tokens=2, seed=1), prompt_cache=kept))


def encode(root: Path) -> None:
    """Open a tokenizer, encode two texts and decode them token by token."""
    from gencli.tokens import load_tokenizer

    tokenizer = load_tokenizer(root)
    for text in ("Once upon  a time, <|endoftext|> naïve 你好 🙂 ", "ab " * 300):
        tokenizer.lost(text)
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        decoder = tokenizer.decoder(after=ids[:5])
        "".join([*map(decoder.push, ids[5:]), decoder.finish()])
        [tokenizer.id_to_piece(i) for i in ids[:50]]


# --- makers: imported as they are used, as each brings a reference library


def gpt2(root: Path) -> None:
    from tests.tiny.text import make_gpt2

    make_gpt2(root, n_embd=16, n_layer=1)


def decoder(case: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        from tests.tiny.decoder_cases import CASES
        from tests.tiny.decoders import make_decoder
        from tests.tiny.text import make_tokenizer

        make_decoder(root, next(one for one in CASES if one.name == case))
        make_tokenizer(root)

    return make


def sharded(root: Path) -> None:
    from tests.tiny.text import make_gpt2

    make_gpt2(root, n_embd=16, n_layer=1, sharded=True)


def tokenizer_json(root: Path) -> None:
    from tests.tiny.scripted import END, bytes_tokenizer, pieces_tokenizer

    for name in ("llama", "metaspace"):
        (root / name).mkdir()
        pieces_tokenizer(name).save(str(root / name / "tokenizer.json"))
    (root / "bytes").mkdir()
    bytes_tokenizer(END).save(str(root / "bytes" / "tokenizer.json"))
    from tests.tiny.text import make_clip_tokenizer, make_tokenizer

    make_tokenizer(root / "gpt2")
    make_tokenizer(root / "vocab", "vocab")
    make_clip_tokenizer(root / "clip")
    make_bert(root / "bert")


def make_bert(root: Path) -> None:
    from tests.tiny.ldm import make_wordpiece

    make_wordpiece(root)


def pieces(root: Path) -> None:
    from tests.tiny.sentencepiece import MODELS, make

    for name in MODELS:
        make(root / name.replace(" ", "-"), name)


def gguf(root: Path) -> None:
    from tests.parity.test_gguf import write_gguf
    from tests.tiny.text import make_gpt2

    make_gpt2(root / "f", n_embd=32, n_layer=1)
    write_gguf(root / "f", root / "a.gguf", "F32")


def gguf_gemma4(root: Path) -> None:
    from tests.tiny.decoder_cases import CASES
    from tests.tiny.decoders import make_decoder
    from tests.tiny.gguf import write_decoder

    case = next(one for one in CASES if one.name == "gemma4-small")
    folder = make_decoder(root / "f", case, head_dim=32, global_head_dim=64, hidden_size_per_layer_input=32)
    write_decoder(folder, root / "a.gguf", "F32", root / "reference")


def pickle(root: Path) -> None:
    gpt2(root)
    torch.save(load_file(root / "model.safetensors"), root / "pytorch_model.bin")
    (root / "model.safetensors").unlink()


SMALL_VAE: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "layers_per_block": 1,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def diffusion(root: Path) -> None:
    from tests.tiny.image import make_ddpm

    make_ddpm(root)


def stable_diffusion(root: Path) -> None:
    from tests.tiny.image import SMALL_UNET, make_stable_diffusion, make_vae

    make_stable_diffusion(root, unet=SMALL_UNET)
    make_vae(root / "vae", SMALL_VAE)


def stable_diffusion_xl(root: Path) -> None:
    from tests.tiny.sdxl import make_sdxl

    make_sdxl(root, unet={"layers_per_block": 1}, vae=SMALL_VAE)


def latent_diffusion(root: Path) -> None:
    from tests.tiny.ldm import make_ldm

    make_ldm(root)


def imagen(root: Path) -> None:
    from tests.tiny.systems import make_if

    make_if(root)


def unclip(root: Path) -> None:
    from tests.tiny.systems import make_karlo

    make_karlo(root)


def kandinsky(root: Path) -> None:
    from tests.tiny.unclip import make_kandinsky

    make_kandinsky(root)


def stable_unclip(root: Path) -> None:
    from tests.tiny.unclip import make_stable_unclip

    make_stable_unclip(root)


def tiny_autoencoder(root: Path) -> None:
    from tests.tiny.image import make_tiny_vae

    make_tiny_vae(root)


def upscaler(root: Path) -> None:
    from tests.tiny.systems import make_x4

    make_x4(root)


def controlnet(root: Path) -> None:
    from tests.tiny.control import make_controlnet
    from tests.tiny.image import SMALL_UNET

    make_controlnet(
        root, {key: SMALL_UNET[key] for key in ("block_out_channels", "down_block_types", "layers_per_block")}
    )


def single_file(root: Path) -> None:
    from tests.tiny import single

    folder = single.make_folder(root.parent / "folder", "sd1")
    single.write_original(root / "a.safetensors", single.original(folder, "sd1"))


def networks(root: Path) -> None:
    """Files of one network: DiT, UNet and classifier of guided-diffusion, and GLIDE's with its text transformer."""
    from tests.tiny.classes import FLAGS, make_classifier, make_dit_file, make_guided
    from tests.tiny.glide import make_glide_file

    make_dit_file(root / "dit" / "a.safetensors")
    make_guided(root / "guided" / "a.safetensors", FLAGS)
    make_classifier(root / "classifier" / "a.safetensors", FLAGS)
    make_glide_file(root / "glide" / "a.safetensors", "base")


def load_parts(root: Path) -> None:
    """Open a file's networks, which need not be all that an image is made with."""
    problems = check(Contents(source(root, "a.safetensors"))).problems
    if problems:
        raise GencliError(max(problems, key=len))


def clip(root: Path) -> None:
    from tests.tiny.clip import make_clip

    make_clip(root)


def imagegpt(root: Path) -> None:
    from tests.tiny.imagegpt import make_imagegpt

    make_imagegpt(root)


def biggan(root: Path) -> None:
    from safetensors.torch import save_file

    from tests.tiny.biggan import make_biggan

    tensors = make_biggan(root)
    save_file({name: one.contiguous() for name, one in tensors.items()}, root / "model.safetensors")
    (root / "pytorch_model.bin").unlink()


def janus(root: Path) -> None:
    from tests.tiny.janus import make_janus

    make_janus(root)


def janus_reader(root: Path) -> None:
    janus(root)
    settings = {"image_size": 64, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "background_color": [127] * 3}
    (root / "preprocessor_config.json").write_text(json.dumps({**settings, "min_size": 14}))


def ask_about_an_image(root: Path) -> None:
    from gencli.image.files.preprocess import janus_settings
    from gencli.spec import ModelSpec
    from gencli.text.load import open_model
    from gencli.text.request import TextRequest
    from gencli.text.vision import look

    pixels = janus_settings(root)(Image.new("RGB", (9, 7)))
    look(open_model(source(root), ModelSpec(device="cpu")), pixels[None]).job(TextRequest(prompt="What?"))


def score(root: Path) -> None:
    from gencli.image.score import open_scorer

    scorer = open_scorer(source(root), device="cpu")
    scorer.tokenize("a dog")
    scorer.prepare(Image.new("RGB", (9, 7)))


def adapter(root: Path) -> None:
    """A PEFT folder beside the checkpoint that it is for."""
    gpt2(root / "model")
    (root / "lora").mkdir()
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True,
        "base_model_name_or_path": "gpt2", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "bias": "none", "task_type": "CAUSAL_LM", "use_rslora": False,
    }  # fmt: skip
    (root / "lora" / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.transformer.h.0.attn.c_attn.lora_"
    tensors = {f"{prefix}A.weight": torch.ones(2, 16), f"{prefix}B.weight": torch.ones(48, 2)}
    save_file(tensors, root / "lora" / "adapter_model.safetensors")


@functools.cache
def opened(root: Path) -> Any:
    from gencli.text.load import open_model

    return open_model(source(root / "model"), CPU)


def merge(root: Path) -> None:
    from gencli.checkpoints.lora import merge as merge_lora
    from gencli.models import architecture

    module = opened(root).module
    merge_lora(module, architecture("gpt2").LAYOUT, [LoraRef(root / "lora")])


def image_lora(root: Path) -> None:
    tensors = {}
    for name, (rows, columns) in {"lora_unet_down_blocks_0_attentions_0_proj_in": (32, 32)}.items():
        tensors |= {f"{name}.lora_down.weight": torch.ones(2, columns), f"{name}.lora_up.weight": torch.ones(rows, 2)}
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, root / "a.safetensors", metadata={"ss_network_alpha": "2"})


def open_image_lora(root: Path) -> None:
    from gencli.checkpoints.image_lora import open_loras

    for lora in open_loras([LoraRef(root / "a.safetensors")], ["unet", "text_encoder"], "sd"):
        lora.made_for()


def embedding(root: Path) -> None:
    save_file({"emb_params": torch.ones(2, 32)}, root / "a.safetensors")
    torch.save({"string_to_param": {"*": torch.ones(2, 32)}, "name": "a"}, root / "a.pt")


def open_embedding(root: Path) -> None:
    from gencli.checkpoints.embeddings import read_embedding

    for name in ("a.safetensors", "a.pt"):
        read_embedding(EmbeddingRef(root / name), allow_pickle=True)


def images(root: Path) -> None:
    image = Image.effect_mandelbrot((24, 16), (-3, -2.5, 2, 2.5), 20).convert("RGB")
    exif, info = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x8769] = {0x9286: b"UNICODE\0" + SAID.encode("utf-16-be")}
    info.add_itxt("parameters", SAID)
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"):
        (root / suffix).mkdir()
        how: dict[str, Any] = {"pnginfo": info} if suffix == "png" else {"exif": exif} if suffix in TELLING else {}
        image.save(root / suffix / f"a.{suffix}", **how)


TELLING = ("png", "jpg", "webp")  # formats that say how an image was made


def open_images(root: Path) -> None:
    from gencli.image.files.pictures import from_mask, from_picture, open_flat, read_request

    file = next(root.glob("a.*"))
    image = open_flat(file)
    from_picture(image)
    if image.width * image.height < 2**16:
        from_mask(image.convert("L"), 8, 8)
    if root.name in TELLING:
        read_request(file)


def said_image(root: Path) -> None:
    (root / "a.png").write_bytes(png({"parameters": SAID}))


def read_said(root: Path) -> None:
    from gencli.image.files.pictures import read_request
    from gencli.image.request import ImageRequest

    found = read_request(root / "a.png").values
    ImageRequest(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})


def captions(root: Path) -> None:
    lines = [{"file": f"{i}.png", "label": f"cat {i}", "tags": ["a", "b"], "group": "x"} for i in range(3)]
    (root / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "p").mkdir()
    with zipfile.ZipFile(root / "p.zip", "w") as archive:
        for row in lines:
            file = io.BytesIO()
            Image.new("RGB", (8, 8), "red").save(file, "PNG")
            archive.writestr(str(row["file"]), file.getvalue())
            (root / "p" / str(row["file"])).write_bytes(file.getvalue())
            (root / "p" / f"{str(row['file'])[:-4]}.txt").write_text("a cat")


def read_captions(root: Path) -> None:
    from gencli.train.captions import find_captions
    from gencli.train.pictures import read_pictures

    for pictures in (root / "p.zip", root / "p"):
        for more in ([root / "c.jsonl"], [root / "c.jsonl"] * 2, [] if pictures.is_dir() else [root / "c.jsonl"]):
            names = [name for name, _ in find_captions(pictures, more)]
            read_pictures(pictures, names[:3], 8)


def texts(root: Path) -> None:
    import gzip

    lines = [{"text": f"a text {i}", "source": "tinystories:1"} for i in range(5)]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "b.txt").write_text("one\n<|endoftext|>\ntwo\n")
    (root / "c.jsonl.gz").write_bytes(gzip.compress((root / "a.jsonl").read_bytes()))


def read_texts(root: Path) -> None:
    from gencli.train.texts import read_texts as read

    read(root)


def conversations(root: Path) -> None:
    rows = [{"user": "a", "assistant": "b"}, {"messages": [{"role": "user", "content": "a"}] * 1}]
    rows[1]["messages"].append({"role": "assistant", "content": "b"})  # type: ignore[attr-defined]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "b.json").write_text(json.dumps(rows[1]))


def read_conversations(root: Path) -> None:
    from gencli.text.conversation import Conversation, read_examples

    read_examples(root / "a.jsonl")
    Conversation().load(root / "b.json")


def settings(root: Path) -> None:
    (root / "config.toml").write_text(
        'device = "cpu"\n[image]\nsteps = 3 # few\n[profile.draft.image]\ncfg-scale = 2.5\n'
    )


def read_settings(root: Path) -> None:
    from gencli.cli import config

    data = (root / "config.toml").read_bytes()
    list(config.values(config.parse(data)))
    config.changed(data.decode("utf-8", "replace"), ["image", "steps"], "4")


def manifests(root: Path) -> None:
    digest, place = "0" * 64, root / "manifests" / "registry.ollama.ai" / "library" / "a"
    place.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "blobs" / f"sha256-{digest}").write_bytes(b"GGUF")
    layers = [{"mediaType": f"{ollama.KIND}{kind}", "digest": f"sha256:{digest}"} for kind in ("model", "params")]
    (place / "latest").write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def read_manifests(root: Path) -> None:
    with patch.dict(os.environ, OLLAMA_MODELS=str(root)):
        ollama.find("a")


TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | replace('a', 'b') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{% set x = namespace(a=0) %}"
    "{% if enable_thinking is defined and reasoning_effort in ['none', 'high'] %}<think>{% endif %}"
    "{% for i in range(3) %}{% set x.a = x.a + i %}{{ messages | tojson }}{{ 'ab' * 3 }}{% endfor %}"
)


def template(root: Path) -> None:
    from tests.tiny.scripted import make_scripted_chat

    make_scripted_chat(root, "Hello")
    (root / "chat_template.jinja").write_text(TEMPLATE)


def render(root: Path) -> None:
    from gencli.text.chat_template import Templated, switches
    from gencli.tokens import load_tokenizer

    made = Templated(load_tokenizer(root), "tiny")
    switches(made.template.source, "tiny")
    try:
        made.prompt([{"role": "user", "content": "Hi <|im_end|> there"}])
        made.end_ids()
    finally:
        made.close()


def prompts(root: Path) -> None:
    for name, data in {
        "plain": "Once upon\r\nnaïve 你好\n🙂\n".encode() * 3,
        "wide": "Once upon\r\nnaïve".encode("utf-16"),
        "codes": b"1 2 3\n4 5 6\n",
        "bias": b"5=1\n7=-inf\n50256=-100",
    }.items():
        (root / name).mkdir()
        (root / name / "a.txt").write_bytes(data)


def read_prompts(root: Path) -> None:
    import sys

    from gencli.cli.prompts import each_line, read_prompt
    from gencli.image.codes import parse
    from gencli.text.request import TextRequest, parse_logit_bias

    data = (root / "a.txt").read_bytes()
    if root.name in ("codes", "bias"):
        one = {"codes": parse, "bias": lambda text: [parse_logit_bias(word) for word in text.split("\n")]}[root.name]
        one(data.decode(errors="replace"))
        return
    before = sys.stdin
    try:
        for read in (lambda: [read_prompt(["a", "-"])], lambda: list(each_line())):
            sys.stdin = io.TextIOWrapper(io.BytesIO(data))
            for text in read():
                if isinstance(text, GencliError):
                    raise text
                TextRequest(text)
    finally:
        sys.stdin = before


def state(root: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "step": 1, "recipe": {"sizes": {"n": 1}, "lr": 1.0}}, root / "state.pt")


def read_state(root: Path) -> None:
    from gencli.train.state import check_recipe, load

    saved = load(root / "state.pt")
    if saved is not None:
        check_recipe(root, saved.get("recipe"), {"sizes": {"n": 1}, "lr": 1.0}, changes=False)


def kind(
    make: Callable[[Path], Any], read: Callable[..., None], *patterns: str, **how: bool
) -> Callable[[str, Path], Kind]:
    return lambda name, root: Kind(name, root, make, read, *patterns, **how)


KINDS: dict[str, Callable[[str, Path], Kind]] = {
    "safetensors": kind(gpt2, inspect, "*.safetensors"),
    "index": kind(sharded, inspect, "*.index.json"),
    "gguf": kind(gguf, functools.partial(inspect, name="a.gguf"), "*.gguf"),
    "gguf gemma4": kind(gguf_gemma4, functools.partial(take_steps, name="a.gguf"), "*.gguf"),
    "steps of gemma4": kind(decoder("gemma4-small"), take_steps, "config.json"),
    "steps of gemma4 with experts": kind(decoder("gemma4-moe"), take_steps, "config.json"),
    "steps of qwen3.5": kind(decoder("qwen3.5"), take_steps, "config.json"),
    "steps of qwen3.5 with experts": kind(decoder("qwen3.5-moe"), take_steps, "config.json"),
    "pickle": kind(pickle, functools.partial(inspect, allow_pickle=True), "*.bin"),
    "config gpt2": kind(gpt2, continue_text, "config.json", "generation_config.json"),
    **{
        f"config {case}": kind(decoder(case), inspect, "config.json")
        for case in (
            "llama-3",
            "yarn",
            "qwen3-window",
            "qwen3.5",
            "phi3-long",
            "gemma2",
            "gemma3",
            "gemma4-small",
            "olmo2",
            "olmo3",
            "ministral3",
            "deepseek-v2",
            "deepseek-v3",
            "lfm2",
            "cohere2",
            "smollm3",
            "mistral-window",
        )
    },
    "prompt cache": kind(prompt_cache, read_prompt_cache, "*.cache"),
    "tokenizer": kind(tokenizer_json, encode, "*.json", "*.txt", apart=True),
    "sentencepiece": kind(pieces, encode, "*.model", apart=True),
    "template": kind(template, render, "*.jinja"),
    "diffusers": kind(diffusion, inspect_part, "*.json", parts=True),
    "stable diffusion": kind(stable_diffusion, inspect_part, "*.json", parts=True),
    "stable diffusion xl": kind(stable_diffusion_xl, inspect_part, "*.json", parts=True),
    "latent diffusion": kind(latent_diffusion, inspect_part, "*.json", parts=True),
    "imagen": kind(imagen, inspect_part, "*.json", apart=True, parts=True),
    "unclip": kind(unclip, inspect_part, "*.json", apart=True, parts=True),
    "kandinsky": kind(kandinsky, inspect_part, "*.json", apart=True, parts=True),
    "stable unclip": kind(stable_unclip, inspect_part, "*.json", apart=True, parts=True),
    "tiny autoencoder": kind(tiny_autoencoder, load_folder, "*.json"),
    "upscaler": kind(upscaler, inspect_part, "*.json", parts=True),
    "controlnet": kind(controlnet, load_folder, "*.json"),
    "single file": kind(single_file, functools.partial(show, name="a.safetensors"), "a.safetensors"),
    "networks": kind(networks, load_parts, "*.safetensors", "*.json", apart=True),
    "clip": kind(clip, score, "*.json"),
    "imagegpt": kind(imagegpt, inspect, "*.json"),
    "janus": kind(janus, inspect, "*.json"),
    "janus reader": kind(janus_reader, ask_about_an_image, "*.json"),
    "biggan": kind(biggan, inspect, "*.json", "*.safetensors"),
    "adapter": kind(adapter, merge, "adapter_*"),
    "image lora": kind(image_lora, open_image_lora, "*.safetensors"),
    "embedding": kind(embedding, open_embedding, "a.*"),
    "images": kind(images, open_images, "a.*", apart=True),
    "metadata": kind(said_image, read_said, "*.png"),
    "captions": kind(captions, read_captions, "*.jsonl", "*.zip", "*.txt", "*.png"),
    "texts": kind(texts, read_texts, "*"),
    "settings": kind(settings, read_settings, "*.toml"),
    "ollama": kind(manifests, read_manifests, "latest"),
    "conversations": kind(conversations, read_conversations, "*.json*"),
    "prompts": kind(prompts, read_prompts, "*.txt", apart=True),
    "state": kind(state, read_state, "*.pt"),
}
