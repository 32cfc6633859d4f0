"""The page of `moeperf fit`, as it stands in a terminal."""

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_moeperf.gpu import hardware_classes
from pytest_moeperf.memory import PRECISIONS, Parallelism, Request, fit, least_gpus, remedies
from pytest_moeperf.models import catalogue
from pytest_moeperf.report.fit import FILLS, Answer, document, lines
from pytest_moeperf.report.terminal import render_lines

GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = {each.name: each.memory_gib for each in hardware_classes() if each.memory_gib}


def answer(model, gpu, *, parallel=None, **changes):
    request = Request(
        arch=catalogue()[model].architecture,
        gpu_gib=CLASSES[gpu],
        parallel=parallel or Parallelism(),
        precision=PRECISIONS["bf16"],
        kv_dtype="bf16",
        context_tokens=4096,
        concurrency=1,
        utilization=0.92,
    )
    request = replace(request, **changes)
    found = fit(request)
    return Answer(
        model=model,
        gpu=gpu,
        request=request,
        fit=found,
        remedies=() if found.fits else tuple(remedies(request)),
        least={name: least_gpus(request, gpu_gib=size) for name, size in CLASSES.items()},
    )


def page(shown, *, width=80, color=False):
    return render_lines(lines(shown, width=width), width=width, color=color)


PAGES = {
    "fit-mixtral-2xh200": (answer("mixtral-8x7b", "h200", parallel=Parallelism(tensor=2)), {}),
    "fit-mixtral-h100-lacking": (answer("mixtral-8x7b", "h100", concurrency=10), {}),
    "fit-mla-color": (
        answer(
            "deepseek-v2-lite",
            "a100-40gb",
            parallel=Parallelism(data=2, experts_whole=True),
            precision=PRECISIONS["fp8"],
            kv_dtype="fp8",
        ),
        {"color": True, "width": 120},
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_the_stored_one(name):
    shown, how = PAGES[name]
    assert page(shown, **how) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [20, 33, 80, 200])
def test_the_picture_is_as_wide_as_the_terminal_but_not_endless(width):
    fills = {character for character, _ in FILLS.values()}
    bars = [line for line in page(PAGES["fit-mla-color"][0], width=width).splitlines() if line]
    (bar,) = [line for line in bars if set(line) <= fills]
    assert len(bar) == min(width, 80)


def test_a_class_that_is_too_small_in_any_number_is_told():
    huge = replace(catalogue()["mixtral-8x7b"].architecture, layers=4000)
    shown = page(answer("mixtral-8x7b", "l40s", arch=huge))
    assert "none of up to 64" in shown
    assert "would fit" not in shown


def test_the_document_adds_up():
    told = document(PAGES["fit-mixtral-2xh200"][0])
    sizes = told["per_gpu"]
    parts = sum(sizes["weights"].values()) + sum(
        sizes[name] for name in ("activations", "graphs", "runtime", "kv_cache", "unused")
    )
    assert parts == sizes["memory"]
    assert sum(told["parameters"].values()) == 46_702_792_704
    assert told["least_gpus"]["h100"] == {
        "gpus": 2,
        "tensor": 2,
        "pipeline": 1,
        "data": 1,
        "experts_whole": False,
    }
