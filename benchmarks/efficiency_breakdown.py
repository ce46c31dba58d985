"""Where the time of a forward goes: to matrix products, which a cut shrinks, and to all that it does not shrink."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from transact.evaluation.efficiency.generation import decode, prefill, random_prompt
from transact.evaluation.efficiency.measure import PARENT, load
from transact.geometry import Geometry
from transact.models.folder import geometry_of

KINDS = ("matrix_products", "attention", "elementwise", "between_operators")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear")
TURNS = {"prefill": 3, "decode": 16}


def breakdown(folders: Mapping[str, Path], dtype: str, prompt_tokens: int, threads: int) -> list[dict[str, Any]]:
    """Measure the time of each phase by kind of work: one row for each phase and model, batch 1.

    Returns:
        "seconds" by kind of work: "matrix_products", "attention" (the fused operator: scores, softmax and the sum of
        values), "elementwise" (norms, rotations, residual sums, activations, copies), "between_operators" (Python and
        the dispatch of operators). Of a pruned model also "products_speed_up" and "products_allowed": of the matrix
        products alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    for role, folder in folders.items():
        model, geometry = load(folder, dtype, torch.device("cpu")), geometry_of(folder)
        prompt = random_prompt(geometry.vocab_size, 1, prompt_tokens, torch.device("cpu"))
        for phase in TURNS:
            seconds = _seconds_by_kind(_repeat(model, prompt, phase), TURNS[phase])
            rows.append({"phase": phase, "model": role, "seconds": seconds, "work": _product_work(geometry, phase)})
    torch.set_num_threads(before)
    for row in rows:
        parent = next(each for each in rows if each["model"] == PARENT and each["phase"] == row["phase"])
        if row is not parent:
            row["products_speed_up"] = parent["seconds"]["matrix_products"] / row["seconds"]["matrix_products"]
            row["products_allowed"] = parent["work"] / row["work"]
    return [{name: value for name, value in row.items() if name != "work"} for row in rows]


def _repeat(model: Any, prompt: torch.Tensor, phase: str) -> Callable[[], Any]:
    """Return a function that does the phase once more."""
    state = {"output": prefill(model, prompt)}

    def once() -> None:
        if phase == "prefill":
            prefill(model, prompt)
        else:
            state["output"] = decode(model, state["output"])

    once()  # the first call is slower
    return once


def _seconds_by_kind(once: Callable[[], Any], turns: int) -> dict[str, float]:
    start = time.thread_time()
    for _ in range(turns):
        once()
    whole = (time.thread_time() - start) / turns
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(turns):
            once()
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        found[_kind(event.key)] += event.self_cpu_time_total / 1e6 / turns
    # The profiler makes the time between operators longer: it is what remains of a turn without the profiler.
    found["between_operators"] = max(0.0, whole - sum(found.values()))
    return found


def _kind(operator: str) -> str:
    if operator in PRODUCTS:
        return "matrix_products"
    return "attention" if "scaled_dot_product" in operator else "elementwise"


def _product_work(geometry: Geometry, phase: str) -> int:
    """Return the work of a phase's matrix products: elements of weights that are read, or multiplied per token.

    The output layer works on one token in either phase; a prompt's share of it is next to nothing.
    """
    output_layer = geometry.hidden_size * geometry.vocab_size
    return geometry.transitional_parameters() + (output_layer if phase == "decode" else 0)
