"""The tiny trained models: what ships is what their stored figures say, computed anew in NumPy."""

import json
import runpy
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pytest_moeperf import models, weights
from pytest_moeperf.balance import HEALTHY, collapses, count_routes, largest_deviation, shares
from pytest_moeperf.datasets import load_sharegpt
from pytest_moeperf.errors import ModelError
from pytest_moeperf.memory import total_parameters
from pytest_moeperf.models import catalogue, materialize, materialize_entry, open_directory

ROOT = Path(__file__).parents[2]
CATALOGUE = ROOT / "pytest_moeperf" / "catalogue"
BALANCED, COLLAPSED = "tiny-moe-balanced", "tiny-moe-collapsed"
TRAINED = (BALANCED, COLLAPSED)
DOMAINS = ("arithmetic", "code", "prose")
ROWS, END_OF_TEXT = 6, 2


def stored(name):
    """What the training noted."""
    return json.loads((CATALOGUE / name / "training.json").read_bytes())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both models, as an engine gets them."""
    cache = tmp_path_factory.mktemp("cache")
    return {name: materialize(name, cache=cache) for name in TRAINED}


@pytest.fixture(scope="module")
def document():
    return runpy.run_path(str(ROOT / "scripts" / "tiny_moe_text.py"))["document"]


@pytest.fixture(scope="module")
def held_out(document):
    """The first rows of the text that the figures were computed on, by domain."""
    tokenizer = Tokenizer.from_file(str(CATALOGUE / "tokenizer" / "tokenizer.json"))

    def row(domain, number):
        tokens = []
        while len(tokens) <= 128:
            text = document(domain, f"held-out/{number}").text
            tokens += [*tokenizer.encode(text).ids, END_OF_TEXT]
            number += 1
        return tokens[:129], number

    found = {}
    for domain in DOMAINS:
        rows, number = [], 0
        for _ in range(ROWS):
            tokens, number = row(domain, number)
            rows.append(tokens)
        found[domain] = np.array(rows)
    return found


def figures(directory, rows):
    """By domain: the loss of each token in nats, and the experts that it took."""
    forward = runpy.run_path(str(ROOT / "scripts" / "measure_routing.py"))["Model"]
    model = forward(load_file(directory.path / "model.safetensors"), directory.architecture)
    logits = model.logits(rows[:, :-1])
    logits -= logits.max(-1, keepdims=True)
    following = np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]
    losses = np.log(np.exp(logits).sum(-1)) - following
    routes = np.stack(model.routed, axis=2)  # [rows, tokens, layers, k]
    return {
        domain: SimpleNamespace(
            losses=losses[place : place + ROWS],
            routes=routes[place : place + ROWS].reshape(-1, *routes.shape[2:]),
        )
        for domain, place in zip(DOMAINS, range(0, len(rows), ROWS), strict=True)
    }


@pytest.fixture(scope="module")
def computed(made, held_out):
    """Both models' figures, from a process whose BLAS has one thread.

    Several would wait for each other where other tests keep the cores busy, for seconds.
    """
    rows = np.concatenate([held_out[domain] for domain in DOMAINS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            answers = {
                name: process.submit(figures, directory, rows) for name, directory in made.items()
            }
            return {name: answer.result() for name, answer in answers.items()}


def mixed(by_domain):
    """Counts of all domains together."""
    return count_routes(np.concatenate([each.routes for each in by_domain.values()]), experts=8)


# What ships


@pytest.mark.parametrize("name", TRAINED)
def test_the_weights_are_the_tensors_of_the_architecture_in_bfloat16(name, made):
    arch = catalogue()[name].architecture
    with safe_open(made[name].path / "model.safetensors", "np") as file:
        found = {
            key: (tuple(file.get_slice(key).get_shape()), file.get_slice(key).get_dtype())
            for key in file.keys()  # noqa: SIM118  not a dict
        }
    assert found == {each.name: (each.shape, "BF16") for each in weights.tensors(arch)}
    # Embedding and output 2 × 4096 × 128; a layer has 3 × 8 × 128 × 128 in experts, 128 × (128 +
    # 64 + 64 + 128) in attention, 8 × 128 in the router and two norms of 128; one norm at the end.
    assert total_parameters(arch) == 1_048_576 + 4 * (393_216 + 49_152 + 1_024 + 256) + 128


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_is_known_as_such_by_name_and_by_path(name, made):
    assert catalogue()[name].trained
    assert catalogue()[name].small
    assert made[name].trained
    assert not made[name].dummy
    assert open_directory(made[name].path).trained


def test_the_two_models_differ_in_their_weights_and_in_one_number_of_the_recipe(made):
    first, second = (catalogue()[name] for name in TRAINED)
    assert first.config == second.config
    assert made[BALANCED].digest != made[COLLAPSED].digest
    balanced, collapsed = (stored(name)["recipe"] for name in TRAINED)
    assert balanced.pop("balance_coefficient") > 0
    assert collapsed.pop("balance_coefficient") == 0
    assert balanced == collapsed


def test_other_weights_of_the_same_sizes_are_another_model(tmp_path, made):
    entry = replace(catalogue()[BALANCED], weights_sha256="0" * 64)
    assert models._digest(entry) != made[BALANCED].digest


def one_bit_is_wrong(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [one_bit_is_wrong, Path.unlink])
def test_weights_that_are_not_those_of_the_entry_are_refused(damage, tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(CATALOGUE, package)
    damage(package / BALANCED / "model.safetensors")
    monkeypatch.setattr(models, "_DATA", package)
    with pytest.raises(ModelError, match=r"not the weights whose hash the catalogue has; install"):
        materialize_entry(catalogue()[BALANCED], cache=tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


# What they have learned, and how they route


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_weights_have_the_stored_loss_and_shares_on_held_out_text(name, domain, computed):
    # A tenth of the text that the figures are of: shares may differ by some points.
    figures, found = stored(name), computed[name][domain]
    assert found.losses.mean() == pytest.approx(figures["loss"][domain], rel=0.15)
    counts = count_routes(found.routes, experts=8).counts
    assert shares(counts) == pytest.approx(np.array(figures["shares"][domain]), abs=0.05)


@pytest.mark.parametrize("name", TRAINED)
def test_they_have_learned_far_more_than_how_often_words_occur(name):
    figures = stored(name)
    for domain in DOMAINS:
        assert figures["loss"][domain] < figures["unigram_loss"][domain] / 2


def test_the_balanced_model_is_healthy_in_every_layer(computed):
    counts = mixed(computed[BALANCED])
    assert collapses(counts) == ()
    assert max(stored(BALANCED)["largest_deviation"]) <= HEALTHY
    assert largest_deviation(counts.counts).max() <= HEALTHY + 0.05


def test_the_collapsed_model_has_collapsed_by_the_published_rule(computed):
    found = {each.layer for each in collapses(mixed(computed[COLLAPSED]))}
    assert len(found) >= 2
    assert [int(text.split()[1]) for text in stored(COLLAPSED)["collapses"]] == sorted(found)


# The prompts of the suites


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_prompts_are_held_out_documents_of_fitting_length(domain, document):
    path = ROOT / "suites" / "moe" / "prompts" / f"{domain}.json"
    conversations = json.loads(path.read_bytes())
    for item in conversations:
        made = document(domain, f"prompts/{item['id'].removeprefix(f'{domain}-')}")
        assert tuple(turn["value"] for turn in item["conversations"]) == made
    tokenizer = CATALOGUE / "tokenizer" / "tokenizer.json"
    prompts = load_sharegpt(path, tokenizer=tokenizer, max_prompt_tokens=96)
    assert len(prompts) == len({text for text, _ in prompts}) == 64
    encoded = Tokenizer.from_file(str(tokenizer)).encode_batch([text for text, _ in prompts])
    assert all(len(each.ids) >= 24 for each in encoded)
