"""The reference libraries. Each is imported when a test first uses it: importing them all takes ten seconds."""

from __future__ import annotations

import importlib
from typing import Any


class Library:
    """A module that is imported when one of its public attributes is first read: pytest looks for private ones."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


diffusers = Library("diffusers")
flux2_klein = Library("diffusers.pipelines.flux2.pipeline_flux2_klein")
ldm_bert = Library("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
peft = Library("peft")
sentencepiece = Library("sentencepiece")
scipy_stats = Library("scipy.stats")
transformers = Library("transformers")
xllamacpp = Library("xllamacpp")
