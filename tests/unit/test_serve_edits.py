"""Forms that bring images: what becomes of them, and what is refused by name. httpx writes the forms."""

import io
import re
from itertools import pairwise

import httpx
import numpy as np
import pytest
from PIL import Image

from gencli.serve.edits import MOST_IMAGES, check_size, read_edit
from gencli.serve.multipart import MOST_PARTS, read_parts
from gencli.serve.refusal import Refusal

SIDE = 16


def png(mode="RGB", size=(SIDE, SIDE), color=None, left=None) -> bytes:
    """An image; left: the colour of its left half."""
    image = Image.new(mode, size, color or "white")
    if left is not None:
        image.paste(left, (0, 0, size[0] // 2, size[1]))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def form(*files, **values):
    """The fields of a form as httpx writes it."""
    request = httpx.Request("POST", "http://x/", files=list(files), data=values)
    if not files:
        request = httpx.Request("POST", "http://x/", files=[(name, (None, text)) for name, text in values.items()])
    return read_parts(request.read(), request.headers["content-type"])


def image(data=None, name="image", filename="photo.png"):
    return name, (filename, png() if data is None else data, "image/png")


def refused(parts, **how) -> Refusal:
    with pytest.raises(Refusal) as found:
        read_edit(parts, "m", **how)
    assert found.value.status == 400 and "stdin" not in found.value.message and "--" not in found.value.message
    return found.value


def test_fields_are_those_that_were_written():
    """Bytes of every kind, names in every letter, nothing at all."""
    data = bytes(range(256)) * 9 + b"\r\n--\r\n"
    parts = form(("image", ('b\u00fcro "1".png', data)), ("image", ("", b"")), prompt="two\r\nlines \u00e9")
    assert [part.name for part in parts] == ["prompt", "image", "image"]
    assert parts[0].text == "two\r\nlines \u00e9" and parts[0].filename is None
    assert parts[1].data == data and parts[2].data == b""


def test_a_form_as_curl_and_browsers_write_it():
    body = (
        b"preamble\r\n--x\r\nContent-Disposition: form-data; name=prompt\r\n\r\na\r\n--x\r\n"
        b'content-disposition: form-data; name="image"; filename="C:\\\\a.png"\r\nContent-Type: image/png\r\n\r\n'
        b"\x00\r\n--x--\r\nepilogue"
    )
    for kind in ("multipart/form-data; boundary=x", 'multipart/form-data; charset=utf-8; boundary="x"'):
        first, second = read_parts(body, kind)
        assert (first.name, first.text, second.name, second.data) == ("prompt", "a", "image", b"\x00")


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b"--x--", "multipart/form-data", "no boundary"),
        (b"", "multipart/form-data; boundary=x", "is no form"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb', "multipart/form-data; boundary=x", "breaks off"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n--x--", "multipart/form-data; boundary=x", "no name"),
        (b"--x\r\nb\r\n--x--", "multipart/form-data; boundary=x", "no headers"),
        (b"--x\r\n\r\nb\r\n" * (MOST_PARTS + 1) + b"--x--", "multipart/form-data; boundary=x", "more than 64 fields"),
    ],
)
def test_what_is_no_form_is_told(body, kind, told):
    with pytest.raises(Refusal) as found:
        read_parts(body, kind)
    assert found.value.status == 400 and told in found.value.message


def test_texts_become_values_of_their_rows():
    values = {"prompt": "7", "n": "2", "steps": "3", "guidance_scale": "4.5", "strength": "1", "karras": "true"}
    values |= {
        "seed": "5",
        "size": "64x32",
        "paste": "False",
        "sampler": "",
        "output_format": "webp",
        "stream": "false",
    }
    edit = read_edit(form(image(), **values, input_fidelity="high"), "m")
    request = edit.drawing.request
    assert (request.prompt, request.count, request.steps, request.guidance, request.strength) == ("7", 2, 3, 4.5, 1)
    assert (request.karras, request.seed, request.width, request.paste, request.sampler) == (True, 5, 64, False, None)
    assert edit.drawing.format == "webp" and request.init == "photo.png" and list(edit.images) == ["photo.png"]


def test_files_are_called_what_the_client_calls_them_and_none_twice():
    names = ["a.png", "/etc/a.png", "C:\\x\\b.png", "blob", "-", "a\u2028.png"]
    parts = form(*(image(name="image[]", filename=name) for name in names), prompt="a")
    assert list(read_edit(parts, "m").images) == ["a.png", "1-a.png", "b.png", "image-3", "image-4", "image-5"]


@pytest.mark.parametrize(
    "data",
    [
        png("RGBA", left=(9, 9, 9, 0)),  # OpenAI's: transparent is painted anew
        png("RGB", color="black", left="white"),
        png("L", color="black", left="white"),
        png("RGBA", color=(0, 0, 0, 255), left=(255, 255, 255, 255)),  # with an alpha that says nothing
    ],
)
def test_a_mask_says_by_what_is_clear_or_else_by_what_is_white(data):
    mask = read_edit(form(image(), image(data, "mask"), prompt="a"), "m").mask
    array = np.asarray(mask.convert("L"))
    assert (array[:, : SIDE // 2] == 255).all() and (array[:, SIDE // 2 :] == 0).all()


@pytest.mark.parametrize(
    ("files", "values", "param", "told"),
    [
        ([], {"prompt": "a"}, "image", "image: wants a file of an image, or up to 16"),
        ([image()] * (MOST_IMAGES + 1), {}, "image", "image: wants a file"),
        ([image(b"text")], {}, "image", "image: cannot read the file as an image: unknown or broken format"),
        ([image(b"")], {}, "image", "image: the file is empty"),
        ([image(png()[:60])], {}, "image", "image: cannot read the file as an image"),
        ([image(png(size=(8200, 8200)))], {}, "image", "image: the file: 8200x8200 pixels are too many"),
        ([image(png("L", size=(6000, 6000)))] * 2, {}, "image", "image: all of them have more than"),
        ([image(), image(b"x", "mask")], {}, "mask", "mask: cannot read the file as an image"),
        ([image(), image(name="mask"), image(name="mask")], {}, "mask", "mask: wants one file"),
        (
            [image(), image(png(size=(16, 8)), "mask")],
            {},
            "mask",
            "mask: it has another shape than the image: it is 16x8",
        ),
        ([image(), image(png(color="black"), "mask")], {}, "mask", "mask: it is transparent or white nowhere"),
        ([image()], {"steps": "many"}, "steps", 'steps "many": wants an integer'),
        ([image()], {"steps": "1.5"}, "steps", "steps 1.5: wants an integer"),
        ([image()], {"strength": "7"}, "strength", "strength 7"),
        ([image()], {"karras": "maybe"}, "karras", 'karras "maybe": wants true or false'),
        ([image()], {"stepps": "1"}, "stepps", "'stepps' is not supported (did you mean steps?)"),
        ([image()], {"n": "11"}, "n", "n 11: wants a whole number"),
        ([image()], {"response_format": "url"}, "response_format", "response_format: images are sent as b64_json"),
        ([image()], {"stream": "true"}, "stream", "stream: images are not streamed"),
        ([image()], {"init": "/etc/passwd"}, "init", "'init' is not supported"),
        ([image(), ("prompt", (None, b"\xff"))], {}, "prompt", "prompt is not UTF-8"),
        ([image(), ("steps", (None, b"1")), ("steps", (None, b"2"))], {}, "steps", "steps is given twice"),
        ([image(), ("image", (None, b"/etc/passwd"))], {}, "image", "image: cannot read the file as an image"),
    ],
)
def test_edits_refused(files, values, param, told):
    found = refused(form(*files, **values))
    assert found.param == param and found.message.startswith(told), found.message


def test_variations_take_one_image_and_nothing_that_changes_it():
    made = read_edit(form(image(), n="2", size="64x64"), "m", varies=True).drawing.request
    assert (made.count, made.width, made.prompt, made.init) == (2, 64, "", "photo.png")
    for files, values, param in (
        ([image(), image()], {}, "image"),
        ([image(), image(name="mask")], {}, "mask"),
        ([image()], {"prompt": "a"}, "prompt"),
        ([image()], {"strength": "0.5"}, "strength"),
    ):
        assert refused(form(*files, **values), varies=True).param == param


def test_an_image_of_the_image_s_own_size_has_a_limit_too():
    request = read_edit(form(image(), prompt="a"), "m").drawing.request
    check_size(request.replace(width=2048, height=2048))
    with pytest.raises(Refusal, match="size: 2048x2056 is more than"):
        check_size(request.replace(width=2048, height=2056))


def test_no_two_refusals_look_alike():
    """What is told begins with the field that is wrong."""
    said = [refused(form(*files)).message for files in ([image(b"x")], [image(), image(b"x", "mask")])]
    assert [re.match(r"\w+", one)[0] for one in said] == ["image", "mask"]
    assert all(one != other for one, other in pairwise(said))
