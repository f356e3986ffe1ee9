"""What diffusers' pipelines of Z-Image, FLUX.1, FLUX.2 klein, Qwen-Image, Chroma and PixArt draw, called as gencli's
requests say it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gencli.checkpoints import build
from tests.oracles.ldm_parity import Measured
from tests.oracles.pipelines import draw, generator, opened
from tests.tiny.flow import make_chroma, make_flux, make_klein, make_pixart, make_sd3, make_z_image
from tests.tiny.qwen_image import make_qwen_image

PROMPT, NEGATIVE, SIZE = "a red apple in the garden", "the dog", {"width": 96, "height": 64}


def draw_z_image(pipe: Any, *, guidance: float = 1.0, steps: int = 3, **more: Any) -> Image.Image:
    """guidance as elsewhere, which is one more than ZImagePipeline's."""
    given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": guidance - 1, **SIZE, **more}
    return pipe(num_inference_steps=steps, generator=generator(), **given).images[0]


def draw_klein(pipe: Any, *, guidance: float = 1.0, steps: int = 3, **more: Any) -> Image.Image:
    """Its pipeline knows no negative prompt but an empty one."""
    given = {"prompt": PROMPT, "guidance_scale": guidance, **SIZE, **more}
    return pipe(num_inference_steps=steps, generator=generator(), **given).images[0]


def draw_qwen_image(pipe: Any, *, guidance: float = 1.0, steps: int = 3, **more: Any) -> Any:
    """guidance: the scale of classifier-free guidance, as everywhere."""
    given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "true_cfg_scale": guidance, **SIZE, **more}
    return pipe(num_inference_steps=steps, generator=generator(), max_sequence_length=1024, **given).images[0]


def t5_states(pipe: Any, tokenizer: Any, text: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The states and the mask of a text, by its token ids."""
    ids = [*tokenizer.encode(text.lower().strip(), add_special_tokens=False)[: length - 1], 1]
    padded = torch.tensor([[*ids, *[0] * (length - len(ids))]])
    mask = (torch.arange(length) < len(ids)).long()[None]
    return pipe.text_encoder(padded, attention_mask=mask)[0], mask


def draw_pixart(pipe: Any, tokenizer: Any, *, guidance: float = 4.5, steps: int = 4, **more: Any) -> Image.Image:
    length = 120 if "Alpha" in type(pipe).__name__ else 300
    (states, mask), (no, no_mask) = (t5_states(pipe, tokenizer, text, length) for text in (PROMPT, NEGATIVE))
    given = {"prompt_embeds": states, "prompt_attention_mask": mask, "negative_prompt": None, **SIZE, **more}
    given |= {"negative_prompt_embeds": no, "negative_prompt_attention_mask": no_mask}
    pipe.set_progress_bar_config(disable=True)
    given |= {"guidance_scale": guidance, "use_resolution_binning": False, "num_inference_steps": steps}
    return pipe(generator=generator(), **given).images[0]


def draw_sd3(
    pipe: Any, tokenizer: Any, *, guidance: float = 7.0, steps: int = 3, negative: str = NEGATIVE, **more: Any
) -> Image.Image:
    (states, pooled), (no, no_pooled) = (sd3_texts(pipe, tokenizer, text) for text in (PROMPT, negative))
    given = {"prompt_embeds": states, "pooled_prompt_embeds": pooled, "guidance_scale": guidance, **SIZE, **more}
    given |= {"negative_prompt_embeds": no, "negative_pooled_prompt_embeds": no_pooled}
    return pipe(num_inference_steps=steps, generator=generator(), **given).images[0]


def sd3_texts(pipe: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of both CLIPs and of T5, of padding too; and both pooled texts. tokenizer: T5's; None without it."""
    (one, pooled), (two, pooled_2) = (pipe._get_clip_prompt_embeds(text, clip_model_index=i) for i in (0, 1))
    width = pipe.transformer.config.joint_attention_dim
    clips = torch.nn.functional.pad(torch.cat([one, two], dim=-1), (0, width - one.shape[-1] - two.shape[-1]))
    after = torch.zeros(1, 256, width)
    if tokenizer is not None:
        ids = [*tokenizer.encode(text, add_special_tokens=False)[:255], 1]
        after = pipe.text_encoder_3(torch.tensor([[*ids, *[0] * (256 - len(ids))]]))[0]
    return torch.cat([clips, after], dim=1), torch.cat([pooled, pooled_2], dim=-1)


def draw_flux(pipe: Any, tokenizer: Any, *, guidance: float = 3.5, steps: int = 3, **more: Any) -> Image.Image:
    """guidance: what the network is told, or without that the scale of classifier-free guidance."""
    told = pipe.transformer.config.guidance_embeds
    length = 512 if told else 256
    (states, pooled), (no, no_pooled) = (flux_texts(pipe, tokenizer, text, length) for text in (PROMPT, NEGATIVE))
    given = {"prompt_embeds": states, "pooled_prompt_embeds": pooled, **SIZE, **more}
    given |= {"guidance_scale": guidance} if told else {"true_cfg_scale": guidance}
    given |= {"negative_prompt_embeds": no, "negative_pooled_prompt_embeds": no_pooled} if not told else {}
    return pipe(num_inference_steps=steps, generator=generator(), **given).images[0]


def flux_texts(pipe: Any, tokenizer: Any, text: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of T5, of padding too, and CLIP's pooled text."""
    ids = [*tokenizer.encode(text, add_special_tokens=False)[: length - 1], 1]
    states = pipe.text_encoder_2(torch.tensor([[*ids, *[0] * (length - len(ids))]]))[0]
    return states, pipe._get_clip_prompt_embeds(text)


def draw_chroma(pipe: Any, tokenizer: Any, *, guidance: float = 5.0, steps: int = 3, **more: Any) -> Any:
    """With masks of truth values: of the numbers that its pipeline makes of them attention makes no mask
    (diffusers#12116)."""
    (states, mask), (no, no_mask) = (chroma_texts(pipe, tokenizer, text) for text in (PROMPT, NEGATIVE))
    given = {"prompt_embeds": states, "prompt_attention_mask": mask, "guidance_scale": guidance, **SIZE, **more}
    given |= {"negative_prompt_embeds": no, "negative_prompt_attention_mask": no_mask}
    return pipe(num_inference_steps=steps, generator=generator(), **given).images[0]


def chroma_texts(pipe: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of T5, which leaves padding out, and which tokens the network reads: one of padding too."""
    ids = [*tokenizer.encode(text, add_special_tokens=False)[:511], 1]
    padded, numbers = torch.tensor([[*ids, *[0] * (512 - len(ids))]]), torch.arange(512)[None]
    return pipe.text_encoder(padded, attention_mask=(numbers < len(ids)).long())[0], numbers <= len(ids)


class Checkpoints:
    """The families, and both forms of PixArt and FLUX.1, made in a folder, with diffusers' pipelines."""

    def __init__(self, root: Path):
        self.root = root
        self.pipes = {
            "z-image-turbo": make_z_image(root / "z-image-turbo"),
            "klein": make_klein(root / "klein"),
            "qwen-image": make_qwen_image(root / "qwen-image"),
            "chroma": make_chroma(root / "chroma"),
            "sigma": make_pixart(root / "sigma"),
            "alpha": make_pixart(root / "alpha", "Alpha"),
            "sd3.5": make_sd3(root / "sd3.5"),
            "sd3": make_sd3(root / "sd3", "3"),
            "flux-dev": make_flux(root / "flux-dev"),
            "flux-schnell": make_flux(root / "flux-schnell", "schnell"),
        }
        self.pipelines = {name: opened(root / name) for name in self.pipes}

    @torch.no_grad()
    def theirs(self, name: str, **settings: Any) -> Image.Image:
        pipe = self.pipes[name]
        if name == "z-image-turbo":
            return draw_z_image(pipe, **settings)
        if name == "klein":
            return draw_klein(pipe, **settings)
        if name == "qwen-image":
            return draw_qwen_image(pipe, **settings)
        if name == "chroma":
            return draw_chroma(pipe, self.pipelines[name].checkpoint.tokenizer(), **settings)
        if name.startswith("sd3"):
            return draw_sd3(pipe, self.pipelines[name].checkpoint.tokenizer("tokenizer_3"), **settings)
        if name.startswith("flux"):
            return draw_flux(pipe, self.pipelines[name].checkpoint.tokenizer("tokenizer_2"), **settings)
        return draw_pixart(pipe, self.pipelines[name].checkpoint.tokenizer(), **settings)

    def ours(self, name: str, **settings: Any) -> Image.Image:
        negative = "" if name == "klein" else NEGATIVE
        [made] = draw(None, pipeline=self.pipelines[name], prompt=PROMPT, negative=negative, **SIZE, **settings)
        return made.image

    @torch.no_grad()
    def network_difference(self, name: str) -> float:
        """The largest difference of the networks' outputs for the same tensors, a batch of two."""
        network, theirs = build.load(self.root / name / "transformer"), self.pipes[name].transformer
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        t = torch.tensor([1000.0, 431.0])
        if name == "z-image-turbo":
            x, caption, lengths = normal(2, 16, 8, 12), normal(2, 40, 32), torch.tensor([40, 7])
            texts = [one[:length] for one, length in zip(caption, lengths, strict=True)]
            expected = theirs(list(x[:, :, None]), (1000 - t) / 1000, texts, return_dict=False)[0]
            return (network(x, t, caption, lengths) + torch.stack(list(expected))[:, :, 0]).abs().max().item()
        if name == "qwen-image":
            x, states, lengths = normal(2, 16, 8, 12), normal(2, 20, 32), torch.tensor([20, 7])
            tokens = self.pipes[name]._pack_latents(x, 2, 16, 8, 12)
            told = {"img_shapes": [[(1, 4, 6)]] * 2, "encoder_hidden_states_mask": torch.arange(20) < lengths[:, None]}
            expected = theirs(tokens, states, timestep=t / 1000, return_dict=False, **told)[0]
            expected = self.pipes[name]._unpack_latents(expected, 64, 96, 8)[:, :, 0]
            return (network(x, t, states, lengths) - expected).abs().max().item()
        if name == "chroma":
            x, states, lengths = normal(2, 16, 8, 12), normal(2, 20, 64), torch.tensor([20, 7])
            pipe = self.pipes[name]
            ids, text_ids = pipe._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32), torch.zeros(20, 3)
            mask = torch.cat([torch.arange(20) < lengths[:, None], torch.ones(2, 24, dtype=torch.bool)], dim=1)
            told = {"img_ids": ids, "txt_ids": text_ids, "attention_mask": mask, "return_dict": False}
            expected = theirs(pipe._pack_latents(x, 2, 16, 8, 12), states, t / 1000, **told)[0]
            return (network(x, t, states, lengths) - pipe._unpack_latents(expected, 64, 96, 8)).abs().max().item()
        if name == "klein":
            x, states = normal(2, 32, 4, 6), normal(2, 20, 96)
            ids = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6), torch.arange(1))
            text_ids = torch.nn.functional.pad(torch.arange(20)[:, None], (3, 0))
            tokens = x.flatten(2).transpose(1, 2)
            expected = theirs(tokens, states, t / 1000, ids, text_ids, return_dict=False)[0]
            expected = expected.transpose(1, 2).reshape(x.shape)
            return (network(x, t, states) - expected).abs().max().item()
        if name.startswith("sd3"):
            x, states, pooled = normal(2, 16, 8, 12), normal(2, 20, 64), normal(2, theirs.config.pooled_projection_dim)
            expected = theirs(x, states, pooled, t, return_dict=False)[0]
            return (network(x, t, states, pooled) - expected).abs().max().item()
        if name.startswith("flux"):
            x, states, pooled = normal(2, 16, 8, 12), normal(2, 20, 64), normal(2, 24)
            scale = torch.tensor([3.5, 2.0]) if name == "flux-dev" else None
            pipe = self.pipes[name]
            ids, text_ids = pipe._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32), torch.zeros(20, 3)
            tokens = pipe._pack_latents(x, 2, 16, 8, 12)
            told = {"img_ids": ids, "txt_ids": text_ids, "guidance": scale, "return_dict": False}
            expected = theirs(tokens, states, pooled, t / 1000, **told)[0]
            expected = pipe._unpack_latents(expected, 64, 96, 8)
            ours = network(x, t, states, pooled, *([] if scale is None else [scale]))
            return (ours - expected).abs().max().item()
        x, states, mask = normal(2, 4, 8, 12), normal(2, 20, 64), torch.arange(20) < torch.tensor([[20], [6]])
        size = torch.tensor([[64.0, 96.0]])
        told = {"resolution": size.repeat(2, 1), "aspect_ratio": (size[:, :1] / size[:, 1:]).repeat(2, 1)}
        told = told if name == "alpha" else dict.fromkeys(told)
        expected = theirs(x, states, t - 1, told, encoder_attention_mask=mask.long(), return_dict=False)[0]
        return (network(x, t - 1, states, mask, size) - expected).abs().max().item()


ROWS = {
    "sigma": ("PixArt-Σ", "`PixArt-alpha/PixArt-Sigma-XL-2-1024-MS`"),
    "alpha": ("PixArt-α", "`PixArt-alpha/PixArt-XL-2-1024-MS`"),
    "z-image-turbo": ("Z-Image", "`Tongyi-MAI/Z-Image-Turbo`"),
    "sd3.5": ("Stable Diffusion 3 and 3.5", "`stabilityai/stable-diffusion-3.5-medium`"),
    "flux-dev": ("FLUX.1", "`black-forest-labs/FLUX.1-dev`, `black-forest-labs/FLUX.1-schnell`"),
    "chroma": ("Chroma", "`lodestones/Chroma1-HD`"),
    "klein": ("FLUX.2 klein", "`black-forest-labs/FLUX.2-klein-4B`"),
    "qwen-image": ("Qwen-Image", "`Qwen/Qwen-Image`"),
}


def measure(root: Path) -> Iterator[Measured]:
    """Every family, its checkpoints made under `root`."""
    made = Checkpoints(root)
    for name, (family, examples) in ROWS.items():
        a, b = (np.asarray(image).astype(int) for image in (made.ours(name, steps=4), made.theirs(name, steps=4)))
        yield Measured(family, examples, made.network_difference(name), int(np.abs(a - b).max()))
