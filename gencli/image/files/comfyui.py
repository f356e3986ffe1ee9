"""ComfyUI's graph → what its sampler node says.

A graph is a JSON object, id of a node → `{"class_type": …, "inputs": {name: value, or [id of a node, its output]}}`.
Only what leads to the sampler that begins from an empty latent counts; what changes the image on the way and is not
followed (LoRAs, ControlNets, a second sampler) is left out by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gencli.errors import GencliError
from gencli.image.files.infotext import Recipe

Graph = Mapping[str, object]
DEPTH = 64  # links that are followed one after the other
# Our keys → where they are: names of inputs of the sampler, or of nodes that it names.
SETTINGS = {
    "Steps": ("steps",),
    "CFG scale": ("cfg",),
    "Seed": ("seed", "noise_seed"),
    "Sampler": ("sampler_name",),
    "Schedule type": ("scheduler",),
}
PARTS = ("noise", "guider", "sampler", "sigmas")  # nodes that a sampler of several parts names
TEXTS = ("text", "text_g", "text_l", "prompt", "string", "value")


def is_graph(raw: object) -> bool:
    """Return whether parsed JSON is a graph as ComfyUI runs it."""
    return isinstance(raw, dict) and any(isinstance(node, dict) and "class_type" in node for node in raw.values())


def read_graph(graph: Graph) -> Recipe:
    """Return what the one sampler that begins from noise says. Raise GencliError when there is none, or several."""
    samplers = [node for node in graph.values() if _is_sampler(node)]
    first = [node for node in samplers if _empty_latent(graph, node) is not None]
    if len(first) != 1:
        raise GencliError(f"its graph has {len(first)} samplers that begin from noise, where one would tell")
    return _Reader(graph, first[0]).recipe([_kind(node) for node in samplers if node is not first[0]])


def _is_sampler(node: object) -> bool:
    return "latent_image" in _inputs(node) and bool({"positive", "guider"} & _inputs(node).keys())


def _inputs(node: object) -> Mapping[str, object]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _kind(node: object) -> str:
    return str(node.get("class_type"))[:40] if isinstance(node, dict) else "?"


def _linked(graph: Graph, value: object) -> object:
    """Return the node that a value links to, or None."""
    return graph.get(str(value[0])) if isinstance(value, list) and len(value) == 2 else None


def _empty_latent(graph: Graph, sampler: object) -> Mapping[str, object] | None:
    """Return the inputs of the node that gives the sampler's empty latent, if that is what it begins from."""
    node = _linked(graph, _inputs(sampler)["latent_image"])
    inputs = _inputs(node)
    empty = "Empty" in _kind(node) or not {"samples", "pixels", "latent_image"} & inputs.keys()
    return inputs if empty and {"width", "height"} <= inputs.keys() else None


class _Reader:
    """Follows a sampler's inputs. seen: what is met on the way and is not followed. told: the guidance that a model of
    FLUX.1's kind is told."""

    def __init__(self, graph: Graph, sampler: object):
        self.graph, self.sampler, self.seen = graph, sampler, dict[str, None]()
        self.told: str | None = None

    def recipe(self, others: list[str]) -> Recipe:
        inputs = dict(_inputs(self.sampler))
        for part in PARTS:  # the sampler's own inputs go before those of its parts
            inputs = {**_inputs(_linked(self.graph, inputs.get(part))), **inputs}
        settings = dict(self._settings(inputs))
        prompt = self._prompt(inputs.get("positive", inputs.get("conditioning")), "positive")
        negative = self._prompt(inputs.get("negative"), "negative")
        if prompt is None:
            raise GencliError("its graph does not say the prompt in a text node that gencli knows")
        settings |= {} if self.told is None else {"CFG scale": self.told}
        settings |= self._model(inputs.get("model"), inputs.get("positive"))
        if self._scalar(inputs.get("denoise", 1)) not in ("1", "1.0"):
            self.seen["denoise"] = None
        return Recipe(prompt, negative, settings, weighted=True, left_out=(*self.seen, *others))

    def _settings(self, inputs: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        for key, names in SETTINGS.items():
            if (value := next((one for name in names if (one := self._scalar(inputs.get(name)))), None)) is not None:
                yield key, value
        empty = _empty_latent(self.graph, self.sampler) or {}
        yield "Size", f"{self._scalar(empty.get('width'))}x{self._scalar(empty.get('height'))}"
        if self._scalar(empty.get("batch_size", 1)) not in ("1", None):
            self.seen["batch_size"] = None

    def _scalar(self, value: object) -> str | None:
        """Return a value as text, through nodes that hold nothing else."""
        for _ in range(DEPTH):
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                return str(value)
            inputs = _inputs(_linked(self.graph, value))
            given = [inputs[name] for name in (*TEXTS, "int", "float", "seed", "noise_seed") if name in inputs]
            if len(given) != 1:
                return None
            value = given[0]
        return None

    def _prompt(self, value: object, side: str) -> str | None:
        """Return the text that a conditioning comes from. Raise GencliError where there are several."""
        for _ in range(DEPTH):
            node = _linked(self.graph, value)
            inputs = _inputs(node)
            if node is None:
                return None
            if "ZeroOut" in _kind(node):
                return ""
            texts = {text for name in TEXTS if (text := self._scalar(inputs.get(name))) is not None}
            if texts:
                self.seen |= {"text_l": None} if len(texts) > 1 else {}
                return self._scalar(next(inputs[name] for name in TEXTS if name in inputs))
            links = [name for name in inputs if name.startswith("conditioning")]
            if len(links) > 1:
                raise GencliError(f"its graph makes the prompt of several ({_kind(node)}), which is not followed")
            if _kind(node) == "FluxGuidance":
                self.told = self._scalar(inputs.get("guidance"))
            else:
                self.seen[_kind(node)] = None
            value = inputs.get(links[0] if links else side)
        return None

    def _model(self, model: object, positive: object) -> dict[str, str]:
        """Return the checkpoint's name and the CLIP skip; LoRAs and others on the way are seen."""
        found: dict[str, str] = {}
        for value, name in ((model, "model"), (_inputs(_linked(self.graph, positive)).get("clip"), "clip")):
            for _ in range(DEPTH):
                node = _linked(self.graph, value)
                inputs = _inputs(node)
                if isinstance(file := inputs.get("ckpt_name", inputs.get("unet_name")), str):
                    found["Model"] = file
                elif (skip := self._scalar(inputs.get("stop_at_clip_layer"))) is not None:
                    found["Clip skip"] = skip.removeprefix("-")
                elif node is not None:
                    self.seen[str(inputs.get("lora_name") or _kind(node))[:60]] = None
                if name not in inputs:
                    break
                value = inputs[name]
        return found
