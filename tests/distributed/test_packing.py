"""Engines that are told where documents begin, against stock transformers given each document alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.support.ranks import run_on_ranks
from tests.support.tiny import write_model

LENGTHS = ((7, 1, 16), (1, 1, 20, 2), (24,), (12, 12))  # of the documents in each sequence
TOKENS = torch.randint(0, 512, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in LENGTHS])
MICRO_BATCH = 2


def engine_config(**changes: Any) -> Any:
    from transact.config.machines import EngineConfig

    return EngineConfig(micro_batch_sequences=MICRO_BATCH, device="cpu", **changes)


def computed(model: Path, attention: str, dtype: str) -> dict[str, Any]:
    """Losses of micro-batches, and hidden states of them together and alone; one training step is made before."""
    from tests.distributed.test_engine import training
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine

    batch, position_ids = list(TOKENS.split(MICRO_BATCH)), list(POSITIONS.split(MICRO_BATCH))
    with process_group("cpu", 5) as group:
        config = engine_config(attention=attention, dtype=dtype)
        with open_engine(model, config, group, training=training()) as engine:
            losses = []
            for tokens, positions in zip(batch, position_ids, strict=True):
                loss = engine.loss(tokens, None, positions > 0, positions)
                engine.backward(loss)
                losses.append(float(loss.detach()))
        with open_engine(model, config, group) as engine:
            together = engine.final_hidden(batch, position_ids)
            alone = [engine.final_hidden([each], [own])[0] for each, own in zip(batch, position_ids, strict=True)]
        hidden = [torch.cat(list(each)).float().numpy() for each in (together, alone)]
    return {"losses": losses, "together": hidden[0], "alone": hidden[1]}


def documents(sequences: range) -> list[torch.Tensor]:
    return [part.unsqueeze(0) for number in sequences for part in TOKENS[number].split(LENGTHS[number])]


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [("sdpa", "float32", 1e-5), ("eager", "float32", 1e-5), ("sdpa", "bfloat16", 0.05)],
)
def test_losses_and_hidden_states_are_those_of_the_documents(
    tmp_path: Path, attention: str, dtype: str, tolerance: float
) -> None:
    """Of weights that are sharded over two ranks; several micro-batches of the teacher at once, too."""
    from transformers import LlamaForCausalLM

    folder = write_model(tmp_path / "model")
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses, hidden = [], []
    with torch.no_grad():
        for first in range(0, len(LENGTHS), MICRO_BATCH):
            parts = documents(range(first, first + MICRO_BATCH))
            logits = torch.cat([model(each).logits[0, :-1] for each in parts])
            losses.append(float(functional.cross_entropy(logits, torch.cat([each[0, 1:] for each in parts]))))
            hidden += [model.model(each).last_hidden_state[0] for each in parts]
    expected = torch.cat(hidden).view(len(LENGTHS), 24, -1).numpy()
    for found in run_on_ranks(2, computed, folder, attention, dtype):
        assert found["losses"] == pytest.approx(losses, rel=tolerance)
        assert abs(found["alone"] - expected).max() < tolerance * 10
        assert (found["together"] == found["alone"]).all()


def taylor(model: Path, is_packed: bool) -> Any:
    """The sum of absolute gradients of gates on MLP channels, over sequences."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.models.folder import geometry_of
    from transact.models.hooks import collect_statistics
    from transact.pruning.pair_scores import TAYLOR_CHANNELS

    with (
        process_group("cpu", 5) as group,
        open_engine(model, engine_config(), group) as engine,
        collect_statistics(engine.module, geometry_of(model), (TAYLOR_CHANNELS,)) as collector,
    ):
        for own in torch.arange(len(LENGTHS)).split(MICRO_BATCH):
            engine.differentiate(TOKENS[own], POSITIONS[own] if is_packed else None)
        return collector.statistics(TOKENS.numel())[TAYLOR_CHANNELS].numpy()


def test_gradients_of_calibration_are_those_of_the_documents(tmp_path: Path) -> None:
    """Of each sequence: the loss of its documents over the tokens that one of a single document would predict."""
    from transformers import LlamaForCausalLM

    folder = write_model(tmp_path / "model")
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []

    def keep(_module: Any, inputs: tuple[torch.Tensor]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(keep)
    expected = torch.zeros(160, dtype=torch.float64)
    for number in range(len(LENGTHS)):
        gates = torch.zeros(160, dtype=torch.float64)
        for tokens in documents(range(number, number + 1)):
            if tokens.shape[1] > 1:
                logits = model(tokens).logits[0, :-1]
                (functional.cross_entropy(logits, tokens[0, 1:], reduction="sum") / 23).backward()
                gates += (seen[-1].detach() * seen[-1].grad).sum(dim=(0, 1)).double()
        expected += gates.abs()
    (found,) = run_on_ranks(1, taylor, folder, True)
    assert abs(found[1] - expected.numpy()).max() < 1e-4 * expected.max()
    (other,) = run_on_ranks(1, taylor, folder, False)
    assert abs(other[1] - expected.numpy()).max() > 1e-2 * expected.max()
