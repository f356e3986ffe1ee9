"""A checkpoint as every command takes it: parts that are opened when they are used, and at most once. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from gencli.checkpoints import hub_cache
from gencli.checkpoints.experts_file import with_each_expert
from gencli.checkpoints.find import Source
from gencli.checkpoints.layout import SAFETENSORS, PartKind, find_pickles
from gencli.checkpoints.tensors import TensorFile, Tensors
from gencli.checkpoints.weights import is_gguf_file, open_file, open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json

if TYPE_CHECKING:
    from gencli.tokens import Tokenizer

PICKLE_HINT = (
    "--allow-pickle reads its tensors and nothing else; a safetensors file with the same names is read without it"
)
CONFIGS = {"model": "config.json", "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
NO_CONFIG: Mapping[str, object] = MappingProxyType({})  # of weights without a config.json

Kind = Literal["text", "image", "score", "part", "other"]
Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name


class Contents:
    """The files at a checkpoint's path. Each is opened and parsed at most once, and only when it is asked for."""

    def __init__(self, source: Source, *, allow_pickle: bool = False):
        self.source, self.path, self.allow_pickle = source, source.path, allow_pickle
        self.is_file = source.path.is_file()
        self.folder = source.path.parent if self.is_file else source.path
        self._json = dict(source.json)
        self._files: dict[Path, TensorFile | GencliError] = {}

    @cached_property
    def files(self) -> Mapping[str, int]:
        """Return the files by name, with their sizes in bytes: of the folder and the folders in it, or the one file."""
        return {self.path.name: self.path.stat().st_size} if self.is_file else hub_cache.files(self.path)

    def has(self, name: str) -> bool:
        """Return whether a file of this name lies in the folder, or beside the one file."""
        return (self.folder / name).is_file()

    def read_json(self, file: str | Path) -> dict[str, object]:
        """Return the JSON object in a file, at a path or of a name in the folder. Raise GencliError as
        `json_files.read_json`."""
        path = file if isinstance(file, Path) else self.folder / file
        if path not in self._json:
            self._json[path] = read_json(path)
        return dict(self._json[path])

    def open_file(self, path: Path) -> TensorFile:
        """Return an open file of tensors. Raise GencliError for a broken one."""
        if path not in self._files:
            try:
                self._files[path] = open_file(path)
            except GencliError as error:
                self._files[path] = error
        found = self._files[path]
        if isinstance(found, GencliError):
            raise found
        return found

    def open_tensors(self, path: Path) -> Tensors:
        """Return the weights in a folder or file. Raise GencliError when there is nothing safe to open."""
        allow = self.allow_pickle
        return open_tensors(path, allow_pickle=allow, open_file=self.open_file, read_json=self.read_json)

    @property
    def tensor_file(self) -> TensorFile:
        """Return the one file, open. Raise GencliError if it is broken, or a pickle that may not be opened."""
        if find_pickles([self.path.name]) and not self.allow_pickle and not is_gguf_file(self.path):
            raise GencliError(f"{self.path} is a pickle, which may run code when it is opened", PICKLE_HINT)
        return self.open_file(self.path)

    @cached_property
    def shapes(self) -> Shapes:
        """Return the shapes of the tensors in the one file; none for a folder, or a file that cannot be opened."""
        try:
            return self.tensor_file.shapes if self.is_file else {}
        except GencliError:
            return {}


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint: a model, a tokenizer or a scheduler.

    name: "" for what is all there is. path: where it lies, for messages. read_config, open_tensors: called once.
    open_files: see `stored`, where that takes less than opening the tensors.
    """

    name: str
    kind: PartKind
    path: Path
    read_config: Callable[[], Mapping[str, object]] = field(repr=False, default=lambda: NO_CONFIG)
    open_tensors: Callable[[], Tensors] = field(repr=False, default=lambda: Tensors([]))
    open_files: Callable[[], Mapping[str, TensorFile]] | None = field(repr=False, default=None)

    @cached_property
    def config(self) -> Mapping[str, object]:
        """Return its JSON, or NO_CONFIG for weights without one. Raise GencliError if the file is missing or broken."""
        found = self.read_config()
        for key in ("_class_name", "model_type"):
            if not isinstance(value := found.get(key), str | None):
                raise GencliError(f"{self.path}: {key} = {value!r:.60} in its config is not a name")
        if found.get("_class_name") == "Transformer2DModel" and found.get("norm_type") == "ada_norm_single":
            return {**found, "_class_name": "PixArtTransformer2DModel"}  # in files from before diffusers 0.28
        return found

    @cached_property
    def _tensors(self) -> Tensors:
        return with_each_expert(self.open_tensors())

    def tensors(self) -> Tensors:
        """Return a model's tensors, of which none has been read. Raise GencliError for weights that are broken."""
        return self._tensors

    def stored(self) -> Mapping[str, TensorFile]:
        """Return the tensors that lie in files: their names there, and the file. Raise GencliError as `tensors`."""
        return self._tensors.stored() if self.open_files is None else self.open_files()


def folder_part(contents: Contents, name: str, folder: Path, kind: PartKind = "model") -> Part:
    """Return a part that lies in a folder of its own, as transformers and diffusers lay it out."""
    config = partial(contents.read_json, folder / CONFIGS[kind])
    return Part(name, kind, folder, config, partial(contents.open_tensors, folder))


@dataclass(frozen=True)
class Hints:
    """What a user says of a checkpoint that its files need not say.

    prediction, betas, zero_snr: `prediction_type`, `beta_schedule` and `rescale_betas_zero_snr` of its scheduler.
    other_vae: another autoencoder takes the place of its own, which need not be there.
    """

    prediction: str | None = None
    betas: str | None = None
    zero_snr: bool | None = None
    other_vae: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What lies at a path, before any weight is read.

    format: the row of `formats.FORMATS` that read it. kind: what it is for; part (of others), other (nothing that
    gencli opens). family: its architecture, or its pipeline. title: what a file is, in words. tokenizers: what loads
    each. own_folder: whether the small files in `contents.folder` are this checkpoint's. index: model_index.json.
    labels: `id2label` as `labels_file` has it. rest: the repositories that have the other parts of a network alone: its
    own, and others whose scheduler may differ, for which `parts` has its own.
    notes: what goes unused. problem: what keeps it from being used.
    """

    contents: Contents
    kind: Kind
    family: str = ""
    parts: Mapping[str, Part] = field(default_factory=dict)
    tokenizers: Mapping[str, Callable[[], Tokenizer]] = field(default_factory=dict)
    format: str = ""
    title: str = ""
    own_folder: bool = False
    index: Mapping[str, object] = field(default_factory=dict)
    labels: object = None
    labels_file: Path = Path()
    notes: tuple[str, ...] = ()
    licence: str | None = None
    rest: tuple[str, ...] = ()
    problem: GencliError | None = None

    @property
    def name(self) -> str:
        """Return what the user called it."""
        return self.contents.source.name

    @property
    def path(self) -> Path:
        """Return the path of the folder or file."""
        return self.contents.path

    @property
    def models(self) -> dict[str, Part]:
        """Return the parts that have weights."""
        return {name: part for name, part in self.parts.items() if part.kind == "model"}

    @cached_property
    def defaults(self) -> Mapping[str, object]:
        """Return generation_config.json, empty if there is none. Raise GencliError if it is broken."""
        there = self.own_folder and self.contents.has("generation_config.json")
        return self.contents.read_json("generation_config.json") if there else {}

    def tokenizer(self, name: str = "tokenizer") -> Tokenizer:
        """Return a tokenizer. Raise GencliError for one that is broken."""
        if name in self.tokenizers:
            return self.tokenizers[name]()
        from gencli.tokens import load_tokenizer

        return load_tokenizer(self.contents.folder)

    def find_part(self, *names: str) -> Part | None:
        """Return the first part of these names that is there, named in the index or not: its folder has a config."""
        for name in names:
            folder = self.path / name
            if (folder / CONFIGS["model"]).is_file():
                return folder_part(self.contents, name, folder)
        return None

    def only_part(self, what: str, or_else: str = "") -> Part:
        """Return the model that is all there is. what, or_else: what is wanted, for the message.

        Raise GencliError for a folder in no known layout, and a file without the config.json of a folder beside it.
        """
        if self.format == "folder" and self.problem is not None:
            raise GencliError(f"{self.path}: {self.problem.message}", self.problem.hint)
        if self.contents.is_file and not self.contents.has("config.json"):
            if self.path.suffix == SAFETENSORS:
                self.contents.open_file(self.path)  # which may be no such file at all
            raise GencliError(
                f"{self.path}: {what} is {or_else}a folder with config.json, and there is none beside this file",
                "put the model's config.json and tokenizer there, or name its Hugging Face id",
            )
        if (part := self.parts.get("")) is not None:
            return part
        config = partial(self.contents.read_json, CONFIGS["model"])
        return Part("", "model", self.path, config, partial(self.contents.open_tensors, self.path))
