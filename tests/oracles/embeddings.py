"""Textual inversion files, and what diffusers makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from gencli.checkpoints.embeddings import read_embedding
from gencli.checkpoints.find import Source
from gencli.errors import GencliError
from gencli.image.load import load
from gencli.image.open import open_image_checkpoint
from gencli.image.request import ImageRequest


def vectors(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def opened(folder, *files, allow_pickle=False, **more):
    embeddings = [read_embedding(file, allow_pickle=allow_pickle) for file in files]
    return load(
        open_image_checkpoint(Source(folder.name, folder, "folder")), device="cpu", embeddings=embeddings, **more
    )


def told(pipeline, prompts, **values):
    with torch.inference_mode():
        return pipeline.main.conditioner.encode(prompts, ImageRequest(**values))["encoder_hidden_states"]


def by_diffusers(pipe, *files, **kwargs):
    made = copy.deepcopy(pipe)
    for file in files:
        made.load_textual_inversion(file, **kwargs)
    return made


def told_by(pipe, prompts):
    with torch.inference_mode():
        return torch.cat([pipe.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])


def write(file, tensor, form):
    """An embedding in one of the forms that are about."""
    if form == "diffusers":
        save_file({"<toy>": tensor}, file)
    elif form == "diffusers, bin":
        torch.save({"<toy>": tensor[0] if len(tensor) == 1 else tensor}, file)
    elif form == "web ui, safetensors":
        save_file({"emb_params": tensor}, file)
    elif form == "web ui":
        more = {"name": "toy", "step": 9, "sd_checkpoint": None, "sd_checkpoint_name": None}
        table = {"*": tensor.requires_grad_()}
        torch.save({"string_to_token": {"*": 265}, "string_to_param": table, **more}, file)
    elif form == "the first":
        table = torch.nn.ParameterDict({"*": torch.nn.Parameter(tensor)})
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table}, file)
    else:
        torch.save(tensor, file)
    return file


def refusal(folder, *files, **more):
    with pytest.raises(GencliError) as caught:
        opened(folder, *files, **more)
    assert "\n" not in caught.value.message
    return f"{caught.value.message} — {caught.value.hint}"
