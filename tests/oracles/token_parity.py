"""How far CLIP and what draws without denoising are from their references, for README: `measure(folder)`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.image.drawers import open_drawer
from gencli.image.generate import Picture
from gencli.image.request import ImageRequest
from gencli.image.score import open_scorer
from tests.oracles import biggan, min_dalle
from tests.oracles.ldm_parity import Measured
from tests.oracles.libraries import transformers
from tests.tiny.biggan import CONFIG, make_biggan
from tests.tiny.clip import KINDS, make_clip, make_pictures
from tests.tiny.imagegpt import COLOURS, SIDE, clusters, make_imagegpt
from tests.tiny.janus import make_janus
from tests.tiny.min_dalle import make_min_dalle

TEXTS = ["red apple", "a blue dog and the cat", "", "green star!"]


def measure(root: Path) -> Iterator[Measured]:
    """All, their checkpoints made in folders of their own under `root`."""
    yield _clip(root)
    yield _imagegpt(root / "imagegpt")
    yield _biggan(root / "biggan")
    yield _janus(root / "janus")
    yield _min_dalle(root / "dalle-mini")


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
    ours = open_drawer(open_checkpoint(Source("imagegpt", folder, "folder"))).load(device="cpu")
    colours = torch.randint(COLOURS, (2, SIDE * SIDE - 1), generator=torch.Generator().manual_seed(0))
    begin = torch.full((2, 1), COLOURS)
    ids = torch.cat([begin, colours], 1)
    with torch.no_grad():
        component = float((ours.module(ids) - theirs(ids).logits).abs().max())
        wanted = theirs.generate(begin[:1], max_length=SIDE * SIDE + 1, do_sample=False)[0, 1:]
    *_, drawn = ours.generate(ours.drawer.resolve(ImageRequest(temperature=0, seed=0)))
    assert isinstance(drawn, Picture)
    pixels = np.rint(127.5 * (clusters()[wanted.numpy()] + 1)).reshape(SIDE, SIDE, 3)
    apart = int(np.abs(np.asarray(drawn.image) - pixels).max())
    return Measured("iGPT", "`openai/imagegpt-small`", component, apart)


def _biggan(folder: Path) -> Measured:
    """Images of every class, at a truncation with statistics of its own and at one between two."""
    tensors, component, apart = make_biggan(folder), 0.0, 0
    ours = open_drawer(open_checkpoint(Source("biggan", folder, "folder"), allow_pickle=True)).load(device="cpu")
    for truncation in (0.4, 0.33):
        for number in range(CONFIG["num_classes"]):
            request = ours.drawer.resolve(ImageRequest(prompt=str(number), seed=number, truncation=truncation))
            step, drawn = ours.generate(request)
            z, classes = ours._input(request, 0, str(number)).split([CONFIG["z_dim"], CONFIG["num_classes"]], 1)
            wanted = biggan.draw(tensors, CONFIG, z, classes, truncation)
            component = max(component, float((step.x0 - wanted).abs().max()))
            pixels = ((wanted[0] + 1) * 127.5).round().movedim(0, -1).numpy()
            apart = max(apart, int(np.abs(np.asarray(drawn.image) - pixels).max()))
    return Measured("BigGAN-deep", "`biggan-deep-{128,256,512}`", component, apart)


def _janus(folder: Path) -> Measured:
    """Logits of the likeliest image of all with guidance, and its pixels."""
    theirs = make_janus(folder)
    ours = open_drawer(open_checkpoint(Source("janus", folder, "folder"))).load(device="cpu")
    request = ours.drawer.resolve(ImageRequest(prompt="a red dog", temperature=0, seed=0))
    *_, last, drawn = ours.generate(request)
    guided, ids, _ = ours.begin(request, request.prompt, None)
    with torch.no_grad():
        mask = torch.ones(1, len(ids), dtype=torch.long)
        asked = {"attention_mask": mask, "generation_mode": "image", "guidance_scale": 5, "do_sample": False}
        wanted = theirs.generate(torch.tensor([ids]), **asked)
        states = [theirs.get_input_embeddings()(prompt) for prompt in guided.prompts]
        cond, uncond = (
            theirs.model.generation_head(theirs.model.language_model(inputs_embeds=one).last_hidden_state)
            for one in states
        )
        mine = guided(torch.tensor([ids]), guided.new_cache(1, len(ids)))
        component = float((mine - uncond - 5 * (cond - uncond)).abs().max())
        pixels = ((theirs.decode_image_tokens(wanted)[0] * 0.5 + 0.5).clamp(0, 1) * 255).round().numpy()
    apart = int(np.abs(np.asarray(drawn.image) - pixels).max())
    assert last.x0.flatten().tolist() == wanted[0].tolist()
    return Measured(
        "Janus (DALL·E's form)", "`deepseek-ai/Janus-Pro-1B`, `deepseek-community/Janus-Pro-1B`", component, apart
    )


def _min_dalle(folder: Path) -> Measured:
    """Logits before the first token of an image, with guidance, and the likeliest image's pixels."""
    files = make_min_dalle(folder)
    ours = open_drawer(open_checkpoint(Source("dalle", folder, "folder"), allow_pickle=True)).load(device="cpu")
    request = ours.drawer.resolve(ImageRequest(prompt="a red dog", temperature=0, seed=0))
    *_, last, drawn = ours.generate(request)
    guided, begun, _ = ours.begin(request, request.prompt, None)
    ids = ours.drawer.encode(request.prompt)
    with torch.no_grad():
        texts = torch.tensor([row + [1] * (64 - len(row)) for row in ([ids[0], ids[-1]], ids)])
        none = torch.empty(2, 0, dtype=torch.long)
        uncond, cond = min_dalle.logits(files["encoder"], files["decoder"], texts, none)
        mine = guided(torch.tensor([begun]), guided.new_cache(1, 1))[0]
        component = float((mine - uncond - 16 * (cond - uncond)).abs().max())
        pixels = (min_dalle.decode(files["detoker"], last.x0.view(1, -1)).clamp(0, 1) * 255).round().movedim(0, -1)
    apart = int(np.abs(np.asarray(drawn.image) - pixels.numpy()).max())
    return Measured("DALL·E mini and mega", "`kuprel/min-dalle`", component, apart)
