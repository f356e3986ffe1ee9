"""Classes as prompts: a number, or a name that the checkpoint gives it. Only encoding needs torch.

Models that draw a class: DiT (Peebles & Xie 2023), guided-diffusion (Dhariwal & Nichol 2021), UNet2DModels.
Of these only DiT has a null class and can be guided away from it: ε̂ = ε(∅) + s · (ε(y) − ε(∅)) in all four channels, as
diffusers' DiTPipeline does. (DiT's own code guides three of the four, to reproduce its published figures.)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gencli.errors import GencliError, UsageError

if TYPE_CHECKING:
    from gencli.image.conditioning import Conditioning
    from gencli.image.request import ImageRequest
    from gencli.models.module import BaseModel
    from gencli.tokens import Tokenizer

# kind of a network → the key of its config with the number of classes, and what the key is when absent
COUNTS: dict[str, tuple[str, int | None]] = {
    "DiTTransformer2DModel": ("num_embeds_ada_norm", 1000),
    "Transformer2DModel": ("num_embeds_ada_norm", 1000),
    "UNetModel": ("num_classes", None),
    "UNet2DModel": ("num_class_embeds", None),
    "EncoderUNetModel": ("out_channels", None),
    "biggan-deep": ("num_classes", 1000),
}
WITH_NULL = {"DiTTransformer2DModel", "Transformer2DModel"}  # they have one class more, which stands for none
NEAREST = 3


@dataclass(frozen=True)
class Classes:
    """What may be asked for. count: classes are numbered from 0. names: number → names with commas between them, where
    the checkpoint has a list. null: the class that stands for none, which guidance leads away from."""

    count: int
    names: Mapping[int, str] = field(default_factory=dict)
    null: int | None = None

    def find(self, prompt: str) -> int:
        """The class that a prompt names, by its number or by any of its names, whatever their case; an empty one is
        the class for none. Raises UsageError for what is none, with the nearest names, and for a name of two."""
        wanted = _plain(prompt)
        if not wanted:
            if self.null is None:
                raise UsageError("no class is named, and this model draws none without", f"give {self._wanted()}")
            return self.null
        if wanted.isdecimal():
            if len(wanted) > 9 or int(wanted) >= self.count:
                raise UsageError(f"no class {wanted[:20]}", f"this model's are numbered 0 to {self.count - 1}")
            return int(wanted)
        if not self.names:
            raise UsageError(
                f"no class {prompt[:60]!r}: this model has no names of its classes",
                f"give a number, 0 to {self.count - 1}",
            )
        found = sorted(number for number, names in self.names.items() if wanted in _plain_names(names))
        if len(found) > 1:
            raise UsageError(f"{prompt!r} is the name of several classes", f"say {' or '.join(map(str, found))}")
        if not found:
            raise UsageError(f"no class {prompt[:60]!r}", f"the nearest are {', '.join(self._nearest(wanted))}")
        return found[0]

    def _nearest(self, wanted: str) -> list[str]:
        """Names that hold what was wanted, then those that are written most alike."""
        known = {_plain(name): name.strip() for names in self.names.values() for name in names.split(",")}
        holding = sorted((name for name in known if wanted in name), key=len)
        alike = difflib.get_close_matches(wanted, known, n=NEAREST, cutoff=0.0)
        return [known[name] for name in dict.fromkeys([*holding, *alike])][:NEAREST]

    def _wanted(self) -> str:
        return f"{'a class by its name, or ' if self.names else ''}a number from 0 to {self.count - 1}"


class HasClasses(Protocol):
    @property
    def network_classes(self) -> Classes | None: ...


def load(checkpoint: HasClasses, loader: object) -> ClassPrompts | None:
    """None for a network that takes no class."""
    classes = checkpoint.network_classes
    return None if classes is None else ClassPrompts(classes)


@dataclass(frozen=True)
class ClassPrompts:
    """Names or numbers of classes → `class_labels` (B,)."""

    classes: Classes

    @property
    def text_encoders(self) -> list[tuple[Tokenizer, BaseModel]]:
        return []

    def encode(self, prompts: Sequence[str], request: ImageRequest) -> Conditioning:
        """Raises UsageError for an unknown class."""
        import torch

        from gencli.image.conditioning import Conditioning

        return Conditioning({"class_labels": torch.tensor([self.classes.find(prompt) for prompt in prompts])})

    def negative(self, request: ImageRequest) -> Conditioning:
        """The null class, unless another one is named."""
        return self.encode([request.negative or ""], request)


def classes_of(config: Mapping[str, object], names: Mapping[int, str]) -> Classes | None:
    """The classes that the network of this config is told of, None for a network without. Raises GencliError."""
    kind = str(config.get("_class_name") or config.get("model_type"))
    key, default = COUNTS.get(kind, ("", None))
    count = config.get(key) or default
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 2**20:
        raise GencliError(f"{key} = {count!r:.80} is not a number of classes")
    if wrong := [number for number in names if number >= count]:
        raise GencliError(f"id2label names a class {wrong[0]}, and there are {count}")
    return Classes(count, names, count if kind in WITH_NULL else None)


def read_names(raw: object) -> dict[int, str]:
    """`id2label` of a JSON file: names by number. Raises GencliError for one that is not."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(
        str(number).isdecimal() and len(str(number)) < 10 and isinstance(name, str) for number, name in raw.items()
    ):
        raise GencliError("id2label is not a table of numbers and names")
    return {int(number): name for number, name in raw.items()}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _plain_names(names: str) -> set[str]:
    """What stands between commas is a name, and all of it together too."""
    return {_plain(one) for one in [*names.split(","), names]}
