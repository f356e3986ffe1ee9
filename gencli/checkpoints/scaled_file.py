"""Files of 8-bit floats with a scale for each matrix, as ComfyUI writes them: the scales are part of their matrices.

`X.weight` (8 bits) · `X.scale_weight` or `X.weight_scale` (one number) · `X.comfy_quant`, JSON in bytes; and, for
products in 8 bits, `X.scale_input` or `X.input_scale`, and a tensor `scaled_fp8`. No torch before a tensor is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gencli.checkpoints.tensors import TensorFile
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

EIGHTHS = ("F8_E4M3", "F8_E5M2")  # floats of 8 bits, which are stored so and never computed with
SCALES = (".scale_weight", ".weight_scale")
FOR_PRODUCTS = (".scale_input", ".input_scale")
MARK, TOLD = "scaled_fp8", ".comfy_quant"
FORMATS = ("float8_e4m3fn", "float8_e5m2")


class ScaledFile:
    """A file whose matrices of 8 bits come with their scales, and whose other tensors are what they are."""

    def __init__(self, file: TensorFile):
        """Raise GencliError for a matrix that is packed in another way."""
        self.path, self.metadata, self._file = file.path, file.metadata, file
        self._scales: dict[str, str] = {}  # matrix → its scale
        hidden = {name for name in file.shapes if name.rpartition(".")[2] == MARK}
        for name in file.shapes:
            stem, dot, last = name.rpartition(".")
            matrix = f"{stem}.weight"
            if file.dtypes.get(matrix) not in EIGHTHS:
                continue
            if dot + last == TOLD:
                self._check_told(name)
            elif dot + last in SCALES and math.prod(file.shapes[name]) == 1:
                self._scales[matrix] = name
            elif dot + last not in FOR_PRODUCTS:
                continue
            hidden.add(name)
        self.shapes = {name: shape for name, shape in file.shapes.items() if name not in hidden}
        self.dtypes = {name: dtype for name, dtype in file.dtypes.items() if name not in hidden}

    def _check_told(self, name: str) -> None:
        try:
            told = json.loads(bytes(self._file.get(name).flatten().tolist()))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise GencliError(f"{self.path}: {name} does not say how a matrix is packed: {error}") from None
        if told not in FORMATS:
            raise GencliError(f"{self.path}: {name} is packed as {told!r:.60}, which is not supported")

    def numbers(self, name: str) -> Sequence[float] | None:
        """Return the numbers of a small tensor."""
        return self._file.numbers(name)

    def forget(self) -> None:
        """Let go of the memory that was read."""
        self._file.forget()

    def get(self, name: str) -> Tensor:
        """Return a tensor on the CPU, in the file's own memory."""
        tensor = self._file.get(name)
        if name not in self._scales:
            return tensor
        from gencli.kernels.scaled import Scaled

        return Scaled(tensor, self._file.get(self._scales[name]).float().item())


def with_scales(file: TensorFile) -> TensorFile:
    """Return a file as it is, or as a `ScaledFile` if it has scales. Raise GencliError as that."""
    has = any(name.endswith((*SCALES, TOLD)) for name in file.shapes)
    return ScaledFile(file) if has and any(dtype in EIGHTHS for dtype in file.dtypes.values()) else file
