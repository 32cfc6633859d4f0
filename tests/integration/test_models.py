import json
import multiprocessing
import os
import struct
from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from pytest_moeperf import models, weights
from pytest_moeperf.errors import ModelError, StorageError, UsageError
from pytest_moeperf.memory import total_parameters, weight_bytes
from pytest_moeperf.models import (
    catalogue,
    materialize,
    materialize_entry,
    open_directory,
)

RANDOM = ["mini-dense", "mini-moe"]
SHIPPED = ["tiny-moe-balanced", "tiny-moe-collapsed"]


def tiny(name="mini-moe", **changes):
    """A catalogue entry with its sizes cut down, so that writing it takes milliseconds."""
    entry = catalogue()[name]
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 4}
    return replace(entry, config={**entry.config, **sizes, **changes})


def checkpoint(directory):
    with safe_open(directory.path / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict


@pytest.fixture
def directory(tmp_path):
    return materialize_entry(tiny(), cache=tmp_path)


# The catalogue


def test_the_catalogue_has_small_models_and_the_architectures_of_large_ones():
    assert list(catalogue()) == [
        "deepseek-v2-lite",
        "llama-3.1-8b",
        "mini-dense",
        "mini-moe",
        "mixtral-8x7b",
        "olmoe-1b-7b",
        "qwen3-30b-a3b",
        "tiny-moe-balanced",
        "tiny-moe-collapsed",
    ]
    assert [name for name, entry in catalogue().items() if entry.small] == RANDOM + SHIPPED
    assert [name for name, entry in catalogue().items() if not entry.trained] == RANDOM


@pytest.mark.parametrize("entry", catalogue().values(), ids=lambda entry: entry.name)
def test_an_entry_is_pinned_or_seeded_or_ships_with_its_weights(entry):
    assert entry.architecture.layers > 0
    assert (entry.revision is None) == (entry.hf_id is None)
    sources = (entry.revision, entry.seed, entry.weights_sha256)
    assert sum(source is not None for source in sources) == 1


def test_an_unknown_name_is_quoted_and_the_known_are_listed(tmp_path):
    with pytest.raises(UsageError, match=r"^no model 'mini-mo': give one of deepseek-v2-lite, lla"):
        materialize("mini-mo", cache=tmp_path)


# Published models


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of downloads."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def download(hub):
    """Puts a checkpoint of a kilobyte where a download of mixtral-8x7b would be."""
    entry = catalogue()["mixtral-8x7b"]

    def put(revision=entry.revision):
        path = hub / "models--mistralai--Mixtral-8x7B-v0.1" / "snapshots" / revision
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(entry.config))
        save_file({"w": np.zeros(4, np.float32)}, path / "model.safetensors")
        return path

    return put


@pytest.mark.parametrize("weights", ["auto", "dummy"])
@pytest.mark.usefixtures("hub")
def test_a_published_model_without_a_copy_is_config_and_tokenizer(tmp_path, weights):
    made = materialize("mixtral-8x7b", weights=weights, cache=tmp_path)
    assert sorted(file.name for file in made.path.iterdir()) == [
        "config.json",
        "moeperf-model.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (made.name, made.dummy, made.trained) == ("mixtral-8x7b", True, False)
    assert made.digest.startswith("dummy-")
    assert json.loads((made.path / "config.json").read_bytes()) == catalogue()[made.name].config
    # Prompts use all of the model's vocabulary but the three special tokens of the tokenizer.
    assert (made.first_id, made.vocab_size, made.context_tokens) == (3, 32_000, 32_768)


def test_a_local_copy_at_the_pinned_commit_is_used(download, tmp_path):
    path = download()
    made = materialize("mixtral-8x7b", cache=tmp_path)
    assert (made.path, made.name, made.dummy) == (path, "mixtral-8x7b", False)
    assert made.trained
    assert not made.digest.startswith("dummy-")
    assert materialize("mixtral-8x7b", weights="real", cache=tmp_path) == made


def test_dummy_weights_do_not_need_the_copy_that_is_there(download, tmp_path):
    download()
    assert materialize("mixtral-8x7b", weights="dummy", cache=tmp_path).dummy


def damaged(path):
    truncate(path)


def of_another_commit(path):
    path.rename(path.with_name("0" * 40))


@pytest.mark.parametrize("change", [damaged, of_another_commit])
def test_a_copy_that_will_not_do_is_told_only_where_it_was_asked_for(change, download, tmp_path):
    change(download())
    assert materialize("mixtral-8x7b", cache=tmp_path).dummy
    with pytest.raises(ModelError) as refused:
        materialize("mixtral-8x7b", weights="real", cache=tmp_path)
    text = str(refused.value)
    assert text.startswith("--weights real: no complete copy of mixtral-8x7b: ")
    assert text.endswith(
        "fetch mistralai/Mixtral-8x7B-v0.1 at revision fc7ac94680e38d7348cfa806e51218e6273104b0, "
        "or use --weights dummy"
    )


def test_downloads_are_looked_for_where_the_tools_of_hugging_face_put_them(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert models.hugging_face_cache() == tmp_path / "hub"
    monkeypatch.delenv("HF_HOME")
    assert models.hugging_face_cache().parts[-3:] == (".cache", "huggingface", "hub")


# Small models


def test_a_small_model_is_written_with_all_its_parameters(directory):
    written = checkpoint(directory)
    assert sum(value.size for value in written.values()) == total_parameters(directory.architecture)
    assert {value.dtype for value in written.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert sorted(file.name for file in directory.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "moeperf-model.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_dense_model_has_the_tensors_of_its_architecture(tmp_path):
    names = set(checkpoint(materialize_entry(tiny("mini-dense"), cache=tmp_path)))
    assert "model.layers.1.mlp.gate_proj.weight" in names
    assert not any("block_sparse_moe" in name for name in names)


def test_weights_are_normal_with_the_std_of_their_kind(directory):
    written = checkpoint(directory)
    embedding = written["model.embed_tokens.weight"].astype(np.float32)
    head = written["lm_head.weight"].astype(np.float32)
    assert embedding.std() == pytest.approx(1.0, rel=0.01)
    assert head.std() == pytest.approx(0.02, rel=0.01)
    assert np.mean(np.abs(head) < 0.02) == pytest.approx(0.683, abs=0.005)  # within one sigma
    assert set(written["model.norm.weight"].astype(np.float32)) == {1.0}


def test_no_two_tensors_share_their_random_weights(directory):
    drawn = [value for value in checkpoint(directory).values() if value.ndim == 2]
    beginnings = {value.ravel()[:64].tobytes() for value in drawn}
    assert len(beginnings) == len(drawn)


def test_a_seed_gives_the_same_weights_in_every_release_of_this_recipe():
    tensor = weights.Tensor(name="model.layers.0.example.weight", shape=(2, 3), std=0.02)
    assert [hex(bits) for bits in weights.draw(tensor, seed=1)] == [
        "0xbc3d",
        "0x3c85",
        "0x3be5",
        "0x3c2a",
        "0x3ae3",
        "0xbc09",
    ]
    assert weights.RECIPE == 1


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    first, second = (materialize_entry(tiny(), cache=tmp_path / name) for name in "ab")
    assert first.digest == second.digest
    for file in first.path.iterdir():
        assert file.read_bytes() == (second.path / file.name).read_bytes()


def test_another_seed_or_size_is_another_model(tmp_path):
    entries = [tiny(), replace(tiny(), seed=7), tiny(intermediate_size=16)]
    made = {materialize_entry(entry, cache=tmp_path).path for entry in entries}
    assert len(made) == 3


def test_the_routers_of_mini_moe_use_all_experts_evenly_and_differently_in_each_layer():
    entry = catalogue()["mini-moe"]
    hidden = np.random.default_rng(0).standard_normal((4096, 1024), np.float32)
    chosen = []
    for tensor in weights.tensors(entry.architecture):
        if tensor.name.endswith("gate.weight"):
            drawn = weights.draw(tensor, seed=entry.seed).view(ml_dtypes.bfloat16)
            logits = hidden @ drawn.reshape(tensor.shape).astype(np.float32).T
            chosen.append(np.argsort(-logits)[:, :2])
    assert len(chosen) == 8
    for layer in chosen:
        shares = np.bincount(layer.ravel(), minlength=8) / layer.size
        assert shares == pytest.approx([1 / 8] * 8, rel=0.15)
    for layer, following in pairwise(chosen):
        same = np.mean(layer[:, 0] == following[:, 0])
        assert same == pytest.approx(1 / 8, abs=0.08)


def test_the_checkpoint_of_mini_moe_takes_what_the_formula_says():
    arch = catalogue()["mini-moe"].architecture
    assert sum(tensor.bytes for tensor in weights.tensors(arch)) == weight_bytes(arch)


def test_random_weights_are_made_for_known_architectures_only():
    arch = replace(catalogue()["mini-moe"].architecture, model_type="olmoe")
    with pytest.raises(ModelError, match="for llama and mixtral, not olmoe"):
        weights.tensors(arch)


def test_random_weights_have_no_biases():
    arch = replace(catalogue()["mini-dense"].architecture, mlp_bias=True)
    with pytest.raises(ModelError, match="for layers without biases"):
        weights.tensors(arch)


def test_the_tokenizer_covers_the_vocabulary_and_any_text(directory):
    tokenizer = Tokenizer.from_file(str(directory.path / "tokenizer.json"))
    text = "Mixture of experts: naïve π ≈ 3.14\n\t専門家"
    assert tokenizer.get_vocab_size() == directory.vocab_size == 4096
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert directory.first_id == 3
    assert [tokenizer.id_to_token(token) for token in range(3)] == ["<unk>", "<s>", "</s>"]


# The cache


def test_a_written_model_is_reused(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "write_checkpoint", pytest.fail)
    assert materialize_entry(tiny(), cache=tmp_path) == directory


def test_the_cache_may_be_read_only_once_a_model_is_in_it(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "exclusive", pytest.fail)
    assert materialize_entry(tiny(), cache=tmp_path) == directory


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEPERF_CACHE", str(tmp_path))
    assert materialize_entry(tiny()).path.parent == tmp_path / "models"


def truncate(path):
    file = path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda path: (path / "tokenizer.json").unlink(),
        lambda path: (path / "moeperf-model.json").write_text("{"),
        lambda path: (path / "moeperf-model.json").write_text("[]"),
    ],
    ids=["truncated weights", "no tokenizer", "broken manifest", "other manifest"],
)
def test_a_damaged_model_is_written_anew(damage, directory, tmp_path):
    intact = (directory.path / "model.safetensors").read_bytes()
    damage(directory.path)
    assert materialize_entry(tiny(), cache=tmp_path) == directory
    assert (directory.path / "model.safetensors").read_bytes() == intact
    assert (directory.path / "tokenizer.json").exists()


def test_leftovers_of_a_killed_build_are_removed(directory, tmp_path):
    leftover = directory.path.with_name(f".{directory.path.name}.killed")
    directory.path.rename(leftover)
    materialize_entry(tiny(), cache=tmp_path)
    assert not leftover.exists()


def build(cache):
    materialize_entry(tiny(), cache=cache)


def test_processes_that_need_the_same_model_at_once_agree_on_one(tmp_path):
    processes = [
        multiprocessing.get_context("spawn").Process(target=build, args=(tmp_path,))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    kept = [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"]
    assert kept == [materialize_entry(tiny(), cache=tmp_path).path.name]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(failure, tmp_path, monkeypatch):
    def write_some(path, arch, *, seed):
        path.write_bytes(b"some")
        raise failure

    monkeypatch.setattr(weights, "write_checkpoint", write_some)
    expected = StorageError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        materialize_entry(tiny(), cache=tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_a_full_disk_is_told_with_the_place_and_the_need(tmp_path, monkeypatch):
    def fail(descriptor, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StorageError, match=r"mini-moe-.*No space left on device; it takes \d+ MiB"):
        materialize_entry(tiny(), cache=tmp_path)


def test_a_cache_that_is_a_file_is_told_with_its_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=str(tmp_path / "file")):
        materialize_entry(tiny(), cache=tmp_path / "file")


# Directories by path


@pytest.fixture
def copy(directory, tmp_path):
    """A checkpoint as somebody else would have made it."""
    path = tmp_path / "copy"
    path.mkdir()
    config = {**tiny().config, "vocab_size": 10}
    (path / "config.json").write_text(json.dumps(config))
    save_file({"lm_head.weight": np.ones((10, 64), np.float16)}, path / "model.safetensors")
    return path


def test_a_path_is_opened_as_it_is(copy):
    opened = materialize(str(copy))
    assert (opened.name, opened.path, opened.context_tokens) == ("copy", copy, 2048)
    assert (opened.first_id, opened.vocab_size) == (0, 10)
    assert opened.digest == materialize(str(copy)).digest


def test_of_others_weights_are_trained_and_of_ours_those_that_say_so(copy, directory):
    assert open_directory(copy).trained
    assert not directory.trained
    assert not open_directory(directory.path).trained
    # As it was written before there were trained ones.
    (directory.path / "moeperf-model.json").write_text('{"sizes": {}}')
    assert not open_directory(directory.path).trained


def test_a_path_may_be_relative(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)
    assert materialize("copy") == materialize("./copy") == open_directory(copy)


def test_other_weights_under_the_same_path_are_another_model(copy):
    before = open_directory(copy).digest
    save_file({"lm_head.weight": np.ones((10, 65), np.float16)}, copy / "model.safetensors")
    assert open_directory(copy).digest != before


def test_a_path_needs_no_weights_where_the_engine_makes_them_up(copy):
    real = open_directory(copy)
    (copy / "model.safetensors").unlink()
    dummy = materialize(str(copy), dummy=True)
    assert (dummy.dummy, dummy.trained) == (True, False)
    assert dummy.digest.startswith("dummy-")
    assert real.digest not in dummy.digest


@pytest.mark.parametrize(
    ("special", "ordinary"), [([0, 1, 2], (3, 10)), ([0, 8, 9], (1, 8)), ([4], (5, 10))]
)
def test_prompts_keep_clear_of_special_tokens(special, ordinary, copy):
    added = [{"id": token, "special": True} for token in special]
    added.append({"id": 6, "special": False})
    (copy / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    opened = open_directory(copy)
    assert (opened.first_id, opened.vocab_size) == ordinary


def test_all_shards_of_an_index_must_be_there(copy):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-2\.safetensors: weights cannot be read, No such"):
        open_directory(copy)


def write(name, content):
    return lambda path: (path / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "config.json: cannot be read, No such file"),
        (write("config.json", b"{"), "config.json: not JSON, "),
        (write("config.json", b"[]"), "config.json: not a JSON object"),
        (write("config.json", b"{}"), "config.json: model_type None is not one of: deepseek_v2"),
        (
            write("config.json", json.dumps({**tiny().config, "head_dim": 0}).encode()),
            "config.json: head_dim is 0",
        ),
        (
            write(
                "config.json",
                json.dumps({**tiny().config, "max_position_embeddings": None}).encode(),
            ),
            "config.json: lacks max_position_embeddings",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "copy: no weights"),
        (truncate, r"model.safetensors: \d+ bytes, its header tells"),
        (write("model.safetensors", b""), "not a safetensors file"),
        (write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "its header tells"),
        (write("model.safetensors", struct.pack("<Q", 4) + b"null"), "not a safetensors file"),
    ],
)
def test_a_broken_directory_is_refused_in_one_line(damage, message, copy):
    damage(copy)
    with pytest.raises(ModelError, match=message) as refused:
        open_directory(copy)
    assert "\n" not in str(refused.value)
    assert str(copy) in str(refused.value)


def test_a_path_that_is_not_there_is_quoted(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: no such model directory$"):
        materialize(str(tmp_path / "nowhere"))
