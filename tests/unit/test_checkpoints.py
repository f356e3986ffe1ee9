"""Opening checkpoints: every broken, hostile or wrong file ends in one clear line, and nothing is copied unasked."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.checkpoints.build import load
from gencli.checkpoints.tensors import elementwise
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.json_files import read_json
from gencli.models.gpt2 import GPT2, GPT2Config
from gencli.text import sampling
from gencli.text.request import SamplingParams
from tests.tiny.text import make_gpt2, write_json, write_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture
def plain(tmp_path) -> Path:
    return make_gpt2(tmp_path / "plain", tokenizer=None)


@pytest.fixture
def sharded(tmp_path) -> Path:
    return make_gpt2(tmp_path / "sharded", tokenizer=None, sharded=True)


def refusal(folder: Path, says: str, open: Callable[..., object] = load, **options) -> GencliError:
    """Opening fails with one line that has `says` and names the folder."""
    with pytest.raises(GencliError) as caught:
        open(folder, **options)
    message = caught.value.message
    assert says in message, message
    assert str(folder) in message and "\n" not in message and len(message) < 600
    return caught.value


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    change(index["weight_map"])
    write_json(folder / INDEX, index)


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def raw_safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


# --- one file --------------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        raw_safetensors(b"", size=2**60),
        raw_safetensors(b"{}", size=2**63),
        raw_safetensors(b"{}", size=100),
        raw_safetensors(b"{not json"),
        raw_safetensors(b"[1, 2]"),
        raw_safetensors(b"\xff\xfe\xfd"),
        raw_safetensors(b"[" * 100_000),
        raw_safetensors({"a": F32}, b"\0" * 7),  # cut off
        raw_safetensors({"a": F32}, b"\0" * 9),  # more than is told of
        raw_safetensors({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),  # overlapping
        raw_safetensors({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20),  # a hole
        raw_safetensors({"a": {**F32, "shape": [3]}}, b"\0" * 8),
        raw_safetensors({"a": {**F32, "shape": [2**40, 2**40]}}, b"\0" * 8),
        raw_safetensors({"a": {**F32, "shape": [-2]}}, b"\0" * 8),
        raw_safetensors({"a": {**F32, "data_offsets": [8, 0]}}, b"\0" * 8),
        raw_safetensors({"a": {**F32, "dtype": "F31"}}, b"\0" * 8),
        raw_safetensors({"a": {"dtype": "F32"}}, b"\0" * 8),
        b"PK\x03\x04" + b"\0" * 100,  # a pickle of torch under another name
    ],
    ids=range(20),
)
def test_a_broken_file(plain, content):
    (plain / "model.safetensors").write_bytes(content)
    refusal(plain, "is broken or no safetensors file")


def test_a_file_cut_anywhere(plain):
    content = (plain / "model.safetensors").read_bytes()
    for seed in range(40):
        (plain / "model.safetensors").write_bytes(content[: random.Random(seed).randrange(len(content))])
        refusal(plain, "is broken or no safetensors file")


def test_flipped_bits_in_the_header(plain):
    """A damaged header is refused, or says the same as before: never a crash, never a model with parts missing."""
    content = (plain / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    refused = 0
    for seed in range(100):
        draw = random.Random(seed)
        damaged = bytearray(content)
        damaged[draw.randrange(header)] ^= 1 << draw.randrange(8)
        (plain / "model.safetensors").write_bytes(damaged)
        try:
            load(plain)
        except GencliError as error:
            assert "\n" not in error.message and str(plain) in error.message
            refused += 1
    assert refused > 80


def test_one_file_by_its_name(plain):
    assert len(open_tensors(plain / "model.safetensors")) == 32
    with pytest.raises(GencliError, match=r"config\.json is not a \.safetensors file"):
        open_tensors(plain / "config.json")


# --- an index --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../out.safetensors", "a/b.safetensors", "a\\b.safetensors", "..", ".", "", "/etc/passwd", "C:x.safetensors",
     "model.bin", 5, None, ["model.safetensors"], {"a": 1}, "a\0.safetensors"],
)  # fmt: skip
def test_an_index_names_plain_files_beside_it(sharded, name):
    """The traversal of `../out.safetensors` works in a current transformers: the file is there, and well-formed."""
    save_file({"h.0.ln_1.bias": torch.zeros(32)}, sharded.parent / "out.safetensors")
    change_index(sharded, lambda names: names.update({"h.0.ln_1.bias": name}))
    refusal(sharded, "is not a plain name of a safetensors file")


def test_an_absolute_name_of_a_file_that_is_there(sharded):
    outside = sharded.parent / "out.safetensors"
    save_file({"h.0.ln_1.bias": torch.zeros(32)}, outside)
    change_index(sharded, lambda names: names.update({"h.0.ln_1.bias": str(outside)}))
    refusal(sharded, "is not a plain name of a safetensors file")


def test_links_are_followed(sharded):
    """The hub's cache is made of links to blobs elsewhere."""
    blobs = sharded.parent / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(sharded.glob("*.safetensors"))):
        file.rename(blobs / str(i))
        file.symlink_to(blobs / str(i))
    assert load(sharded).vocab_size == 384


def test_a_shard_that_is_missing(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    error = refusal(sharded, "names model-00002-of-00003.safetensors, which is not there")
    assert "incomplete" in error.hint


def test_a_link_that_leads_nowhere(sharded):
    file = sharded / "model-00002-of-00003.safetensors"
    file.unlink()
    file.symlink_to(sharded / "gone")
    refusal(sharded, "which is not there")


def test_a_tensor_in_two_shards(sharded):
    first = sharded / "model-00001-of-00003.safetensors"
    tensors = load_file(first)
    second = load_file(sharded / "model-00002-of-00003.safetensors")
    save_file(tensors | dict([second.popitem()]), first)
    with pytest.raises(GencliError, match=r"is not where the index says|is in another shard too"):
        load(sharded)


def test_a_tensor_that_the_index_does_not_name(sharded):
    change_index(sharded, lambda names: names.pop("h.0.ln_1.bias"))
    refusal(sharded, "'h.0.ln_1.bias' is not where the index says (None)")


def test_a_tensor_that_no_shard_holds(sharded):
    change_index(sharded, lambda names: names.update({"h.9.ln_1.bias": "model-00001-of-00003.safetensors"}))
    refusal(sharded, "names tensors that no shard holds: h.9.ln_1.bias")


def test_a_tensor_in_another_shard_than_told(sharded):
    change_index(sharded, lambda names: names.update({"wte.weight": names["wpe.weight"]}))
    refusal(sharded, "is not where the index says")


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": {}}', b'{"weight_map": []}', b'{"weight_map": "x"}'])
def test_an_index_of_nothing(sharded, content):
    (sharded / INDEX).write_bytes(content)
    refusal(sharded, "has no weight_map")


# --- variants and other kinds of file --------------------------------------------------------------------------------


def test_variants_are_chosen_and_not_mixed(plain):
    half = {name: tensor.half() for name, tensor in load_file(plain / "model.safetensors").items()}
    write_weights(plain, half, "model.fp16")
    assert load(plain).lm_head.weight.dtype == torch.float32  # the plain files, when there are any
    assert load(plain, tensors=open_tensors(plain, "fp16")).lm_head.weight.dtype == torch.float16
    refusal(plain, "has no bf16 weights", open_tensors, variant="bf16")
    (plain / "model.safetensors").unlink()
    assert load(plain).lm_head.weight.dtype == torch.float16


def test_an_index_of_two_variants(sharded):
    """Half of the tensors from fp16 files, half from full ones: never inside one module."""
    first = sharded / "model-00001-of-00003.safetensors"
    tensors = load_file(first)
    first.unlink()
    save_file({name: t.half() for name, t in tensors.items()}, sharded / "model.fp16-00001-of-00003.safetensors")
    change_index(sharded, lambda names: names.update(dict.fromkeys(tensors, "model.fp16-00001-of-00003.safetensors")))
    refusal(sharded, "mixes variants")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_folder_of_pickles_is_not_opened(plain, name):
    (plain / "model.safetensors").unlink()
    torch.save({"wte.weight": torch.zeros(2)}, plain / name)
    error = refusal(plain, f"has no weights in safetensors (only {name})")
    assert "pickles can run code" in error.hint


def test_a_pickle_is_never_run(plain, tmp_path):
    """Beside good weights it is not looked at, and as weights it is refused."""
    mark = tmp_path / "was here"

    class Bad:
        def __reduce__(self):
            return (Path.touch, (mark,))

    torch.save(Bad(), plain / "pytorch_model.bin")
    load(plain)
    (plain / "model.safetensors").write_bytes((plain / "pytorch_model.bin").read_bytes())
    refusal(plain, "is broken or no safetensors file")
    assert not mark.exists()


def test_code_in_the_folder_is_never_run(plain, tmp_path):
    mark = tmp_path / "was here"
    (plain / "modeling.py").write_text(f"open({str(mark)!r}, 'w')", encoding="utf-8")
    raw = read_json(plain / "config.json")
    for more in ({"auto_map": {"AutoModel": "modeling.Model"}}, {"model_type": "modeling"}, {"model_type": "../x"}):
        write_json(plain / "config.json", {**raw, **more})
        with pytest.raises(GencliError, match=r"auto_map|unknown architecture"):
            load(plain)
    assert not mark.exists()


def test_an_empty_folder(tmp_path):
    refusal(tmp_path, "has no config.json")


# --- config.json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a": 1}\xff', "is not valid JSON"),
        (b"\x80\x81", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds no JSON object"),
        (b'"gpt2"', "holds no JSON object"),
        (b"{}", "unknown architecture None"),
        (b'{"model_type": ["gpt2"]}', "unknown architecture ['gpt2']"),
        (b'{"model_type": {"a": 1}}', "unknown architecture {'a': 1}"),
        (b'{"model_type": "gpt9"}', "unknown architecture 'gpt9'"),
        (b'{"model_type": "os.system"}', "unknown architecture 'os.system'"),
        (b'{"model_type": "gpt2", "n_layer": ' + b"9" * 5000 + b"}", "config.json"),
    ],
)
def test_a_broken_config(plain, content, says):
    (plain / "config.json").write_bytes(content)
    refusal(plain, says)


def test_a_config_that_is_too_large(plain):
    with (plain / "config.json").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    refusal(plain, "1099511627776 bytes is too large")


def test_a_config_that_cannot_be_read(plain):
    (plain / "config.json").unlink()
    (plain / "config.json").mkdir()
    refusal(plain, "cannot read")


# --- weights against config ------------------------------------------------------------------------------------------


def test_sizes_are_compared_before_anything_is_allocated(plain):
    """A config of a terabyte beside a small file: told from headers, in no time and no memory."""
    raw = read_json(plain / "config.json")
    write_json(plain / "config.json", {**raw, "n_embd": 2**16, "n_head": 64, "vocab_size": 2**22, "n_inner": 2**20})
    refusal(plain, "does not fit its config: ")


def test_a_config_of_a_million_layers(plain):
    raw = read_json(plain / "config.json")
    write_json(plain / "config.json", {**raw, "n_layer": 1_000_000})
    refusal(plain, "n_layer = 1000000 is out of range (1 to 1024)")
    write_json(plain / "config.json", {"model_type": "llama", "num_hidden_layers": 1_000_000})
    refusal(plain, "num_hidden_layers = 1000000 is out of range (1 to 1024)")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("h.1.mlp.c_fc.bias"), "lacks tensors: transformer.h.1.mlp.c_fc.bias"),
        (lambda t: t.clear() or t.update(x=torch.zeros(1)), "and 26 more"),
        (lambda t: t.update({"h.2.ln_1.bias": torch.zeros(32)}), "does not explain: h.2.ln_1.bias"),
        (lambda t: t.update({"extra": torch.zeros(1)}), "does not explain: extra"),
        (lambda t: t.update({"h.0.attn.bias.x": torch.zeros(1)}), "does not explain: h.0.attn.bias.x"),
        (lambda t: t.update({"wpe.weight": torch.zeros(64, 32)}), "wpe.weight is [64, 32], not [128, 32]"),
        (lambda t: t.update({"ln_f.bias": torch.zeros(32, 1)}), "ln_f.bias is [32, 1], not [32]"),
        (lambda t: t.update({"ln_f.bias": torch.tensor(0.0)}), "ln_f.bias is [], not [32]"),
        (lambda t: t.update({"ln_f.bias": torch.zeros(32, dtype=torch.int64)}), "ln_f.bias is stored as I64"),
        (lambda t: t.update({"ln_f.bias": torch.zeros(32, dtype=torch.bool)}), "ln_f.bias is stored as BOOL"),
        (
            lambda t: t.update({"ln_f.bias": torch.zeros(32, dtype=torch.int8)}),
            "ln_f.bias is stored as I8, not as one of F32, F16, BF16, F64",
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.zeros(32)}),
            "two tensors want to be 'transformer.ln_f.bias'",
        ),
    ],
)
def test_weights_that_do_not_fit(plain, change, says):
    change_tensors(plain, change)
    refusal(plain, says)


def test_many_wrong_tensors_are_still_one_line(plain):
    raw = read_json(plain / "config.json")
    write_json(plain / "config.json", {**raw, "n_layer": 100})
    assert refusal(plain, "lacks tensors").message.endswith("more")


def test_weights_that_are_not_finite_are_found_by_the_pick(plain):
    change_tensors(plain, lambda t: t["ln_f.bias"].fill_(float("nan")))
    logits = load(plain)(torch.tensor([[1, 2]]))[:, -1]
    with pytest.raises(GencliError, match="logits are NaN"):
        sampling.sample(logits, [torch.Generator()], SamplingParams())


def test_what_is_opened_is_whole(plain):
    model = load(plain)
    assert not model.training
    assert all(not p.is_meta and not p.requires_grad for p in model.parameters())
    assert len(list(model.parameters())) == len(set(map(id, model.parameters()))) == 28
    assert load(plain, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


# --- memory ----------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from collections.abc import Callable
from pathlib import Path
import torch
from gencli.checkpoints.build import load

def resident(kind):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) / 1024

load(Path(sys.argv[1]))  # whatever is imported on the way is imported now
for folder in sys.argv[2:]:
    before = [resident(kind) for kind in ("RssAnon", "VmRSS")]
    model = load(Path(folder))
    after = [resident(kind) for kind in ("RssAnon", "VmRSS")]
    print(sum(p.nbytes for p in model.parameters()) / 2**20, *(b - a for a, b in zip(before, after)))
"""

if sys.platform == "linux":  # it reads /proc

    @pytest.mark.slow
    def test_opening_takes_no_memory(plain, tmp_path):
        """200 MB of fp32 weights are mapped, neither read nor copied, until the first forward pass."""
        sizes = {"vocab_size": 25_000, "n_positions": 64, "n_embd": 1024, "n_layer": 2, "n_head": 16}
        config = {"model_type": "gpt2", **sizes}
        with torch.device("meta"):
            model = GPT2(GPT2Config.from_dict(config))
        tensors = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
        folders = [plain]
        for shards in (1, 3):
            folders.append(tmp_path / str(shards))
            folders[-1].mkdir()
            write_json(folders[-1] / "config.json", config)
            write_weights(folders[-1], tensors, "model", shards)
        command = [sys.executable, "-c", MEASURE, *map(str, folders)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert len(output.splitlines()) == 2
        for line in output.splitlines():
            size, anonymous, resident = map(float, line.split())
            assert size > 190
            assert anonymous < 50 and resident < 50, output


def test_what_keeps_shapes_computes_nothing_for_them():
    """Torch imports for seconds before it takes 1 from a tensor without numbers."""
    asked = []
    less_one = elementwise(lambda tensor: asked.append(tensor) or tensor - 1)
    assert less_one(shape := torch.empty(3, device="meta")) is shape and not asked
    assert less_one(torch.tensor([2.0])).tolist() == [1.0]
