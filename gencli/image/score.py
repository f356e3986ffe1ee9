"""How well pictures fit texts: a CLIP checkpoint with its tokenizer and its preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gencli.checkpoints import build
from gencli.checkpoints.find import Source
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.uses import wrong_kind
from gencli.devices import pick_device, pick_dtype
from gencli.errors import GencliError
from gencli.image.files.preprocess import CLIP, FILE, Preprocessing, from_settings, read_settings
from gencli.models.clip import CLIPModel
from gencli.models.module import describe
from gencli.tokens import Tokenizer


@dataclass(frozen=True)
class Scorer:
    """A CLIP, ready to compare. Vectors are (N, E) of length 1: the dot product of two is the cosine between them."""

    name: str
    module: CLIPModel
    tokenizer: Tokenizer
    preprocessing: Preprocessing

    @property
    def device(self) -> torch.device:
        return self.module.device

    def describe(self) -> str:
        """The model in one line: its size, precision, device and threads."""
        return describe(self.name, [self.module])

    def tokenize(self, text: str, truncate: str | None = None) -> list[int]:
        """Token ids of a text between begin and end. truncate: the side that may be cut away.

        Raises GencliError with both lengths for a text that is too long when nothing may be cut.
        """
        begin, end = self.tokenizer.bos_id, next(iter(self.tokenizer.eos_ids), None)
        if begin is None or end is None:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer names no begin and end token")
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        room = self.module.text_model.max_length - 2
        if len(ids) > room and truncate is None:
            raise GencliError(
                f"the text has {len(ids)} tokens, and {self.name} reads at most {room}: {text[:40]!r}…",
                "--truncate right leaves out its end, --truncate left its beginning",
            )
        ids = [begin, *(ids[-room:] if truncate == "left" else ids[:room]), end]
        if max(ids) >= self.module.config.text_config.vocab_size:
            raise GencliError(f"{self.tokenizer.folder}: the tokenizer knows more tokens than {self.name}")
        return ids

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], truncate: str | None = None) -> Tensor:
        """Vectors of texts, (N, E) float32. Raises GencliError as `tokenize`, and for NaN from the model."""
        rows = [self.tokenize(text, truncate) for text in texts]
        length = max(map(len, rows))
        # A text sees nothing behind its first end token, so that more of them may fill up the row.
        ids = torch.tensor([row + [row[-1]] * (length - len(row)) for row in rows], device=self.device)
        return _checked(self.module.encode_texts(ids))

    def prepare(self, picture: Image.Image) -> Tensor:
        """What the model looks at, (1, 3, H, W). Raises GencliError for a picture that is too narrow."""
        return torch.from_numpy(self.preprocessing(picture))[None]

    @torch.inference_mode()
    def pictures(self, prepared: Sequence[Tensor]) -> Tensor:
        """Vectors of pictures that went through `prepare`, (N, E) float32. Raises GencliError for NaN."""
        pixels = torch.cat(list(prepared)).to(self.device, self.module.compute_dtype)
        return _checked(self.module.encode_images(pixels))

    def probabilities(self, cosines: Tensor) -> Tensor:
        """(N, T) cosines with T texts → how likely each text is the picture's, if one of them is."""
        return (cosines * self.module.logit_scale.float().exp().cpu()).softmax(-1)


def _checked(vectors: Tensor) -> Tensor:
    vectors = vectors.float().cpu()
    if not torch.isfinite(vectors).all():
        raise GencliError(
            "the model's vectors are NaN", "the weights may be broken, or half precision overflowed (--dtype)"
        )
    return vectors


def open_scorer(source: Source, *, device: str = "auto", dtype: str = "auto", allow_pickle: bool = False) -> Scorer:
    """Open a CLIP in transformers' layout; device and dtype are names as `gencli.devices` knows them.

    Raises GencliError for what is no CLIP, is broken or not supported.
    """
    checkpoint = open_checkpoint(source, allow_pickle=allow_pickle)
    folder = checkpoint.contents.folder
    if not checkpoint.contents.is_file and checkpoint.contents.has("model_index.json"):
        raise GencliError(f"{source.name} draws images, and compares none with texts", "-m names a CLIP")
    if checkpoint.kind == "text":
        raise wrong_kind(checkpoint, "CLIP")
    part = checkpoint.only_part("a CLIP")
    raw = part.config
    kind = raw.get("model_type") or raw.get("_class_name")
    if kind != "clip":
        raise GencliError(
            f"{source.name} is a {kind!s:.40}, not a CLIP that compares texts with images",
            "openai/clip-vit-base-patch32 is one",
        )
    place = pick_device(device)
    preprocessing = from_settings(read_settings(folder), CLIP, str(folder / FILE))
    tensors = part.tensors()
    # Buffers of whole numbers are no reason for a precision.
    precision = pick_dtype(dtype, place, {tensors.dtype(name) for name in tensors})
    module = build.load(folder, device=place, dtype=precision, config=raw, tensors=tensors)
    assert isinstance(module, CLIPModel)
    size = module.config.vision_config.image_size
    given = preprocessing.crop or preprocessing.size
    if given != (size, size):
        said = f"{given[1]}x{given[0]}" if given else "any size"
        raise GencliError(f"{folder}: its {FILE} makes images of {said}, and its config.json expects {size}x{size}")
    return Scorer(source.name, module, checkpoint.tokenizer(), preprocessing)
