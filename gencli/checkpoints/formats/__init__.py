"""The formats of checkpoints: one row each, the first that recognises a path reads it. No torch.

To add one: write what recognises and reads it in a file of this folder, and add its row here: before the last, which
takes everything, and before those that would take it for theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Kind
from gencli.checkpoints.formats import folders
from gencli.checkpoints.formats.autoencoder import is_autoencoder, read_autoencoder
from gencli.checkpoints.formats.biggan import is_biggan, read_biggan
from gencli.checkpoints.formats.ddpm import is_ddpm, read_ddpm
from gencli.checkpoints.formats.dit import is_dit, read_dit
from gencli.checkpoints.formats.dvae import is_dvae, read_dvae
from gencli.checkpoints.formats.flow import is_flow, read_flow
from gencli.checkpoints.formats.gguf import is_gguf, read_gguf
from gencli.checkpoints.formats.glide import is_glide, read_glide
from gencli.checkpoints.formats.guided_diffusion import is_guided_diffusion, read_guided_diffusion
from gencli.checkpoints.formats.janus import is_janus, read_janus
from gencli.checkpoints.formats.min_dalle import is_min_dalle, read_min_dalle
from gencli.checkpoints.formats.stable_diffusion import is_stable_diffusion, read_stable_diffusion
from gencli.checkpoints.formats.vq import is_vqgan, read_vqgan


class Format(NamedTuple):
    """A format. recognise: whether what lies at a path is of it, told by names and shapes alone. read: what it holds;
    raises GencliError for a file that is of it and cannot be used.

    network: the one network that such a file holds, in words: a file of two is refused. kind: what a file is taken for
    where `read` raises; of a language model `gencli text` tells the error.
    """

    name: str
    recognise: Callable[[Contents], bool]
    read: Callable[[Contents, Hints], Checkpoint]
    network: str = ""
    kind: Kind = "image"


FORMATS: tuple[Format, ...] = (
    Format("diffusers", folders.is_diffusers, folders.read_diffusers),
    Format("biggan", is_biggan, read_biggan),
    Format("min-dalle", is_min_dalle, read_min_dalle),
    Format("dvae", is_dvae, read_dvae),
    Format("janus", is_janus, read_janus),
    Format("transformers", folders.is_transformers, folders.read_transformers),
    Format("flow", is_flow, read_flow),
    Format("gguf", is_gguf, read_gguf),
    Format("folder", folders.is_folder, folders.read_folder),
    Format("stable diffusion", is_stable_diffusion, read_stable_diffusion),
    Format("glide", is_glide, read_glide),
    Format("dit", is_dit, read_dit, "a DiT"),
    Format("ddpm", is_ddpm, read_ddpm, "DDPM's UNet"),
    Format("guided-diffusion", is_guided_diffusion, read_guided_diffusion, "one of guided-diffusion"),
    Format("vqgan", is_vqgan, read_vqgan),
    Format("weights beside config.json", lambda contents: contents.has("config.json"), folders.read_weights),
    Format("autoencoder", is_autoencoder, read_autoencoder),
    Format("weights", lambda contents: True, folders.read_weights),
)
