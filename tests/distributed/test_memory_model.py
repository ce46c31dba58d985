"""The memory that mode=estimate announces is what ranks allocate, a tenth less at most and a quarter more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.allocations import allocated_peak
from benchmarks.memory_model import Case, is_off, measure
from tests.support.exported import random_selection
from tests.support.ranks import run_on_ranks
from tests.support.selections import hand_selection
from tests.support.tiny import write_model
from transact.config.compose import compose_config
from transact.data.order import micro_batches
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.engine import open_engine
from transact.engine.memory import estimate_memory
from transact.geometry import Widths
from transact.models.folder import geometry_of
from transact.models.llama import read_geometry, slice_tensors, sliced_config
from transact.models.loss_head import Teaching
from transact.models.narrowing import narrowing
from transact.pruning.refit import LayerGram, Ridge
from transact.stages.calibrate import file_name
from transact.stages.evaluate import mean_loss
from transact.stages.sequential import Embedded, Streams
from transact.stages.shapes import Fits

CASES = (
    Case(size="wide"),  # warms up what is made once
    Case(size="wide", dtype="bfloat16"),
    Case(size="deep", dtype="bfloat16", checkpointing=True, sequences=2, sequence_length=256),
    Case(size="vocabulary", zero_stage=1, objective="distillation"),
    Case(size="wide", dtype="bfloat16", recovery="lora"),
    Case(size="deep", dtype="bfloat16", zero_stage=0, checkpointing=True, recovery="lora"),
    Case(size="layers"),
    Case(size="layers", dtype="bfloat16", zero_stage=1, sequences=2, sequence_length=256),
    Case(size="wide", stage="calibrate", sequences=2, sequence_length=256),
    Case(size="wide", stage="calibrate", method="default", sequences=2, sequence_length=256),
    Case(size="wide", stage="gram", method="default", sequences=2, sequence_length=256),
    Case(size="deep", stage="calibrate", method="taylor", sequences=2, sequence_length=256),
    Case(size="wide", packing="documents", sequences=2, sequence_length=384),
    Case(size="deep", packing="documents", dtype="bfloat16", checkpointing=True, sequences=2, sequence_length=384),
    Case(size="deep", packing="documents", objective="distillation", sequences=2, sequence_length=384),
)


def _measured(folder: Path) -> list[dict[str, Any]]:
    with process_group("cpu", timeout_minutes=5) as group:
        return [_row(case, folder, group) for case in CASES]


def _row(case: Case, folder: Path, group: ProcessGroup) -> dict[str, Any]:
    """Measured once more where it is off: what lingers in gloo's threads is there by chance."""
    row = measure(case, folder, group, repetitions=1)
    (again,) = group.any(is_off(row["error"]))
    return measure(case, folder, group) if again else row


def test_the_estimate_is_a_tenth_too_low_at_most_and_a_quarter_too_high(tmp_path: Path) -> None:
    for row in run_on_ranks(2, _measured, tmp_path)[0][1:]:
        assert not is_off(row["error"]), row


@pytest.mark.parametrize("method", ["default", "parallel"])
@pytest.mark.parametrize("kept", [1024, 1400])
def test_a_layer_that_is_cut_needs_what_its_least_squares_do(method: str, kept: int) -> None:
    """A wide MLP: the refit's Gram matrix is the largest where much is cut, the correction's where little is."""
    architecture = {"hidden_size": 128, "intermediate_size": 1408, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = LlamaConfig(**architecture, num_hidden_layers=1, vocab_size=64)
    config, model = settings.to_dict(), LlamaForCausalLM(settings)
    source = read_geometry(config)
    every_dim = [[range(source.head_dim)] * source.num_key_value_heads]
    selection = hand_selection(source, range(source.head_dim // 2), every_dim, [range(kept)])
    smaller, ridge = sliced_config(config, selection), Ridge(share=0.01)
    tensors = {name: tensor.data for name, tensor in model.state_dict().items() if ".layers." in name}
    hidden = torch.randn(2, 64, 128)
    streams = Streams(selection, [Embedded(0, hidden)], device=torch.device("cpu"), ridge=ridge, num_turns=1)

    def read() -> LayerGram:
        return LayerGram(attention_output=torch.eye(128), intermediate=torch.eye(1408))

    def cut() -> None:
        if method == "default":
            streams.cut_layer(0, tensors, read, config, smaller)
        else:
            slice_tensors(tensors, selection, read(), ridge)

    run = compose_config(["name=slice", f"prune/method={method}", "data.sequence_length=64"])
    run.engine.micro_batch_sequences = 2
    estimate = estimate_memory(selection.target, run, 1, "slice", parent=source)
    assert not is_off(estimate.total() / allocated_peak(cut) - 1), estimate


def _searching(folder: Path) -> tuple[int, float]:
    """Measure what a rank allocates while shapes are measured, and what was announced (collective)."""
    with process_group("cpu", timeout_minutes=5) as group:
        config = compose_config(["name=shapes", "prune.shapes=layers", "data.sequence_length=64"])
        config.engine.micro_batch_sequences, config.recover.validation_sequences = 4, 8
        parent, geometry = folder / "parent", geometry_of(folder / "parent")
        selection = random_selection(parent, head_dim=geometry.head_dim, intermediate_size=geometry.intermediate_size)
        job: Any = SimpleNamespace(config=config, group=group)
        tokens = torch.randint(0, geometry.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
        store: Any = SimpleNamespace(
            sequences=lambda positions: tokens[positions],
            counted=lambda positions: None,
            position_ids=lambda positions: None,
            num_targets=lambda positions: len(positions) * 63,
        )
        positions = torch.arange(8)

        @torch.no_grad()
        def search() -> None:
            with open_engine(parent, config.engine, group) as engine:
                head = engine.output_weight()
                turns = [tokens[slice(*turn)] for turn in micro_batches(8, 4, group.rank, group.world_size) if turn]
                hidden = [next(iter(engine.final_hidden([turn]))).clone() for turn in turns]
            teachings = [Teaching(hidden=each, head=head, weight=1.0, temperature=1.0) for each in hidden]
            orders = [[0, 1]] * geometry.num_layers
            fits = Fits(job, parent, folder / "gram", selection, orders, lambda layer, width: torch.arange(width))
            with open_engine(parent, config.engine, group) as engine, narrowing(engine.module, fits.current):
                for width in (1232, 1056, 880):
                    narrower = Widths(num_key_value_heads=1, intermediate_size=width)
                    fits.take(geometry.with_layers([narrower] * geometry.num_layers))
                    mean_loss(engine, store, positions, 4, group, teachings=teachings)

        measured = min(allocated_peak(search) for _ in range(2))
        return measured, estimate_memory(geometry, config, group.world_size, "shapes", parent=geometry).total()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_search_for_shapes_needs_what_is_announced(tmp_path: Path, ranks: int) -> None:
    """Three widths of every layer were tried, so that all the fits are there that a search remembers."""
    write_model(
        tmp_path / "parent", hidden_size=128, intermediate_size=1408, head_dim=32, num_hidden_layers=4, vocab_size=1024
    )
    (tmp_path / "gram").mkdir()
    for layer in range(4):
        gram = LayerGram(attention_output=torch.eye(128), intermediate=torch.eye(1408))
        save_file(
            {name: each.float() for name, each in gram.to_tensors().items()}, tmp_path / "gram" / file_name(layer)
        )
    for measured, estimated in run_on_ranks(ranks, _searching, tmp_path):
        assert estimated / measured == pytest.approx(1, abs=0.1), (measured, estimated)
