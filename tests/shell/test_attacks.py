"""Files that were made to harm: each ends in one clear line, with its exit code, soon and in little memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from tests.shell.process import GENCLI, LIMIT, environment, gencli
from tests.tiny.clip import make_clip, make_pictures
from tests.tiny.image import make_ddpm, make_stable_diffusion, rewrite_json
from tests.tiny.imagegpt import make_imagegpt
from tests.tiny.text import make_gpt2, make_templated

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("inside")]

SECONDS = 20  # far more than any of them takes, and far less than what they ask for
MEMORY = 220  # MiB at most, without torch; the pictures claim gigabytes
BASE = 900  # with torch and a tiny model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("attacks")
    make_clip(root / "clip")
    make_imagegpt(root / "igpt")
    make_ddpm(root / "ddpm")
    make_pictures()[0].save(root / "good.png")
    return root


def check_words(code: int, out: bytes, err: bytes, *, said: str, wanted: int = 1) -> None:
    """One line `error: …` with `said` in it, perhaps a hint, and nothing else."""
    lines = err.decode().splitlines()
    assert (code, out) == (wanted, b""), err
    assert lines and lines[0].startswith("error: ") and said in lines[0], err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
    assert max(map(len, lines)) < 500 and "Traceback" not in err.decode() and "defect" not in err.decode(), err


# Runs a command and says what it held at most. Linux counts what a process held before `exec` too, which would be all
# that the tests hold, so that a small one stands between.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], "w").write(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
sys.exit(code)
"""
# The same within a forked one, which holds torch from its beginning.
TELLS = """
import atexit, os, resource
def tell(file=os.path.abspath("peak")):
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(one.ru_utime + one.ru_stime for one in used)
    open(file, "w").write(f"{max(one.ru_maxrss for one in used)} {seconds}")
atexit.register(tell)
"""


def attack(*args: object, said: str, memory: int = MEMORY, seconds: float = SECONDS) -> None:
    """Run gencli as a process of its own: its words, the processor's seconds, and the most memory that it held."""
    Path("peak").unlink(missing_ok=True)
    if memory >= BASE:
        done = gencli(*args, code=TELLS)
    else:
        command = [sys.executable, "-S", "-c", LAUNCHER, "peak", *GENCLI, *map(str, args)]
        done = subprocess.run(command, capture_output=True, env=environment(), timeout=LIMIT)
    check_words(done.returncode, done.stdout, done.stderr, said=said)
    held, used = map(float, Path("peak").read_text().split())
    assert used < seconds, f"{used:.1f} s"
    peak = held / (2**20 if sys.platform == "darwin" else 2**10)
    assert peak < memory, f"{peak:.0f} MiB"


# --- pictures


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """A PNG chunk; `length`: what it claims to hold."""
    length = len(data) if length is None else length
    return struct.pack(">I", length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def head(width: int = 1, height: int = 1) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def zeros(megabytes: int) -> bytes:
    """That many megabytes of zeros as zlib has them, made of one that stands many times."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * megabytes + b"\x03\x00"


TAIL = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
GIGABYTE = zeros(1024)
TEXTS = {
    "zTXt of a gigabyte": chunk(b"zTXt", b"gencli\0\0" + GIGABYTE),
    "iTXt of a gigabyte": chunk(b"iTXt", b"gencli\0\1\0\0\0" + GIGABYTE),
    "iCCP of a gigabyte": chunk(b"iCCP", b"x\0\0" + GIGABYTE),
    "claims two gigabytes": chunk(b"tEXt", b"gencli\0{}", length=0x7FFFFFF0),
    "a hundred of a megabyte": chunk(b"zTXt", b"x\0\0" + zeros(1)) * 100,
    "a million characters": chunk(b"tEXt", b'gencli\0{"prompt": "' + b"x" * (2**20 + 1) + b'"}'),
    "brackets without end": chunk(b"tEXt", b"gencli\0" + b"[" * 2**19),
    "a number without end": chunk(b"tEXt", b'gencli\0{"seed": ' + b"9" * 2**19 + b"}"),
    "a million steps": chunk(b"tEXt", b'gencli\0{"steps": 1000000}'),
    "a million images to begin from": chunk(
        b"tEXt", b'gencli\0{"control": ' + json.dumps(["x"] * 2**17).encode() + b"}"
    ),
    "a device to begin from": chunk(b"tEXt", b'gencli\0{"init": "/dev/zero", "steps": 1}'),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_picture_says_of_itself(name):
    """`--from`: before torch, in little memory."""
    Path("a.png").write_bytes(head() + TEXTS[name] + TAIL)
    attack("image", "--from", "a.png", "-o", "b.png", said="a.png")


def test_texts_behind_the_pixels():
    end = chunk(b"IEND", b"")
    Path("a.png").write_bytes(head() + TAIL.removesuffix(end) + TEXTS["zTXt of a gigabyte"] + end)
    attack("image", "--from", "a.png", "-o", "b.png", said="a.png")


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0"
        + bytes(6)
        + (b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02\x4c\x01\0\x3b")
    )


def jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 9)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + bytes(4)


def saved(kind: str, **how) -> bytes:
    """The good picture in another format."""
    Image.open("good.png").save("good.tmp", kind, **how)
    return Path("good.tmp").read_bytes()


BOMBS = {
    "png": lambda: head(60_000, 60_000) + chunk(b"IDAT", zeros(100)) + chunk(b"IEND", b""),
    "narrow png": lambda: head(1, 2**31 - 1) + TAIL,
    "gif": lambda: gif(60_000, 60_000),
    "jpeg": lambda: jpeg(65_000, 65_000),
    "bmp": lambda: bmp(60_000, 60_000),
    "tiff": lambda: tiff(60_000, 60_000),
    "ppm": lambda: b"P6 60000 60000 255\n" + bytes(99),
    "empty png": lambda: head(0, 0) + TAIL,
    "cut png": lambda: Path("good.png").read_bytes()[:400],
    "cut jpeg": lambda: saved("JPEG")[:200],
    "cut webp": lambda: saved("WEBP", lossless=True)[:200],
    "cut gif": lambda: saved("GIF")[:40],
    "cut animation": lambda: saved("GIF", save_all=True, append_images=make_pictures()[1:])[:40],
    "a gigabyte of text": lambda: head() + TEXTS["zTXt of a gigabyte"] + TAIL,
    "noise behind a png's name": lambda: head(64, 64) + np.random.default_rng(0).bytes(5000),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) show\n",
    "html": lambda: b"<html><img src=x></html>",
    "nothing": lambda: b"",
}


MEASURED = ("png", "gif", "jpeg", "tiff", "a gigabyte of text")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in MEASURED[1:] else name for name in BOMBS]
)
def test_a_picture_to_begin_from(run, name):
    Path("bomb").write_bytes(BOMBS[name]())
    args = ("image", "-m", "emoji", "apple", "-i", "bomb", "-o", "b.png")
    if name in MEASURED:
        attack(*args, said="bomb")
    else:
        done = run(*args)
        check_words(done.returncode, done.stdout, done.stderr, said="bomb")


def test_a_mask(root):
    Path("bomb").write_bytes(BOMBS["png"]())
    attack("image", "-m", "emoji", "apple", "-i", "good.png", "--mask", "bomb", "-o", "b.png", said="bomb")


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_to_score(run, name):
    """Told, and the others are scored."""
    Path("bomb").write_bytes(BOMBS[name]())
    done = run("score", "apple", "bomb", "good.png", "-m", "clip")
    assert done.returncode == 1 and done.stdout.endswith(b"\tgood.png\n") and done.stdout.count(b"\n") == 1
    check_words(done.returncode, b"", done.stderr, said="bomb")


def test_the_same_from_stdin_and_in_a_palettes_place(run):
    Path("bomb").write_bytes(BOMBS["png"]())
    done = run("image", "-m", "igpt", "-i", "bomb", "-o", "b.png")
    check_words(done.returncode, done.stdout, done.stderr, said="bomb")
    with open("bomb", "rb") as file:
        process = gencli("image", "-m", "emoji", "x", "-i", "-", "-o", "b.png", stdin=file.fileno())
    check_words(process.returncode, process.stdout, process.stderr, said="stdin")


def test_odd_pictures_that_are_none_the_less_pictures(run):
    """Another size, an animation, a single row of pixels: begun from, masked with, scored."""
    animated = make_pictures()
    animated[0].save("many.gif", save_all=True, append_images=animated[1:])
    Image.new("L", (7, 90), "white").save("mask.png")
    Image.new("RGB", (300, 1), "red").save("row.png")
    for init in ("many.gif", "row.png"):
        args = ("--steps", 1, "--size", "32x32", "-i", init, "--mask", "mask.png", "--seed", 1)
        done = run("image", "-m", "ddpm", *args, "-o", "odd.png")
        assert (done.returncode, done.stdout) == (0, b"odd.png\n")
        assert done.stderr.startswith(b"note: the mask has another shape") and done.stderr.count(b"\n") == 1
    assert run("image", "-m", "igpt", "-i", "row.png", "-o", "odd.png").returncode == 0
    done = run("score", "apple", "many.gif", "row.png", "-m", "clip")
    assert done.returncode == 0 and done.stdout.count(b"\n") == 2


# --- weights and settings


def copied(folder: str, name: str = "hurt") -> Path:
    """A copy of a checkpoint, to be spoilt."""
    copy = Path(name)
    copy.mkdir(exist_ok=True)
    for file in [*copy.iterdir()]:
        file.unlink()
    for file in Path(folder).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def huge_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])


def change(file: str, **changes):
    return lambda folder: rewrite_json(folder / file, lambda raw: raw | changes)


def within(part: str, **changes):
    return lambda folder: rewrite_json(folder / "config.json", lambda raw: raw | {part: raw[part] | changes})


def tensors(edit):
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(edit(load_file(file)), file, {"format": "pt"})

    return spoil


def without(name: str):
    return tensors(lambda state: {key: value for key, value in state.items() if key != name})


def reshaped(name: str, *shape: int):
    return tensors(lambda state: state | {name: torch.zeros(shape)})


def sparse(name: str, size: int = 2**36):
    """A file that claims far more bytes than any disk of ours has."""

    def spoil(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return spoil


SETTINGS = "preprocessor_config.json"
CLIP = {
    "weights cut": (cut, "broken or no safetensors"),
    "a header of a terabyte": (huge_header, "broken or no safetensors"),
    "weights of NaN": (
        tensors(lambda s: {k: v * float("nan") if v.is_floating_point() else v for k, v in s.items()}),
        "NaN",
    ),
    "a tensor less": (without("visual_projection.weight"), "lacks tensors: visual_projection.weight"),
    "a tensor more": (reshaped("vision_model.secret", 3), "vision_model.secret"),
    "another shape": (reshaped("logit_scale", 2), "logit_scale is [2], not []"),
    "other patches": (within("vision_config", patch_size=16), "does not fit its config"),
    "more layers": (within("text_config", num_hidden_layers=3), "lacks tensors: text_model.encoder.layers.2"),
    "a billion layers": (within("text_config", num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    "endless patches": (within("vision_config", image_size=4096, patch_size=1), "16777216 patches"),
    "an unknown key": (within("vision_config", rotary=True), "rotary = True"),
    "a vocabulary too small": (within("text_config", vocab_size=4), "does not fit its config"),
    "no vision": (change("config.json", vision_config=[1]), "vision_config is not JSON object"),
    "another kind": (change("config.json", model_type="bert"), "not a CLIP"),
    "a kind of no kind": (change("config.json", model_type={"a": 1}), "in its config is not a name"),
    "code": (change("config.json", auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "a config of gigabytes": (sparse("config.json"), "too large"),
    "settings of gigabytes": (sparse(SETTINGS), "too large"),
    "settings of megabytes": (sparse(SETTINGS, 2**25), "too large"),
    "brackets without end": (lambda folder: (folder / SETTINGS).write_text("[" * 10**6), "not valid JSON"),
    "a size of a billion": (change(SETTINGS, size=10**9), "size = 1000000000"),
    "a size below nothing": (change(SETTINGS, crop_size={"height": -1, "width": 9}), "crop_size"),
    "another size than the model's": (change(SETTINGS, crop_size=8), "makes images of 8x8"),
    "a division by zero": (change(SETTINGS, image_std=[0, 0, 0]), "image_std"),
    "a mean of many": (change(SETTINGS, image_mean=[0.5] * 10**5), "image_mean"),
    "no settings": (lambda folder: (folder / SETTINGS).unlink(), SETTINGS),
    "no tokenizer": (lambda folder: (folder / "vocab.json").unlink(), "hurt"),
    "a tokenizer cut": (lambda folder: (folder / "vocab.json").write_text('{"a": 0'), "vocab.json"),
}


@pytest.mark.parametrize("name", CLIP)
def test_a_clip(run, name):
    spoil, said = CLIP[name]
    spoil(copied("clip"))
    done = run("score", "red apple", "good.png", "-m", "hurt")
    check_words(done.returncode, done.stdout, done.stderr, said=said)


PALETTE = {
    "weights cut": (cut, "broken or no safetensors"),
    "another shape": (reshaped("lm_head.weight", 25, 32), "lm_head.weight is [25, 32], not [24, 32]"),
    "weights of NaN": (
        tensors(lambda s: {k: v * float("nan") if v.is_floating_point() else v for k, v in s.items()}),
        "NaN",
    ),
    "no colours": (change(SETTINGS, clusters=[]), "is not a palette"),
    "twenty thousand colours": (change(SETTINGS, clusters=[[0, 0, 0]] * 20_000), "20000 entries"),
    "colours of megabytes": (sparse(SETTINGS, 2**25), "too large"),
    "colours of two numbers": (change(SETTINGS, clusters=[[0.5, 0.5]] * 24), "not a colour of three numbers"),
    "colours that are none": (change(SETTINGS, clusters=[[float("nan")] * 3] * 24), "not a colour of three numbers"),
    "colours within colours": (change(SETTINGS, clusters=[[[[]]] * 3] * 24), "not a colour of three numbers"),
    "colours too many for the model": (change(SETTINGS, clusters=[[0, 0, 0]] * 30), "30 colours do not fit"),
    "a size of a billion": (change(SETTINGS, size=10**9), "size = 1000000000"),
    "another size": (change(SETTINGS, size=4096), "does not fit n_positions"),
    "positions without end": (change("config.json", n_positions=10**12), "does not fit n_positions"),
    "a billion layers": (change("config.json", n_layer=10**9), "n_layer"),
    "heads at odds": (change("config.json", n_head=7), "n_head = 7"),
    "cross-attention": (change("config.json", add_cross_attention=True), "add_cross_attention"),
}


@pytest.mark.parametrize("name", PALETTE)
def test_a_palette(run, name):
    spoil, said = PALETTE[name]
    spoil(copied("igpt"))
    done = run("image", "-m", "hurt", "-o", "b.png", "--seed", 1)
    check_words(done.returncode, done.stdout, done.stderr, said=said)
    assert not os.path.exists("b.png")


def test_weights_that_claim_much_take_little_memory():
    """Sizes are compared before anything is allocated: as a process, torch and all."""
    copy = copied("clip")
    within("text_config", hidden_size=16384, num_attention_heads=2, intermediate_size=65536, num_hidden_layers=128)(
        copy
    )
    attack("score", "x", "good.png", "-m", "hurt", said="does not fit its config", memory=BASE)


# --- small files that ask for much work


DOUBLES = "{% set ns = namespace(x='a') %}{% for a in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
TEMPLATES = {
    "millions of characters": ("{{ 'ab ' * 5000000 }}", "writes more than"),
    "millions in pieces": ("{% for a in range(99999) %}{{ 'abc ' * 1000 }}{% endfor %}", "writes more than"),
    "no end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "did not end within 5 seconds: does it loop?",
    ),
    "a long error": ("{{ raise_exception('long ' * 20000000) }}", "long long"),
    "a long error of Python's": ("{{ 1 + ('long ' * 20000000) }}", "TypeError"),
    "memory": (DOUBLES, "memory"),
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_templates_that_ask_for_much(what: str, tmp_path: Path) -> None:
    template, said = TEMPLATES[what]
    model = make_templated(tmp_path / "model", template)
    attack("text", "hi", "--chat", "-m", model, "-n", "1", said=said, memory=BASE, seconds=14)


TOKENIZERS = {
    "one to a million": [{"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**6}],
    "doubled and doubled": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
    "before each part": [{"type": "Prepend", "prepend": "b" * 10**6}],
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_tokenizers_that_make_much_of_little(what: str, tmp_path: Path) -> None:
    model = make_gpt2(tmp_path / "model")
    file = model / "tokenizer.json"
    rules = {"type": "Sequence", "normalizers": TOKENIZERS[what]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": rules}))
    attack("text", "a b a", "-m", model, "-n", "1", said="characters out of one", memory=BASE, seconds=12)


@pytest.mark.parametrize("what", ["steps", "plain", "brackets"])
def test_a_picture_whose_text_is_long(what: str, tmp_path: Path) -> None:
    settings = "\nSteps: 1, Sampler: DDIM, CFG scale: 7, Seed: 1"
    prompts = {"steps": "a\n" + 'a:"\\,' * 200_000, "plain": "word " * 200_000, "brackets": "(" * 99 + "\\(" * 400_000}
    text = PngInfo()
    text.add_text("parameters", (prompts[what] + settings)[: 2**20 - 1], zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "long.png", pnginfo=text)
    make_stable_diffusion(tmp_path / "sd")
    args = ("image", "--from", tmp_path / "long.png", "-m", tmp_path / "sd", "-o", tmp_path / "out.png")
    attack(*args, said="the prompt has", memory=BASE, seconds=12)
