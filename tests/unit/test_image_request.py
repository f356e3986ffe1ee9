"""Requests for pictures, the names of their files, and files that appear whole or not at all. No torch in any of it."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gencli import atomic
from gencli.cli import image_sinks
from gencli.cli.image_sinks import Template, slug
from gencli.cli.preview import half_blocks
from gencli.errors import GencliError, UsageError
from gencli.image.files import metadata, recipes
from gencli.image.request import ImageRequest
from gencli.image.values import Control

WRONG = [
    ({"steps": 0}, "--steps 0"),
    ({"steps": 10_001}, "--steps 10001"),
    ({"steps": 2.5}, "expected an integer"),
    ({"guidance": float("nan")}, "--cfg-scale nan"),
    ({"guidance": float("inf")}, "--cfg-scale inf"),
    ({"guidance_rescale": 1.1}, "--guidance-rescale 1.1"),
    ({"guidance_start": 1.1}, "--guidance-start 1.1"),
    ({"guidance_start": 0.6, "guidance_end": 0.5}, "--guidance-start 0.6 is behind --guidance-end 0.5"),
    ({"guidance_start": 0.1, "guidance_end": 0.0}, "--guidance-start 0.1 is behind --guidance-end 0"),
    ({"eta": -0.1}, "--eta -0.1"),
    ({"eta": 1.5}, "--eta 1.5"),
    ({"sampler": "plms"}, "--sampler 'plms'"),
    ({"sampler": "DPM++ 3M Karras"}, "--sampler 'DPM++ 3M Karras'"),
    ({"spacing": "log"}, "--spacing 'log'"),
    ({"width": 0}, "--width 0"),
    ({"height": 2**20}, "--height"),
    ({"count": 0}, "--count 0"),
    ({"batch": 0}, "--batch 0"),
    ({"seed": -1}, "--seed -1"),
    ({"seed": 2**63}, "--seed"),
    ({"seed": 2**63 - 1, "count": 2}, "the last seed"),
    ({"strength": 0.5}, "--strength without an image"),
    ({"mask": "m.png"}, "--mask without an image"),
    ({"init": "a.png", "strength": 0.0}, "--strength 0"),
    ({"init": "a.png", "strength": 1.1}, "--strength 1.1"),
    ({"truncate": "middle"}, "--truncate 'middle'"),
    ({"prompt": "a\0b"}, "NUL"),
    ({"prompt": "\udcff"}, "not UTF-8"),
    ({"negative": "\udcff"}, "--negative is not UTF-8"),
    ({"dtype": "auto"}, "--dtype 'auto'"),
    ({"sampler_options": {"x": float("inf")}}, "--sampler-option x"),
    ({"image_guidance": -1}, "--image-cfg-scale -1"),
    ({"control": ["a"]}, "1 --control and 0 --control-image"),
    ({"control_scale": [0.5]}, "1 --control-scale for 0 --control"),
    ({"control": ["a"], "control_image": ["b"], "control_scale": [1, 2]}, "2 --control-scale for 1 --control"),
    ({"control": ["a"], "control_image": ["b"], "control_end": [1.5]}, "--control-end 1.5"),
    ({"control": ["a"], "control_image": ["b"], "control_start": [0.5], "control_end": [0.5]}, "is not before"),
    ({"control": "a", "control_image": "b"}, "expected a list"),
    ({"control": [1], "control_image": ["b"]}, "--control 1: expected text"),
    ({"control": ["a"] * 65, "control_image": ["b"] * 65}, "at most 64"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_makes_no_sense_is_refused_when_it_is_made(values, message):
    with pytest.raises(UsageError) as caught:
        ImageRequest(**values)
    assert message in caught.value.message
    assert caught.value.exit_code == 2


def test_limits_themselves_are_allowed():
    ImageRequest(steps=1, guidance=0, guidance_rescale=1, eta=1, seed=2**63 - 1, width=1, height=2**14, batch=1)
    ImageRequest(init="a.png", mask="b.png", strength=1, seed=0, count=10, steps=10_000, eta=0, guidance=-1.5)


def test_several_controls_share_what_is_said_once():
    names = {"control": ["a", "b"], "control_image": ["a.png", "b.png"]}
    request = ImageRequest(**names, control_scale=[0.5], control_start=[0, 0.2])
    assert request.controls == [Control("a", "a.png", 0.5, 0, 1.0), Control("b", "b.png", 0.5, 0.2, 1.0)]
    assert request == ImageRequest(
        **{name: tuple(value) for name, value in names.items()}, control_scale=(0.5,), control_start=(0, 0.2)
    )
    assert ImageRequest(control=None).controls == []


@pytest.mark.parametrize("form", ["json", "infotext"])
def test_controls_in_a_picture(form):
    request = ImageRequest(
        prompt="a",
        steps=3,
        seed=1,
        control=("a/b", 'say "hi", c: d'),
        control_image=("a.png", "ä b.png"),
        control_end=(0.5,),
    )
    text = getattr(metadata, f"to_{form}")(request)
    found = recipes.read({metadata.JSON if form == "json" else metadata.INFOTEXT: text})
    assert ImageRequest(**found.values).replace(negative=None) == request
    assert not found.left_out


def test_each_item_is_a_request_of_its_own():
    request = ImageRequest(prompt="a", seed=5, count=3, grid=True, batch=2, steps=4)
    assert request.item(2) == ImageRequest(prompt="a", seed=7, steps=4)


@pytest.mark.slow
def test_requests_and_metadata_do_not_import_torch():
    code = (
        "import sys; from gencli.cli import image; from gencli.image import request;"
        "from gencli.image.files import metadata, recipes, pictures;"
        "print(metadata.to_json(request.ImageRequest(sampler='ddim', prompt='x'))[:2], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '{" False\n'


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("red apple", "red-apple"),
        ("../../etc/passwd", "etc-passwd"),
        ("a/b\\c:d*?\n\x1b[31m", "a-b-c-d-31m"),
        ("", "untitled"),
        ("🍎", "untitled"),
        ("日本の りんご é", "日本の-りんご-é"),
        ("हिन्दी", "हिन्दी"),
        ("word " * 100, "-".join(["word"] * 12)),
        ("りんご" * 100, ("りんご" * 100)[:53]),
    ],
)
def test_prompts_in_file_names(prompt, name):
    assert slug(prompt) == name


def test_templates():
    template = Template("out/{index:03}-{seed}-{prompt}.{{x}}.png")
    assert template.fields == {"seed", "index", "prompt"}
    assert template.path(seed=9, index=4, prompt="a b") == Path("out/004-9-a-b.{x}.png")
    assert Template("{index:4d}.png").path(seed=9, index=4, prompt="") == Path("   4.png")
    for wrong in (
        "{index:0999999999}",
        "{seed:,}",
        "{}",
        "{0}",
        "{x}",
        "{seed.real}",
        "{seed!r}",
        "{prompt:>9}",
        "{seed:q}",
        "{seed[0]}",
    ):
        with pytest.raises(UsageError, match="unknown placeholder"):
            Template(wrong)
    for wrong in ("{", "{index.png", "index}.png", "{{a}.png"):
        with pytest.raises(UsageError, match="a brace without its other half"):
            Template(wrong)


def test_where_pictures_go(tmp_path, monkeypatch, capsysbinary):
    def plan(output, kind=None, many=False, json=False):
        return image_sinks.plan(output, kind, many=many, json=json, metadata=True)

    monkeypatch.chdir(tmp_path)
    assert plan(None).template is None  # stdout is no terminal here
    assert plan("-", "webp").kind == "webp"
    assert plan("a.jpg").kind == "jpg" and plan("a.JPEG", "jpg").kind == "jpeg"
    assert plan("plain").kind == "png" and plan("plain", "webp").kind == "webp"
    assert plan("x-{seed}.png", many=True).template == Template("x-{seed}.png")
    (tmp_path / "dir").mkdir()
    assert plan("dir", "webp", many=True).template == Template("dir/gencli-{seed}.webp", new=True)
    assert plan(None, json=True, many=True).template == Template("gencli-{seed}.png", new=True)
    for arguments, match in [
        ({"output": "-", "json": True}, "--json"),
        ({"output": None, "many": True}, "one image only"),
        ({"output": "a.png", "many": True}, "-o 'a-{seed}.png'|one file"),
        ({"output": "x-{prompt}.png", "many": True}, "one file"),
        ({"output": "a.bmp"}, "unknown kind"),
        ({"output": "a.png", "kind": "webp"}, "does not fit"),
        ({"output": "a", "kind": "tiff"}, "--format tiff"),
    ]:
        with pytest.raises(UsageError, match=match):
            plan(**arguments)
    with pytest.raises(GencliError, match="no such folder: 'none'"):
        plan("none/a.png")
    with pytest.raises(UsageError, match=r"\.gif"):
        image_sinks.animation("a.png")
    with pytest.raises(UsageError, match="one file"):
        image_sinks.check_animation(image_sinks.Template("a.gif"), many=True, walks=False)


def test_written_over_in_one_move(tmp_path):
    """Whoever opens the name sees the old file or the new one, never a part."""
    target = tmp_path / "a.png"
    old, new = b"old" * 100_000, b"new" * 100_000
    atomic.write_over(target, old)
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.add(target.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(50):
        atomic.write_over(target, new)
        atomic.write_over(target, old)
    stop.set()
    thread.join()
    assert seen <= {old, new}
    assert os.listdir(tmp_path) == ["a.png"]


def test_modes_links_and_devices(tmp_path):
    target, link = tmp_path / "a.png", tmp_path / "link.png"
    old_mask = os.umask(0o027)
    try:
        atomic.write_over(target, b"x")
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert stat.S_IMODE(atomic.write_new(tmp_path / "b.png", b"x").stat().st_mode) == 0o640
    finally:
        os.umask(old_mask)
    target.chmod(0o600)
    link.symlink_to(target)
    atomic.write_over(link, b"y")
    assert link.is_symlink() and target.read_bytes() == b"y"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    atomic.write_over(Path("/dev/null"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE)
    atomic.write_over(fifo, b"through")
    assert reader.communicate(timeout=20)[0] == b"through"
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_new_files_take_the_next_free_name(tmp_path):
    target = tmp_path / "gencli-5.png"
    names = [atomic.write_new(target, b"%d" % i).name for i in range(3)]
    assert names == ["gencli-5.png", "gencli-5-1.png", "gencli-5-2.png"]
    assert target.read_bytes() == b"0"
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_new_files_where_there_are_no_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    test_new_files_take_the_next_free_name(tmp_path)


def test_nothing_is_left_of_a_file_that_cannot_be_finished(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_over(tmp_path / "a.png", b"x")
    assert os.listdir(tmp_path) == []


def test_half_blocks():
    from PIL import Image

    picture = Image.new("RGB", (4, 4))
    picture.putpixel((0, 0), (255, 0, 0))
    lines = half_blocks(picture, 4, 10, true_color=True)
    assert len(lines) == 2 and all(line.count("▀") == 4 and line.endswith("\x1b[0m") for line in lines)
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;0;0;0m▀")
    assert half_blocks(picture, 4, 10, true_color=False)[0].startswith("\x1b[38;5;196;48;5;16m▀")
    assert len(half_blocks(Image.new("RGB", (100, 300)), 48, 20, true_color=True)) == 20
    assert [line.count("▀") for line in half_blocks(Image.new("RGB", (300, 100)), 48, 20, true_color=True)] == [48] * 8


def test_a_samplers_name_elsewhere_brings_its_noise_levels():
    named = ImageRequest(sampler="DPM++ 2M Karras", stage=("refiner:sampler=LMS Karras", "refiner:steps=3"))
    assert (named.sampler, named.karras) == ("dpmpp_2m", True)
    assert named.stages == {"refiner": {"sampler": "lms", "karras": True, "steps": 3}}
    assert ImageRequest(sampler="DPM++ 2M Karras", karras=False).karras is False
    assert ImageRequest(sampler="HeunDiscreteScheduler").karras is None
