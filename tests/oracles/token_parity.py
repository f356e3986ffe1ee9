"""How far CLIP and iGPT are from transformers, measured for the README's table: `measure(folder)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gencli.checkpoints.find import Source
from gencli.image.generate import Picture
from gencli.image.imagegpt import generate, load, open_palette, resolve
from gencli.image.request import ImageRequest
from gencli.image.score import open_scorer
from tests.oracles.ldm_parity import Measured
from tests.oracles.libraries import transformers
from tests.tiny.clip import KINDS, make_clip, make_pictures
from tests.tiny.imagegpt import COLOURS, SIDE, clusters, make_imagegpt

TEXTS = ["red apple", "a blue dog and the cat", "", "green star!"]


def measure(root: Path) -> Iterator[Measured]:
    """Both, their checkpoints made in folders of their own under `root`."""
    yield _clip(root)
    yield _imagegpt(root / "imagegpt")


def _clip(root: Path) -> Measured:
    """Vectors and cosines in every layout. Its pictures are what it looks at, in steps of 1/255."""
    component, apart = 0.0, 0
    for kind in KINDS:
        folder = root / kind
        _, processor = make_clip(folder, kind)
        theirs = transformers.CLIPModel.from_pretrained(folder).eval()
        ours = open_scorer(Source(kind, folder, "folder"), device="cpu")
        pixels = processor(make_pictures(), return_tensors="pt")["pixel_values"]
        prepared = [ours.prepare(picture) for picture in make_pictures()]
        with torch.no_grad():
            ids = transformers.CLIPTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
            wanted = theirs(pixel_values=pixels, **ids)
        texts, seen = ours.texts(TEXTS), ours.pictures(prepared)
        cosines = wanted.logits_per_image / theirs.logit_scale.detach().exp()
        pairs = [(texts, wanted.text_embeds), (seen, wanted.image_embeds), (seen @ texts.T, cosines)]
        component = max(component, *(float((a - b).abs().max()) for a, b in pairs))
        apart = max(apart, round(float((torch.cat(prepared) - pixels).abs().max()) * max(processor.image_std) * 255))
    return Measured("CLIP", "`openai/clip-vit-base-patch32`", component, apart)


def _imagegpt(folder: Path) -> Measured:
    """Logits of a whole sequence, and the likeliest picture of all."""
    theirs, _ = make_imagegpt(folder)
    ours = load(open_palette(Source("imagegpt", folder, "folder")), device="cpu")
    colours = torch.randint(COLOURS, (2, SIDE * SIDE - 1), generator=torch.Generator().manual_seed(0))
    begin = torch.full((2, 1), COLOURS)
    ids = torch.cat([begin, colours], 1)
    with torch.no_grad():
        component = float((ours.module(ids) - theirs(ids).logits).abs().max())
        wanted = theirs.generate(begin[:1], max_length=SIDE * SIDE + 1, do_sample=False)[0, 1:]
    *_, drawn = generate(ours, resolve(ImageRequest(temperature=0, seed=0), ours.palette))
    assert isinstance(drawn, Picture)
    pixels = np.rint(127.5 * (clusters()[wanted.numpy()] + 1)).reshape(SIDE, SIDE, 3)
    apart = int(np.abs(np.asarray(drawn.image) - pixels).max())
    return Measured("iGPT", "`openai/imagegpt-small`", component, apart)
