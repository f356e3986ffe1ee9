"""Pictures as files: pixels, what is written in them about their making, and what hostile ones may not do."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from gencli.errors import GencliError
from gencli.image.files import infotext, metadata, pictures
from gencli.image.files.texts import read_texts
from gencli.image.request import ImageRequest

KINDS = sorted(pictures.FORMATS)
FULL = ImageRequest(
    prompt='a "red" apple, on: the sun\nsecond line 🍎 é',
    negative="blue, dog\nline two",
    steps=7,
    sampler="euler",
    karras=True,
    guidance=7.25,
    guidance_rescale=0.7,
    guidance_start=0.125,
    guidance_end=0.75,
    clip_skip=2,
    seed=2**63 - 4,
    width=64,
    height=32,
    eta=0.3,
    spacing="trailing",
    sampler_options={"use_clipped_model_output": True, "variance_type": "fixed_large", "s_noise": 1.5},
    init="dir/my, image: one.png",
    mask="mask.png",
    paste=False,
    strength=0.35,
    image_guidance=1.25,
    control=("canny, large", "org/depth"),
    control_image=("edges: one.png", "depth.png"),
    control_scale=(0.5, 1.5),
    control_start=(0.1, 0.0),
    control_end=(0.9, 1.0),
    keep_rows=3,
    temperature=0.9,
    top_k=5,
    top_p=0.8,
    truncation=0.7,
    count=3,
    best=2,
    clip="org/a clip, large",
    grid=True,
    batch=2,
    truncate="left",
    weighted=True,
    lora=("styles/a, b.safetensors:0.5", "org/c"),
    embedding=("x.pt:<x>",),
    vae="org/a vae, small",
    refiner="org/a refiner, large",
    prior="org/a prior, large",
    mix=("a red, cat:0.7", "photo.png:0.3"),
    reference=("one.png", "two, three.png"),
    upscaler=("org/one, twice", "org/two"),
    noise_level=20,
    refiner_start=0.75,
    stage=("refiner:steps=7", "refiner:sampler=euler"),
    vae_tiling=True,
    quantize="q8_0",
    prediction="v_prediction",
    betas="linear",
    zero_snr=True,
    model="./models/tiny, one",
    classifier="64x64_classifier.pt",
    classifier_scale=2.5,
    hashes={"mask.png": "0123456789abcdef"},
)


def from_infotext(text):
    recipe = infotext.parse(text)
    return None if recipe is None else metadata.settle(recipe)


def some_picture(mode="RGB"):
    array = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(array).convert(mode)


def test_full_sets_every_field():
    """So that what is tested with it is tested for every option."""
    plain = ImageRequest()
    assert [name for name in vars(plain) if getattr(plain, name) == getattr(FULL, name)] == ["dtype"]  # or quantize


@pytest.mark.slow
def test_pixels_round_as_diffusers_rounds():
    from diffusers.image_processor import VaeImageProcessor

    x = torch.linspace(-1.3, 1.3, 3 * 16 * 20).view(3, 16, 20)
    theirs = VaeImageProcessor().postprocess(x[None], output_type="pil")[0]
    np.testing.assert_array_equal(np.asarray(pictures.to_picture(x)), np.asarray(theirs))
    grey = pictures.to_picture(x[:1])
    assert grey.mode == "L" and grey.size == (20, 16)


@pytest.mark.slow
def test_pictures_become_tensors_as_in_diffusers():
    from diffusers.image_processor import VaeImageProcessor

    picture = some_picture().resize((16, 8))
    theirs = VaeImageProcessor().preprocess(picture)
    torch.testing.assert_close(pictures.from_picture(picture), theirs)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    mask = some_picture("L").resize((40, 24))
    theirs = processor.preprocess(mask, height=16, width=32)
    torch.testing.assert_close(pictures.from_mask(mask, 32, 16), theirs)


def test_nan_is_no_picture():
    with pytest.raises(GencliError, match="not numbers"):
        pictures.to_picture(torch.full((3, 8, 8), float("nan")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "request_",
    [
        ImageRequest(),
        ImageRequest(prompt="a", seed=0, count=1, karras=False),
        FULL,
        FULL.replace(quantize=None, dtype="float32"),
    ],
)
def test_a_file_gives_back_its_request(tmp_path, kind, request_):
    file = tmp_path / f"x.{kind}"
    file.write_bytes(pictures.encode(some_picture(), kind, pictures.describe(request_)))
    found = pictures.read_request(file)
    assert found.left_out == ()
    assert ImageRequest(**found.values) == request_
    with Image.open(file) as opened:
        assert opened.format == pictures.FORMATS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_infotext_alone_gives_back_the_request(tmp_path, kind):
    """Its keys are complete, for copies that lose the other text."""
    texts = pictures.describe(FULL) | {metadata.JSON: ""}
    file = tmp_path / f"x.{kind}"
    if kind == "png":
        del texts[metadata.JSON]
    file.write_bytes(pictures.encode(some_picture(), kind, texts))
    picture = pictures.open_picture(file)
    found = from_infotext(read_texts(picture)["UserComment" if kind != "png" else metadata.INFOTEXT])
    assert ImageRequest(**found.values, hashes=FULL.hashes) == FULL
    assert found.left_out == ()


def test_png_keys_and_pixels():
    data = pictures.encode(some_picture(), "png", pictures.describe(FULL))
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(some_picture()))
        assert set(opened.text) == {"parameters", "gencli"}
        raw = json.loads(opened.text["gencli"])
        lines = opened.text["parameters"].split("\n")
    assert raw["prompt"] == FULL.prompt and raw["seed"] == FULL.seed
    assert lines[2] == "Negative prompt: blue, dog"
    assert lines[-1].startswith("Steps: 7, Sampler: Euler, Schedule type: Karras, CFG scale: 7.25, ")
    assert "Size: 64x32" in lines[-1]


def test_without_metadata():
    with Image.open(io.BytesIO(pictures.encode(some_picture(), "png"))) as opened:
        assert opened.text == {}
    assert pictures.encode(some_picture(), "png") == pictures.encode(some_picture(), "png")


def test_a_file_that_says_nothing(tmp_path):
    some_picture().save(tmp_path / "a.png")
    with pytest.raises(GencliError, match="has no generation settings"):
        pictures.read_request(tmp_path / "a.png")


def png_with(key, text):
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text)
    out = io.BytesIO()
    some_picture().save(out, "PNG", pnginfo=info)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "no JSON object"),
        ('{"steps": 0}', "steps 0: must be from"),
        ('{"steps": "7"}', "expected an integer"),
        ('{"steps": true}', "expected an integer"),
        ('{"guidance": NaN}', "cfg-scale nan"),
        ('{"width": 1e400}', "expected an integer"),
        ('{"prompt": ["x"]}', "expected text"),
        ('{"prompt": "\\ud800"}', "not UTF-8"),
        ('{"sampler": "../../x"}', "no such sampler"),
        ('{"sampler_options": [1]}', "names and values"),
        ('{"version": "9", "fancy": 1}', r"fancy, unknown to"),
        ('{"seed": ' + "9" * 5000 + "}", "JSON"),
        ('{"prompt": "' + "x" * (2**20 + 1) + '"}', "too many"),
    ],
)
def test_broken_json_is_one_clear_line(tmp_path, text, match):
    (tmp_path / "a.png").write_bytes(png_with("gencli", text))
    with pytest.raises(GencliError, match=match) as caught:
        pictures.read_request(tmp_path / "a.png")
    assert "a.png" in caught.value.message
    assert len(caught.value.message) < 400


def chunk(kind, data, length=None):
    length = len(data) if length is None else length
    return struct.pack(">I", length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def header(width=1, height=1):
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def blanks(keyword, size, count=1):
    """Chunks of a packed text of so many blanks: seconds to pack, for which collecting the tests should not wait."""
    return header() + chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(b" " * size)) * count + BODY


BODY = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
HOSTILE = {
    "many pixels": header(60_000, 60_000) + BODY,
    "somewhat many pixels": header(9000, 9000) + BODY,
    "a claim of gigabytes": header() + chunk(b"tEXt", b"gencli\0{}", length=0x7FFFFFF0) + BODY,
    "a text that unfolds": lambda: blanks(b"gencli", 2**27),
    "a text of many parts": lambda: blanks(b"x", 2**20, 80),
    "cut short": header() + BODY[:20],
    "nothing": b"",
    "only its name": SIGNATURE,
    "no image": b"hello world",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(hi) show\n",
    "wrong checksum": header()[:-1] + b"\0" + BODY,
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow) if callable(HOSTILE[one]) else one for one in HOSTILE]
)
def test_hostile_files_end_in_one_line(tmp_path, name):
    file = tmp_path / "a.png"
    content = HOSTILE[name]
    file.write_bytes(content() if callable(content) else content)
    for read in (pictures.read_request, pictures.open_flat):
        with pytest.raises(GencliError) as caught:
            read(file)
            raise GencliError(f"{file} opened")  # a text chunk too many does not keep the pixels from being read
        assert str(file) in caught.value.message
        assert "\n" not in caught.value.message and len(caught.value.message) < 300


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(GencliError, match="No such file"):
        pictures.read_request(tmp_path / "none.png")
    with pytest.raises(GencliError, match="directory"):
        pictures.open_picture(tmp_path)


def test_broken_exif_is_ignored(tmp_path):
    some_picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x87\x69" * 40)
    with pytest.raises(GencliError, match="no generation settings"):
        pictures.read_request(tmp_path / "a.jpg")


def test_pictures_to_start_from():
    """Transparent is white, sixteen bits are scaled, EXIF turns."""
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(out, "PNG")
    assert pictures.open_flat(out.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(out, "PNG")
    assert pictures.open_flat(out.getvalue()).getpixel((0, 0)) == (156, 156, 156)
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(out, "JPEG", exif=exif.tobytes())
    assert pictures.open_flat(out.getvalue()).size == (2, 4)
    out = io.BytesIO()
    Image.new("P", (4, 4)).save(out, "GIF")
    assert pictures.open_flat(out.getvalue()).mode == "RGB"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 10])
def test_grid_holds_all(count):
    made = [Image.new("RGB", (4, 3), (i + 1, 0, 0)) for i in range(count)]
    sheet = pictures.grid(made)
    columns = sheet.width // 4
    assert columns * (sheet.height // 3) >= count > columns * (sheet.height // 3 - 1)
    for i in range(count):
        assert sheet.getpixel((i % columns * 4, i // columns * 3)) == (i + 1, 0, 0)


def test_grid_has_a_limit():
    with pytest.raises(GencliError, match="too many pixels"):
        pictures.grid([Image.new("L", (4096, 4096))] * 5)


def test_gif_has_every_frame():
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    data = pictures.animation([Image.new("RGB", (4, 4), color) for color in colors])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
        assert opened.info["loop"] == 0
        for index, color in enumerate(colors):
            opened.seek(index)
            assert opened.convert("RGB").getpixel((0, 0)) == color
        assert opened.info["duration"] == 1500


def test_a_jpeg_that_cannot_hold_its_text():
    request = ImageRequest(prompt="x" * 70_000)
    with pytest.raises(GencliError, match="too long for a JPEG"):
        pictures.encode(some_picture(), "jpg", pictures.describe(request))
    assert pictures.encode(some_picture(), "png", pictures.describe(request))
