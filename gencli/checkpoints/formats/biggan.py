"""BigGAN-deep as pytorch-pretrained-BigGAN publishes it: a folder of config.json and pytorch_model.bin, or the two
under the names that they are downloaded by (biggan-deep-128-pytorch_model.bin). No torch before a tensor is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.tensors import TensorFile, Tensors
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = "biggan-deep"
CONFIG = "config.json"
KEYS = {"attention_layer_position", "channel_width", "n_stats"}  # of its config, which names no architecture
ORIGINAL = "weight_orig"  # a matrix whose largest singular value is to be divided out, by vectors beside it
BESIDE = re.compile(r".*\.(weight_[uv]|running_(means|vars))")  # what is no parameter


def is_biggan(contents: Contents) -> bool:
    """Return whether a config or the names of tensors are those of BigGAN-deep."""
    if contents.is_file:
        return f"generator.gen_z.{ORIGINAL}" in contents.shapes
    try:
        return contents.has(CONFIG) and contents.read_json(CONFIG).keys() >= KEYS
    except GencliError:
        return False


def read_biggan(contents: Contents, hints: Hints) -> Checkpoint:
    """Read a generator. `id2label` in its config names the classes. Raise GencliError for a file without a config."""
    file = _config_file(contents)
    raw = contents.read_json(file)
    part = Part(
        "", "model", contents.path, lambda: {**raw, "model_type": FAMILY},
        lambda: Normalised(contents.open_tensors(contents.path)),
    )  # fmt: skip
    return Checkpoint(
        contents, "image", FAMILY, {"": part}, own_folder=True, labels=raw.get("id2label"), labels_file=file
    )


def _config_file(contents: Contents) -> Path:
    """Return the path of the config: that of the folder, or the one beside a file."""
    if not contents.is_file:
        return contents.path / CONFIG
    own = contents.path.name.partition("pytorch_model")[0] + CONFIG
    found = [contents.folder / own, contents.path.with_suffix(".json"), contents.folder / CONFIG]
    if (there := next((path for path in found if path.is_file()), None)) is None:
        raise GencliError(f"it is a BigGAN-deep without its config: no {own} beside it")
    return there


class Normalised(Tensors):
    """The tensors of a file with its spectral norms divided out (Miyato et al. 2018, arXiv 1802.05957):
    W / (uᵀ W v), the two vectors being those that training ended with."""

    def __init__(self, tensors: Tensors):
        self._tensors, self.files, self.metadata = tensors, tensors.files, tensors.metadata
        names = [name for name in tensors if not name.endswith((".weight_u", ".weight_v"))]
        self._names = {re.sub(rf"{ORIGINAL}$", "weight", name): name for name in names}
        stored = tensors.stored()
        self._where = {new: stored[name] for new, name in self._names.items()}

    def stored(self) -> dict[str, TensorFile]:
        return {name: file for name, file in self._tensors.stored().items() if not BESIDE.fullmatch(name)}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(self._names[name])

    def dtype(self, name: str) -> str:
        return self._tensors.dtype(self._names[name])

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU. Raise GencliError for a norm's vectors that do not fit it."""
        source = self._names[name]
        weight = self._tensors.get(source)
        if not source.endswith(ORIGINAL):
            return weight
        stem = source.removesuffix(ORIGINAL)
        matrix = weight.flatten(1)
        vectors = [self._vector(f"{stem}weight_{end}", size) for end, size in zip("uv", matrix.shape, strict=True)]
        return weight / (vectors[0] @ (matrix @ vectors[1]))

    def _vector(self, name: str, size: int) -> Tensor:
        if name not in self._tensors or self._tensors.shape(name) != (size,):
            raise GencliError(f"{self.files[0]}: {name} is missing, or is not a vector of {size}")
        return self._tensors.get(name)
