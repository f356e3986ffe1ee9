"""Second stage of the recipe behind `weights/emoji`: a text-conditioned latent UNet and its text encoder, together.

v-prediction (Salimans & Ho 2022) over linear betas (Ho et al. 2020); captions are dropped now and then, so that
classifier-free guidance works (Ho & Salimans 2021); what is kept is an exponential moving average of the weights.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.checkpoints import build
from gencli.errors import GencliError
from gencli.models import autoencoder_kl, clip_text, unet_2d_condition
from gencli.tokens import Tokenizer
from gencli.train.optim import Optimizers, learning_rate_factor
from gencli.train.pictures import Caption, to_signal

MAX_LENGTH = 32  # tokens a prompt is padded to

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # of no effect in trailing; the pipeline of diffusers insists on it
    "clip_sample": False,
    "set_alpha_to_one": True,
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [64, 128, 112],
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,  # the number of heads, as Stable Diffusion's configs mean it
    "norm_num_groups": 16,
    "act_fn": "silu",
}
TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 128,
    "intermediate_size": 512,
    "projection_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}


@dataclass(frozen=True)
class DiffusionRecipe:
    """`drop`: share of captions left out; `tagged`: share that gets words from the picture's tags beside its label;
    `tags_alone`: share that gets such words and no label. `copies`, `pairs`: see `augment`; what that makes is
    `extra_share` of what is seen. `init`: folder of a checkpoint to go on from, which keeps its autoencoder."""

    out: str
    init: str = ""
    copies: int = 0
    pairs: int = 0
    extra_share: float = 0.3
    batch: int = 64
    steps: int = 4000
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    warmup: int = 50
    cooldown: float = 0.4
    ema: float = 0.999
    drop: float = 0.1
    tagged: float = 0.25
    tags_alone: float = 0.05
    seed: int = 0
    save_every: float = 180.0  # seconds


@dataclass(frozen=True)
class Progress:
    """One step: mean squared error of v, pictures seen a second."""

    step: int
    loss: float
    pictures_per_second: float


class TextToLatent(nn.Module):
    """The two parts that learn together: caption ids (B, L), noisy latents (B, 4, h, w), timesteps (B,) → v."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        begin, end = tokenizer.bos_id, tokenizer.eos_ids[0]
        ids = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
        self.text_config = {**TEXT_ENCODER, "vocab_size": tokenizer.vocab_size, **ids}
        self.text_encoder = clip_text.Model(clip_text.Config.from_dict(self.text_config))
        self.unet = unet_2d_condition.Model(unet_2d_condition.Config.from_dict(UNET)).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        )

    def forward(self, ids: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(ids).last_hidden_state)


def alphas_cumprod() -> Tensor:
    """ᾱ of the training schedule, float64 (1000,)."""
    steps = SCHEDULER["num_train_timesteps"]
    betas = torch.linspace(SCHEDULER["beta_start"], SCHEDULER["beta_end"], steps, dtype=torch.float64)
    return (1 - betas).cumprod(0)


@torch.no_grad()
def encode_pictures(vae: autoencoder_kl.AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the latents of uint8 pictures (N, 3, H, W): two tensors (N, 4, H/8, W/8)."""
    parts = [vae.encode(to_signal(chunk)) for chunk in pictures.split(32)]
    mean = torch.cat([part[0] for part in parts])
    logvar = torch.cat([part[1] for part in parts])
    return mean, torch.exp(0.5 * logvar.clamp(-30, 20))


def caption_text(caption: Caption, recipe: DiffusionRecipe, rng: random.Random) -> str:
    """What the model is told of a picture this time: nothing, its label, or its label among some of its tags."""
    if rng.random() < recipe.drop:
        return ""
    text = caption.label
    if caption.tags and rng.random() < recipe.tags_alone:
        return " ".join(rng.sample(caption.tags, min(len(caption.tags), rng.randint(1, 3))))
    if rng.random() < 0.1:
        text = f"{rng.choice(['a', 'an', 'the'])} {text}"
    if caption.tags and rng.random() < recipe.tagged:
        tags = rng.sample(caption.tags, min(len(caption.tags), rng.randint(1, 3)))
        text = " ".join([*tags, text] if rng.random() < 0.3 else [text, *tags])
    return text


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a caption between begin and end, padded with the end token to MAX_LENGTH (cut there, captions only)."""
    return tokenizer.encode_padded(text, MAX_LENGTH)[0]


def initialise(model: TextToLatent, seed: int) -> None:
    """torch's defaults, but small embeddings and a zero last convolution: the first guess is v = 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if "embedding" in name and param.ndim == 2 and name.startswith("text_encoder"):
            nn.init.normal_(param, std=0.02, generator=generator)
    nn.init.zeros_(model.unet.conv_out.weight)
    nn.init.zeros_(model.unet.conv_out.bias)


def load_weights(model: TextToLatent, folder: Path) -> None:
    """Take text encoder and UNet from a checkpoint. Raises GencliError for one of another shape."""
    for name, module in (("text_encoder", model.text_encoder), ("unet", model.unet)):
        found = build.load(folder / name, dtype=torch.float32)
        if found.config != module.config:
            raise GencliError(f"{folder / name} has another shape than this recipe's")
        module.load_state_dict(found.state_dict())


def pick(recipe: DiffusionRecipe, own: int, count: int, generator: torch.Generator) -> Tensor:
    """Which of `count` pictures a batch has: of the first `own`, but for a share of those that were made from them."""
    picks = torch.randint(own, (recipe.batch,), generator=generator)
    if count == own:
        return picks
    extra = torch.randint(own, count, (recipe.batch,), generator=generator)
    return torch.where(torch.rand(recipe.batch, generator=generator) < recipe.extra_share, extra, picks)


def train(
    recipe: DiffusionRecipe, captions: list[Caption], own: int, latents: tuple[Tensor, Tensor], tokenizer: Tokenizer
) -> Iterator[Progress]:
    """Train, or go on from `out`/diffusion.pt; yields after every step. The state holds the average as `ema`.

    The first `own` captions and latents are the data's, the others were made from them.
    """
    torch.manual_seed(recipe.seed)
    model = TextToLatent(tokenizer)
    if recipe.init:
        load_weights(model, Path(recipe.init))
    else:
        initialise(model, recipe.seed)
    average = copy.deepcopy(model).requires_grad_(False)
    adam = ("embedding", "conv_in", "conv_out", "time_embedding")
    optimizers = Optimizers(model, lr=recipe.lr, weight_decay=recipe.weight_decay, names_for_adam=adam)
    first = _resume(Path(recipe.out), model, average, optimizers)
    mean, deviation = latents
    alphas = alphas_cumprod().float()
    saved = begun = time.monotonic()
    for step in range(first, recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        rng = random.Random(f"{recipe.seed}/{step}")
        picks = pick(recipe, own, len(mean), generator)
        texts = [caption_text(captions[i], recipe, rng) for i in picks.tolist()]
        ids = torch.tensor([encode_prompt(tokenizer, text) for text in texts])
        x0 = mean[picks] + deviation[picks] * torch.randn(mean[picks].shape, generator=generator)
        # one timestep from each of B equal parts of the range: the same law, less variance
        parts = (torch.rand(1, generator=generator) + torch.arange(recipe.batch) / recipe.batch) % 1
        t = (parts * len(alphas)).long().clamp(max=len(alphas) - 1)
        signal, noise = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=generator)
        noisy = (signal * x0 + noise * eps).contiguous(memory_format=torch.channels_last)
        loss = F.mse_loss(model(ids, noisy, t.float()), signal * eps - noise * x0)
        loss.backward()
        optimizers.step(learning_rate_factor(step, recipe.steps, recipe.warmup, recipe.cooldown))
        done = step + 1
        update_average(average, model, min(recipe.ema, done / (done + 10)))
        if done == recipe.steps or time.monotonic() - saved > recipe.save_every:
            _save(Path(recipe.out), model, average, optimizers, done)
            saved = time.monotonic()
        yield Progress(done, loss.item(), (done - first) * recipe.batch / (time.monotonic() - begun))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · model, parameter by parameter."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _save(out: Path, model: nn.Module, average: nn.Module, optimizers: Optimizers, step: int) -> None:
    parts = {"model": model.state_dict(), "ema": average.state_dict(), "optimizers": optimizers.state_dict()}
    torch.save({**parts, "step": step}, out / "diffusion.partial")
    os.replace(out / "diffusion.partial", out / "diffusion.pt")


def _resume(out: Path, model: nn.Module, average: nn.Module, optimizers: Optimizers) -> int:
    if not (out / "diffusion.pt").exists():
        return 0
    state = torch.load(out / "diffusion.pt", weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["ema"])
    optimizers.load_state_dict(state["optimizers"])
    return int(state["step"])
