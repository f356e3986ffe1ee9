"""torch's pickles, opened only when the user says so: tensors and nothing else, by `torch.load(weights_only=True)`.

That unpickler runs no code: it knows a short list of functions that build tensors, and refuses every other name.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from gencli.errors import GencliError
from gencli.json_files import POINTER, check_no_pointer

ZIP = b"PK\x03\x04"  # what torch writes since 1.6, and what can be mapped into memory
WRAPPERS = ("state_dict", "model_state_dict")  # keys under which training scripts put the weights
DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
Named = tuple[Callable[..., object], str]  # a stand-in, and the name by which the unpickler knows it
FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")  # in the unpickler's message: what it was asked for
# What training scripts keep beside the weights: callbacks, settings and counters of Lightning and numpy.
BESIDE = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\.[\w.]+|argparse\.Namespace|pathlib\.\w*Path"
    r"|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|numpy\.dtypes\.\w+|typing\.Any"
    r"|collections\.defaultdict|datetime\.\w+|list|dict|set|int|float"
)
# Modules of torch, and of OpenAI's DALL·E, which saves them whole
MODULES = re.compile(r"torch\.nn\.modules\.\w+\.\w+|dall_e\.(encoder|decoder|utils)\.\w+")
STAND_INS = 64  # names of one file
REASON = re.compile(r"WeightsUnpickler error: (.{1,120}?)(?: Check the|$)")


class PickledFile:
    """The tensors of a `.bin`, `.pt` or `.ckpt` file, by name, memory-mapped where the file allows it."""

    def __init__(self, path: Path):
        """Raise GencliError for a file that asks for anything but tensors, and for a broken one."""
        self.path = path
        self.metadata: dict[str, str] = {}
        state = _last_table(unpickle(path))
        for key in WRAPPERS:
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        if not isinstance(state, dict):
            raise GencliError(f"{path} holds no table of tensors")
        for name, value in state.items():
            plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
            if not isinstance(name, str) or not plain or value.is_quantized:
                raise GencliError(f"{path}: {str(name)[:60]!r} is not a plain tensor")
        self._tensors = {name: value.detach() for name, value in state.items()}
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self.dtypes = {name: DTYPES.get(value.dtype, str(value.dtype)) for name, value in state.items()}

    def forget(self) -> None:
        """Nothing is held that could be let go."""

    def get(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU."""
        return self._tensors[name].contiguous()

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a small tensor's numbers."""
        return tuple(self.get(name).double().tolist())


def _last_table(state: object) -> object:
    """Return the last table of tensors in a list: ermongroup/ddim saves [model, optimizer, epoch, step, EMA]."""
    tables = [one for one in state if _is_table(one)] if isinstance(state, list) else []
    return tables[-1] if tables else state


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())


class ParameterTable(dict[str, object]):
    """A stand-in for torch.nn.ParameterDict: its parameters, and none of its code."""

    def __setstate__(self, state: object) -> None:
        self.update(state.get("_parameters") or {} if isinstance(state, dict) else {})


class Module(dict[str, object]):
    """A stand-in for a module that was saved whole: its parameters by name, and none of its code."""

    def __setstate__(self, state: object) -> None:
        own, inner = (state.get(name) or {} if isinstance(state, dict) else {} for name in ("_parameters", "_modules"))
        self.update({name: one for name, one in own.items() if one is not None})
        for prefix, module in inner.items():
            self.update({f"{prefix}.{name}": one for name, one in module.items()} if isinstance(module, Module) else {})


class Inert:
    """A stand-in for classes and functions beside the weights: it takes anything, and does and holds nothing."""

    def __init__(self, *args: object, **keywords: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def empty_table(*args: object) -> dict[object, object]:
    """Return a table in the place of a defaultdict, whatever its factory is."""
    return {}


def _stand_in(name: str) -> Named:
    """Return what stands for a class, and the name by which the unpickler knows it."""
    if name == "collections.defaultdict":
        return empty_table, name
    if MODULES.fullmatch(name):
        return Module, name
    return Inert, name if "." in name else f"builtins.{name}"


def unpickle(file: Path, *, tables: bool = False) -> object:
    """Return what a pickle holds. tables: allow a torch.nn.ParameterDict, returned as a `ParameterTable`.

    What BESIDE names is `Inert`, what MODULES names a `Module`. Raise GencliError for one that asks for anything else
    but tensors, and for a broken one.
    """
    names: list[Named] = [(ParameterTable, "torch.nn.modules.container.ParameterDict")] if tables else []
    while True:
        try:
            return _load(file, names)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise GencliError(f"cannot read {file}: {error.strerror}") from None
        except GencliError:
            raise
        except Exception as error:  # whatever the bytes of a pickle can provoke
            message = " ".join(str(error).split())
            if not isinstance(error, pickle.UnpicklingError):
                raise GencliError(f"{file} is broken or no file of tensors: {message[:160]}") from None
            name, reason = FORBIDDEN.search(message), REASON.search(message)
            known = name and (BESIDE.fullmatch(name[1]) or MODULES.fullmatch(name[1]))
            if name and known and len(names) < STAND_INS and _stand_in(name[1]) not in names:
                names.append(_stand_in(name[1]))
                continue
            wants = f"it asks for {name[1]}" if name else reason[1] if reason else "it is not a plain pickle"
            raise GencliError(
                f"{file} is refused: {wants}; only tensors are read from a pickle",
                "such a file may run code when it is opened, or be none of weights; nothing of it was run",
            ) from None


def _load(file: Path, names: list[Named]) -> object:
    with file.open("rb") as stream, warnings.catch_warnings(), torch.serialization.safe_globals([*names]):
        warnings.simplefilter("ignore")  # of protocols
        head = stream.read(len(POINTER))
        check_no_pointer(head, file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=head.startswith(ZIP))
