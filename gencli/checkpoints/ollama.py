"""Models that ollama keeps on this machine, by `ollama:NAME[:TAG]`. No network, no torch.

manifests/HOST/NAMESPACE/NAME/TAG   JSON, whose layers are named by their content (newer: manifests-v2/…)
blobs/sha256-HASH                   the layers; that of the model is a GGUF file
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from gencli.errors import GencliError, nearest
from gencli.json_files import read_json

PREFIX = "ollama:"
SERVICE = Path("/usr/share/ollama/.ollama/models")  # of the service that its installer for Linux sets up
TREES = ("manifests-v2", "manifests")
HOSTS = ("ollama.com", "registry.ollama.ai")  # that a name leaves out, as it does LIBRARY and the tag LATEST
LIBRARY, LATEST = "library", "latest"
KIND = "application/vnd.ollama.image."
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def roots() -> list[Path]:
    """Return the folders of its models: OLLAMA_MODELS, or the user's and the service's."""
    if named := os.environ.get("OLLAMA_MODELS"):
        return [Path(os.path.expanduser(named))]
    return [Path(os.path.expanduser("~/.ollama/models")), SERVICE]


def models() -> dict[str, Path]:
    """Return `NAME:TAG`, with a namespace or host where ollama's own names have one → its manifest."""
    found: dict[str, Path] = {}
    for tree in (root / tree for root in roots() for tree in TREES):
        for path in sorted(tree.glob("*/*/*/*")):
            host, space, model, tag = path.relative_to(tree).parts
            parts = [
                *([] if host in HOSTS else [host]),
                *([] if host in HOSTS and space == LIBRARY else [space]),
                model,
            ]
            found.setdefault(f"{'/'.join(parts)}:{tag}", path)
    return found


def names() -> Iterator[str]:
    """Yield the names, as `-m` takes them."""
    yield from (PREFIX + name.removesuffix(f":{LATEST}") for name in models())


def has(name: str) -> bool:
    """Return whether ollama has a model of this name, which is without `ollama:`."""
    return _whole(name) in models()


def meant(name: str) -> str | None:
    """Return a hint for a name that is one of ollama's, without `ollama:` or with a slash in the place of the colon."""
    found = next((one for one in (name, name.removeprefix("ollama/")) if has(one)), None)
    return f"did you mean {PREFIX}{found}?" if found else None


def find(name: str) -> Path:
    """Return the GGUF file of a model, named without `ollama:`. Raise GencliError if there is none."""
    if not name:
        raise GencliError(f"{PREFIX} names no model", f"it has {', '.join(names()) or 'none'} here")
    known = models()
    if (manifest := known.get(_whole(name))) is None:
        where = " or ".join(map(str, roots()))
        near = nearest(name, [one.removeprefix(PREFIX) for one in names()])
        pull = f"`ollama pull {name}` fetches one; OLLAMA_MODELS says where its models are, if they are elsewhere"
        hint = f"did you mean {PREFIX}{near}?" if near else pull
        raise GencliError(f"ollama has no model {name!r} in {where}", hint)
    layers = read_json(manifest).get("layers")
    kinds: dict[str, str] = {}
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict):
            kinds.setdefault(str(layer.get("mediaType")).removeprefix(KIND), str(layer.get("digest")))
    if "adapter" in kinds:
        raise GencliError(
            f"ollama:{name} is a model with an adapter", "name the model alone, and the adapter by --lora"
        )
    digest = DIGEST.fullmatch(kinds.get("model", ""))
    if digest is None:
        raise GencliError(f"ollama:{name} holds no GGUF file", f"it has {', '.join(kinds) or 'no layers'} ({manifest})")
    root = next(parent for parent in manifest.parents if parent.name in TREES).parent
    path = root / "blobs" / f"sha256-{digest[1]}"
    if not path.is_file():
        raise GencliError(f"ollama:{name}: its file {path} is not there", f"`ollama pull {name}` fetches it")
    return path


def _whole(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:{LATEST}"
