"""The reference libraries. Each is imported when a test first uses it: importing them all takes ten seconds."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any


class Library:
    """A module that is imported when one of its public attributes is first read: pytest looks for private ones."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        before = len(sys.modules)
        collects = gc.isenabled()
        gc.disable()
        try:
            found = getattr(importlib.import_module(self._name), attribute)
        finally:
            if collects:
                gc.enable()
        if len(sys.modules) > before:
            gc.freeze()  # what libraries made stays: garbage collections would go through it for a tenth of all time
        return found


anthropic = Library("anthropic")
diffusers = Library("diffusers")
flux2_klein = Library("diffusers.pipelines.flux2.pipeline_flux2_klein")
flux_kontext = Library("diffusers.pipelines.flux.pipeline_flux_kontext")
janus_images = Library("transformers.models.janus.image_processing_pil_janus")
ldm_bert = Library("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
openai = Library("openai")
peft = Library("peft")
sentencepiece = Library("sentencepiece")
scipy_stats = Library("scipy.stats")
transformers = Library("transformers")
xllamacpp = Library("xllamacpp")
