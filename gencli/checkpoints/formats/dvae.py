"""The discrete autoencoder of DALL·E as OpenAI publishes it: encoder.pkl and decoder.pkl in a folder, pickles of whole
modules, of which the parameters alone are read. No torch before a tensor is read.
"""

from __future__ import annotations

from functools import cached_property

from gencli.checkpoints.checkpoint import Checkpoint, Contents, Hints, Part
from gencli.checkpoints.formats.renaming import open_prefixed, sizes
from gencli.checkpoints.formats.vq import VQ_PART
from gencli.checkpoints.tensors import Tensors

FILES = {"encoder.": "encoder.pkl", "decoder.": "decoder.pkl"}
FAMILY, TITLE = "dall_e", "discrete autoencoder of DALL·E"


def is_dvae(contents: Contents) -> bool:
    """Return whether a folder has both files."""
    return not contents.is_file and all(map(contents.has, FILES.values()))


def read_dvae(contents: Contents, hints: Hints) -> Checkpoint:
    """Read both files when they are used."""
    found = _Files(contents)
    part = Part(VQ_PART, "model", contents.path, lambda: found.config, lambda: found.tensors)
    return Checkpoint(contents, "part", FAMILY, {VQ_PART: part}, title=TITLE)


class _Files:
    def __init__(self, contents: Contents):
        self.contents = contents

    @cached_property
    def tensors(self) -> Tensors:
        return open_prefixed(self.contents, FILES)

    @cached_property
    def config(self) -> dict[str, object]:
        """Return the sizes. Raise GencliError for tensors that are missing or misshapen."""
        shapes = {name: self.tensors.shape(name) for name in self.tensors}
        width, channels, _, _ = sizes(shapes, "encoder.blocks.input.w", 4)
        first, entries, _, _ = sizes(shapes, "decoder.blocks.input.w", 4)
        group = "encoder.blocks.group_1."
        return {
            "model_type": FAMILY,
            "num_vq_embeddings": entries,
            "width": width,
            "first": first,
            "blocks": len({name[len(group) :].partition(".")[0] for name in shapes if name.startswith(group)}),
            "in_channels": channels,
        }
