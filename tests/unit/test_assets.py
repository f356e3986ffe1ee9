"""Names of LoRA files and embeddings: paths, and what of a cached repository is meant."""

from __future__ import annotations

import pytest

from gencli.checkpoints.assets import PEFT_CONFIG, EmbeddingRef, LoraRef
from gencli.checkpoints.lora import peft_scale
from gencli.errors import GencliError

SHA = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Put a repository into a cache of its own, as a download leaves it; there is no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def put(repo, *names):
        folder = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
        for name in names:
            file = folder / "snapshots" / SHA / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(SHA)
        return folder / "snapshots" / SHA

    return put


def test_the_usual_file_of_a_repository(cached):
    folder = cached("org/style", "a.safetensors", "pytorch_lora_weights.safetensors", "x/deep.safetensors")
    assert LoraRef.parse("org/style:0.5").find() == LoraRef(folder / "pytorch_lora_weights.safetensors", 0.5)
    assert LoraRef.parse("org/style/a.safetensors").find().path == folder / "a.safetensors"
    assert LoraRef.parse("org/style@main/x/deep.safetensors:2").find() == LoraRef(folder / "x/deep.safetensors", 2.0)


def test_a_folder_of_peft_is_taken_whole(cached):
    folder = cached("org/peft", PEFT_CONFIG, "adapter_model.safetensors", "other.safetensors")
    assert LoraRef.parse("org/peft").find().path == folder
    assert LoraRef(folder / "adapter_model.safetensors", 0.5).find() == LoraRef(folder, 0.5)
    assert LoraRef(folder / "other.safetensors").find().path == folder / "other.safetensors"


def test_the_only_file_or_none_of_several(cached):
    one = cached("org/one", "style.safetensors", "README.md")
    assert LoraRef.parse("org/one").find().path == one / "style.safetensors"
    cached("org/two", "a.safetensors", "b.safetensors")
    with pytest.raises(GencliError, match="org/two: no such file or folder, and not in the Hugging Face cache"):
        LoraRef.parse("org/two").find()  # the hub may have the usual name beside them


def test_pickles_are_taken_when_that_is_said(cached):
    folder = cached("org/concept", "learned_embeds.bin", "type_of_concept.txt")
    with pytest.raises(GencliError):
        EmbeddingRef.parse("org/concept").find()
    assert EmbeddingRef.parse("org/concept:<toy>").find(allow_pickle=True) == EmbeddingRef(
        folder / "learned_embeds.bin", "<toy>"
    )
    assert EmbeddingRef(folder).find().path == folder / "learned_embeds.bin"  # a folder; opening it asks for the flag


@pytest.mark.parametrize("name", ["none", "./none", "none.safetensors", "loras/none.safetensors", "../x/y.bin"])
def test_what_is_neither_here_nor_a_name_of_the_hub(cached, name):
    with pytest.raises(GencliError) as caught:
        LoraRef.parse(name).find()
    assert caught.value.message == f"--lora {LoraRef.parse(name).path.as_posix()}: no such file or folder"


@pytest.mark.parametrize("name", ["org/style/../x.safetensors", "org/style//x.safetensors"])
def test_names_lead_nowhere_else(cached, name):
    cached("org/style", "x.safetensors")
    with pytest.raises(GencliError, match="no such file or folder"):
        from gencli.checkpoints.assets import locate

        locate(name, "x", option="--lora")


def test_a_rank_that_is_no_number():
    """Of an adapter whose factors are whole (LoKr) it is the config's word alone."""
    config = {"r": "8", "lora_alpha": 4}
    with pytest.raises(GencliError, match="the rank of x is '8' here"):
        peft_scale("adapter_config.json", config, "x", config["r"])
    assert peft_scale("adapter_config.json", {"r": 8, "lora_alpha": 4}, "x", 8) == 0.5
