"""Names → files: the hub's cache read without its library, the choice of files, what headers and cards say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gencli.checkpoints import hub_cache, layout
from gencli.checkpoints.find import Source, embedded_names, find
from gencli.checkpoints.hub_cache import HubId
from gencli.checkpoints.open import open_checkpoint
from gencli.checkpoints.report import describe
from gencli.checkpoints.weights import open_tensors
from gencli.errors import GencliError
from gencli.text.load import open_model
from tests.oracles.hub_server import safetensors
from tests.tiny.hub_cache import COMMIT, OTHER, SD15, SD15_INDEX, put, tiny, words


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


# --- ids


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("openai-community/gpt2", "openai-community/gpt2", None),
        ("gpt2", "gpt2", None),
        ("a/b@main", "a/b", "main"),
        ("a/b.c-d_e@v1.0", "a/b.c-d_e", "v1.0"),
        ("a/b@refs/pr/12", "a/b", "refs/pr/12"),
        (f"a/b@{COMMIT}", "a/b", COMMIT),
    ],
)
def test_an_id_is_a_repository_and_a_revision(name: str, repo: str, revision: str | None) -> None:
    assert HubId.parse(name) == HubId(repo, revision)


@pytest.mark.parametrize(
    "name",
    ["", "a/b/c", "/a/b", "./a", "../a/b", "a/..", "a/b@", "a/b@../x", "a/b@/x", "a/b@x/../../y", "a b/c", "a--b/c",
     "-a/b", "a/b@-x", "a\\b", "a/b\n", "a/b@x\0", "a/" + "b" * 96, "https://huggingface.co/a/b/c", "https://example.org/a/b"],
)  # fmt: skip
def test_what_is_no_id(name: str) -> None:
    assert HubId.parse(name) is None


# --- the cache


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"HF_HOME": "/somewhere/hf"},
        {"HF_HOME": "~/hf"},
        {"HF_HUB_CACHE": "$HOME/a"},
        {"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"},
        {"XDG_CACHE_HOME": "/d"},
        {"HF_HUB_CACHE": "/e", "HF_HOME": "/f", "HUGGINGFACE_HUB_CACHE": "/g", "XDG_CACHE_HOME": "/h"},
    ],
)
def test_the_cache_is_where_the_library_has_it(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    script = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(hub_cache.root()) == theirs.stdout.strip()


def test_revisions_are_branches_tags_pull_requests_and_commits(cache_root: Path) -> None:
    old = put(cache_root, "org/m", OTHER, tiny(), "v1", "refs/pr/1")
    new = put(cache_root, "org/m", COMMIT, tiny(), "main")
    expected = {
        "org/m": new,
        "org/m@main": new,
        "org/m@v1": old,
        "org/m@refs/pr/1": old,
        f"org/m@{OTHER}": old,
        f"org/m@{COMMIT[:8]}": new,
    }
    for name, folder in expected.items():
        assert find(name, offline=True) == Source(name, folder, "hub")
    ambiguous, unknown = f"org/m@{COMMIT[:7]}", "org/m@v2"
    assert COMMIT[:7] == OTHER[:7]
    for name in (ambiguous, unknown):
        with pytest.raises(GencliError, match="not in the Hugging Face cache"):
            find(name, offline=True)


def test_every_snapshot_is_listed_under_a_name_that_finds_it(cache_root: Path) -> None:
    put(cache_root, "org/m", COMMIT, tiny(), "main", "v1")
    put(cache_root, "org/m", OTHER, tiny())
    put(cache_root, "gpt2", COMMIT, tiny(), "main")
    (cache_root / "datasets--org--d" / "snapshots" / COMMIT).mkdir(parents=True)
    (cache_root / "models--org--x" / "snapshots" / "no commit").mkdir(parents=True)
    (cache_root / "version.txt").write_text("1")
    found = {one.name: one.folder for one in hub_cache.snapshots()}
    assert set(found) == {"gpt2", "org/m", "org/m@v1", f"org/m@{OTHER[:12]}"}
    assert {name: find(name, offline=True).path for name in found} == found


def test_a_ref_that_is_no_commit_leads_nowhere(cache_root: Path) -> None:
    put(cache_root, "org/m", COMMIT, tiny(), "main")
    (cache_root / "models--org--m" / "refs" / "main").write_text("../../../..")
    with pytest.raises(GencliError, match="not in the Hugging Face cache"):
        find("org/m", offline=True)


def test_offline_says_why_and_what_would_help(monkeypatch: pytest.MonkeyPatch, cache_root: Path) -> None:
    with pytest.raises(GencliError) as flag:
        find("org/m", offline=True)
    assert str(cache_root) in flag.value.message
    assert flag.value.hint == (
        "with --offline, gencli looks only on this machine; `gencli models pull org/m` downloads it"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GencliError) as environment:
        find("org/m")
    assert (environment.value.hint or "").startswith("with HF_HUB_OFFLINE=1, gencli looks only")


def test_a_bare_word_is_never_looked_for_on_the_hub(cache_root: Path) -> None:
    with pytest.raises(GencliError, match="no model 'storeis'"):
        find("storeis")
    folder = put(cache_root, "gpt2", COMMIT, tiny(), "main")
    assert find("gpt2") == Source("gpt2", folder, "hub")


def test_paths_and_embedded_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "m").mkdir(parents=True)
    (tmp_path / "x.safetensors").touch()
    assert find("org/m") == Source("org/m", Path("org/m"), "folder")
    assert find("./x.safetensors").kind == "file"
    for name in embedded_names():
        (tmp_path / name).mkdir()
        assert find(name).kind == "embedded"
        assert find(f"./{name}").kind == "folder"


def test_one_of_a_folders_gguf_files_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a repository's; a file or folder that is called so itself comes first, and no type is an error that says
    which there are."""
    monkeypatch.chdir(tmp_path)
    for name in ("m/a-q4_k_m.gguf", "m/a-q8_0.gguf", "m/mmproj-f16.gguf", "m/F16/a-f16.gguf", "odd:q8_0/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, file in {"m:Q4_K_M": "a-q4_k_m", "./m:q8_0": "a-q8_0", f"{tmp_path}/m:F16": "F16/a-f16"}.items():
        found = find(name)
        assert (found.name, found.kind, found.path.resolve()) == (name, "file", tmp_path / f"m/{file}.gguf")
    assert find("odd:q8_0").kind == "folder"
    with pytest.raises(GencliError, match=r"m: no GGUF file of the type Q5_0") as raised:
        find("m:Q5_0")
    assert raised.value.hint == "there are F16, Q4_K_M, Q8_0"
    problem = open_checkpoint(find("m")).problem
    assert problem is not None and problem.message == "m has 2 GGUF files: m:Q4_K_M, m:Q8_0"
    assert problem.hint == "name one of them"
    (tmp_path / "m/a-q8_0.gguf").unlink()
    problem = open_checkpoint(find("m")).problem  # the image reader beside a model is none
    assert problem is not None and "a-q4_k_m.gguf is broken" in problem.message


def test_a_file_alone_is_told_what_a_language_model_is(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors({"wte.weight": ("F32", [4, 2])}))
    with pytest.raises(
        GencliError, match=r"a language model is a \.gguf file, or a folder with config\.json"
    ) as raised:
        open_model(find(str(file)))
    assert "config.json and tokenizer" in (raised.value.hint or "")


# --- what is fetched of a listing

GPT2 = words(""".gitattributes 64-8bits.tflite 64.tflite README.md config.json flax_model.msgpack generation_config.json
generation_config_for_text_generation.json merges.txt model.safetensors onnx/config.json onnx/decoder_model.onnx
onnx/tokenizer.json pytorch_model.bin rust_model.ot tf_model.h5 tokenizer.json tokenizer_config.json vocab.json""")
MISTRAL = words("""README.md
config.json consolidated.safetensors generation_config.json model-00001-of-00002.safetensors
model-00002-of-00002.safetensors model.safetensors.index.json params.json special_tokens_map.json tokenizer.json
tokenizer.model tokenizer.model.v3 tokenizer_config.json chat_template.jinja modeling_evil.py""")
MISTRAL_INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
DDPM = words("""README.md config.json diffusion_pytorch_model.bin diffusion_pytorch_model.safetensors model_index.json
scheduler_config.json images/generated_image_0.png""")
DDPM_INDEX = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def choose(names: list[str], variant: str | None = None, **json_files: object) -> list[str]:
    read = {"model_index": "model_index.json", "index": "model.safetensors.index.json"}
    return layout.choose(names, {read[key]: value for key, value in json_files.items()}.__getitem__, variant)


def test_a_pipeline_is_its_components_in_one_variant() -> None:
    plain = choose(SD15, model_index=SD15_INDEX)
    assert sorted(plain) == words("""README.md model_index.json scheduler/scheduler_config.json text_encoder/config.json
    text_encoder/model.safetensors tokenizer/merges.txt tokenizer/special_tokens_map.json
    tokenizer/tokenizer_config.json tokenizer/vocab.json unet/config.json unet/diffusion_pytorch_model.safetensors
    vae/config.json vae/diffusion_pytorch_model.safetensors""")
    assert [name.endswith(".safetensors") for name in plain] == sorted(name.endswith(".safetensors") for name in plain)
    half = choose(SD15, "fp16", model_index=SD15_INDEX)
    assert [name.replace(".fp16.", ".") for name in half] == plain
    assert sum(".fp16." in name for name in half) == 3
    no_vae = [name for name in SD15 if name != "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert "vae/diffusion_pytorch_model.safetensors" in choose(no_vae, "fp16", model_index=SD15_INDEX)
    with pytest.raises(GencliError, match="no bf16 weights"):
        choose(SD15, "bf16", model_index=SD15_INDEX)


def test_language_models_come_without_copies_in_other_formats() -> None:
    assert sorted(choose(GPT2)) == words("""README.md config.json generation_config.json model.safetensors
    tokenizer.json
    tokenizer_config.json""")
    without = [name for name in GPT2 if name != "tokenizer.json"]
    assert {"vocab.json", "merges.txt"} < set(choose(without))
    assert sorted(choose(MISTRAL, index=MISTRAL_INDEX)) == words("""README.md chat_template.jinja config.json
    generation_config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors
    model.safetensors.index.json special_tokens_map.json tokenizer.json tokenizer_config.json""")
    pieces = [name for name in MISTRAL if name != "tokenizer.json"]
    assert "tokenizer.model" in choose(pieces, index=MISTRAL_INDEX)


def test_a_pipeline_of_one_network_may_lie_at_the_root() -> None:
    assert sorted(choose(DDPM, model_index=DDPM_INDEX)) == words("""README.md config.json
    diffusion_pytorch_model.safetensors     model_index.json scheduler_config.json""")


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors", "model.fp16.safetensors", "other.safetensors"],
        ["model.fp16.safetensors", "model.bf16.safetensors", "model.bin"],
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors"],
        ["pytorch_model.bf16.safetensors", "consolidated.safetensors"],
        ["model-1.safetensors", "model-2.safetensors", "consolidated.safetensors", "model.safetensors.index.json"],
        ["model.fp16-1.safetensors", "model.fp16-2.safetensors", "model.safetensors.index.fp16.json"],
    ],
)
def test_the_loader_opens_just_the_weights_that_are_fetched(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(safetensors({f"t{number}": ("F32", [1])}))
    for name in names:
        if name.endswith(".json"):
            (tmp_path / name).write_text(json.dumps({"weight_map": {"t0": names[0], "t1": names[1]}}))
    chosen = layout.weights(names, lambda name: json.loads((tmp_path / name).read_text()))
    opened = [file.name for file in open_tensors(tmp_path).files]
    assert opened == [name for name in chosen if name.endswith(".safetensors")]
    assert len(opened) == (2 if len(chosen) > 1 else 1)


def test_pickles_are_never_chosen() -> None:
    only = [name for name in GPT2 if name != "model.safetensors"]
    with pytest.raises(GencliError, match=r"no weights in safetensors \(only pytorch_model.bin\)") as error:
        choose(only)
    assert "pickles can run code" in (error.value.hint or "")
    part = [name for name in SD15 if name != "vae/diffusion_pytorch_model.safetensors" and ".fp16." not in name]
    with pytest.raises(GencliError, match=r"vae/: no weights in safetensors \(only diffusion_pytorch_model.bin\)"):
        choose(part, model_index=SD15_INDEX)


@pytest.mark.parametrize(
    "name",
    [
        "../out.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "a\\b.safetensors",
        "C:x.safetensors",
        "",
        7,
        "evil.py",
        "pytorch_model.bin",
    ],
)
def test_an_index_names_plain_files_beside_it(name: object) -> None:
    listing = [*MISTRAL, str(name)]
    with pytest.raises(GencliError, match="not a plain name of a safetensors file"):
        choose(listing, index={"weight_map": {"a": name}})


def test_an_index_that_is_none_or_names_what_is_not_there() -> None:
    for broken in ({}, {"weight_map": []}, {"weight_map": {}}):
        with pytest.raises(GencliError, match="has no weight_map"):
            choose(MISTRAL, index=broken)
    with pytest.raises(GencliError, match=r"names model-9.safetensors, which is not there"):
        choose(MISTRAL, index={"weight_map": {"a": "model-9.safetensors"}})


def test_pickles_that_are_allowed_come_alone_and_in_one_variant() -> None:
    def allowed(names: list[str], **json_files: dict) -> list[str]:
        return layout.choose(names, lambda name: json_files[name.removesuffix(".json")], allow_pickle=True)

    assert "pytorch_model.bin" not in allowed(GPT2)
    only = [name for name in SD15 if not name.endswith(".safetensors")]
    chosen = [name for name in allowed(only, model_index=SD15_INDEX) if name.endswith(".bin")]
    parts = ("text_encoder/pytorch", "unet/diffusion_pytorch", "vae/diffusion_pytorch")
    assert chosen == [f"{part}_model.bin" for part in parts]
    for name in ("../x.bin", "x.py", "x.safetensors"):
        with pytest.raises(GencliError, match="not a plain name of a bin file"):
            layout.choose(
                ["config.json", "pytorch_model.bin.index.json", name],
                lambda _: {"weight_map": {"a": name}},  # noqa: B023
                allow_pickle=True,
            )


@pytest.mark.parametrize("name", ["../unet", "a/b", "/etc", "..", "x\\y", ""])
def test_a_component_is_a_folder_of_the_repository(name: str) -> None:
    chosen = choose([*SD15, f"{name}/config.json"], model_index=SD15_INDEX | {name: ["diffusers", "AutoencoderKL"]})
    assert not any(file.startswith(f"{name}/") for file in chosen)


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["README.md"], "no model_index.json and no config.json", "is it a model"),
        (["m-Q8_0.gguf", "m-Q2_K.gguf"], "2 GGUF files, none of the type Q4_K_M", "there are Q2_K, Q8_0: add :TYPE"),
        (["v1-5.safetensors"], "no model_index.json and no config.json", "v1-5.safetensors is a model in one"),
        (
            ["config.json"],
            "no weights in safetensors",
            "fetch model.safetensors or diffusion_pytorch_model.safetensors",
        ),
    ],
)
def test_repositories_that_hold_something_else(names: list[str], message: str, hint: str) -> None:
    with pytest.raises(GencliError, match=message) as error:
        choose(names)
    assert hint in (error.value.hint or "")


# --- what is said of a checkpoint


def described(cache_root: Path, files: dict[str, bytes]):
    return describe(Source("org/m", put(cache_root, "org/m", COMMIT, files, "main"), "hub"))


def test_parameters_are_counted_from_headers_without_masks(cache_root: Path) -> None:
    tensors = {
        "wte.weight": ("F16", [10, 4]),
        "h.0.attn.bias": ("F32", [1, 1, 64, 64]),
        "h.0.attn.masked_bias": ("F32", []),
        "h.0.attn.c_attn.bias": ("F16", [12]),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [8]),
        "text_model.embeddings.position_ids": ("I64", [1, 77]),
        "scalar": ("BF16", []),
    }
    what = described(cache_root, tiny() | {"model.safetensors": safetensors(tensors)})
    assert (what.kind, what.family, what.problem) == ("text", "gpt2", None)
    assert what.parameters == 10 * 4 + 12 + 1
    assert what.components[0].dtypes == ("BF16", "F16")
    assert what.bytes == sum(len(data) for data in (tiny() | {"model.safetensors": safetensors(tensors)}).values())


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\r\nlanguage: en\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        ('---\nlicense: "cc0-1.0"  # free\n---\n', "cc0-1.0"),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- gpl-3.0\n---\n", "gpl-3.0"),
        ("---\nlicense: mit\nlicense_name: not-asked\n---\n", "mit"),
        ("---\nmodel: x\n---\nlicense: gpl", None),
        ("# no front matter\nlicense: mit", None),
        ("---\nlicense: mit\n", None),
        ("---\nlicense:\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_is_the_model_cards(cache_root: Path, card: str, licence: str | None) -> None:
    assert described(cache_root, tiny(**{"README.md": card.encode()})).licence == licence


def test_a_card_of_blank_lines_is_read_in_little_time(cache_root: Path) -> None:
    """Each of them was a beginning of the front matter once, from which the whole card was searched: a minute."""
    began = time.process_time()
    assert described(cache_root, tiny(**{"README.md": b"---" + b"\n" * 2**16})).licence is None
    assert time.process_time() - began < 1


def test_broken_checkpoints_are_described_with_their_problem(cache_root: Path) -> None:
    good = tiny()["model.safetensors"]
    header = json.dumps({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}).encode()
    broken = {
        "a header of 2^60 bytes": (2**60).to_bytes(8, "little") + good[8:],
        "a header past the end": good[:20],
        "nothing": b"",
        "no JSON": (4).to_bytes(8, "little") + b"nope",
        "no object": (2).to_bytes(8, "little") + b"[]",
        "a shape of words": len(header).to_bytes(8, "little") + header + bytes(4),
        "deep JSON": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    }
    for number, (what, data) in enumerate(broken.items()):
        repo = f"org/broken{number}"
        folder = put(cache_root, repo, COMMIT, tiny() | {"model.safetensors": data}, "main")
        problem = describe(Source(repo, folder, "hub")).problem
        assert problem is not None, what
        assert "is broken or no safetensors file" in problem, what
    assert described(cache_root, tiny() | {"config.json": b'{"model_type": "nobody"}'}).problem == (
        "unknown architecture 'nobody'"
    )


def test_a_link_to_nowhere_is_a_file_that_is_missing(cache_root: Path) -> None:
    folder = put(cache_root, "org/m", COMMIT, tiny(), "main")
    os.remove(folder.resolve() / os.readlink(folder / "model.safetensors"))
    assert "no weights in safetensors" in (describe(Source("org/m", folder, "hub")).problem or "")
