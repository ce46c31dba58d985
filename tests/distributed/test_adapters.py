"""Recovery by adapters on real ranks: only they are trained, at every stage, resumed exactly, merged as peft does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_engine import CONFIGURATIONS, engine_config, some_tokens
from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks
from transact.config.pruning import PROJECTIONS
from transact.models.adapters import AdaptedReader, Adapters, inject
from transact.models.tensor_files import ModelReader

ADAPTERS = Adapters(rank=4, alpha=8.0, targets=PROJECTIONS)
STEPS, SAVED_AFTER = 5, 3
RATE = 1e-2


def opened(model: Path, configuration: tuple[int, str], group: Any) -> Any:
    from transact.engine.deepspeed_setup import TrainingSettings
    from transact.engine.engine import open_engine

    stage, dtype = configuration
    settings = TrainingSettings(
        gradient_accumulation_steps=1,
        learning_rate=RATE,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        gradient_clipping=1.0,
        adapters=ADAPTERS,
    )
    config = engine_config(zero_stage=stage, dtype=dtype, activation_checkpointing=stage == 3)
    return open_engine(model, config, group, training=settings)


def train(engine: Any, group: Any, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        loss = engine.loss(some_tokens(2 * (step % 2) + group.rank))
        engine.backward(loss)
        assert engine.step(RATE)
        losses.append(float(group.sum(loss.detach().double())) / group.world_size)
    return losses


def whole(engine: Any) -> dict[str, Any]:
    return {name: engine.full_weight(each).float().numpy().copy() for name, each in engine.trained_parameters()}


def work(model: Path, folder: Path) -> dict[Any, Any]:
    """Configuration -> what a training, its continuation from a checkpoint, and the saved models are."""
    from transact.distributed.process import process_group
    from transact.engine.model_folder import save_engine
    from transact.engine.training_checkpoints import load_training, save_training

    found: dict[Any, Any] = {}
    with process_group("cpu", 5) as group:
        for configuration in CONFIGURATIONS:
            place = folder / "{}_{}".format(*configuration)
            checkpoint = place / "checkpoints" / "step_3"

            def save(engine: Any, name: str, place: Path = place) -> None:
                save_engine(engine, place / name, group, source=model, dtype="float32", adapters=ADAPTERS)

            with opened(model, configuration, group) as engine:
                start, first = engine.snapshot(), whole(engine)
                frozen = {name: each for name, each in engine.named_parameters() if not each.requires_grad}
                before = {name: engine.full_weight(each).clone() for name, each in frozen.items()}
                losses = train(engine, group, 0, SAVED_AFTER)
                save_training(engine, checkpoint, group, best=start, position={})
                losses += train(engine, group, SAVED_AFTER, STEPS)
                trained = whole(engine)
                save(engine, "trained")
                same = all(torch.equal(engine.full_weight(each), before[name]) for name, each in frozen.items())
                engine.go_back(start)
                gone_back = float(group.sum(engine.loss(some_tokens(group.rank)).detach().double())) / group.world_size
                save(engine, "gone_back")
            with opened(model, configuration, group) as engine:
                best = load_training(engine, checkpoint, group)
                resumed = train(engine, group, SAVED_AFTER, STEPS)
                as_resumed = whole(engine)
                engine.restore(best)
                as_best = whole(engine)
            found[configuration] = {
                "names": sorted(trained),
                "first": first,
                "trained": trained,
                "losses": losses,
                "frozen_same": same,
                "gone_back": gone_back,
                "resumed": resumed,
                "resumed_same": all((as_resumed[name] == each).all() for name, each in trained.items()),
                "best_same": all((as_best[name] == each).all() for name, each in first.items()),
            }
    return found


@pytest.fixture(scope="module")
def done(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("adapters")
    return folder, run_on_ranks(2, work, workplace.model, folder)[0]


@pytest.mark.parametrize(("stage", "dtype"), CONFIGURATIONS)
def test_adapters_alone_are_trained_and_go_on_bit_for_bit(
    stage: int, dtype: str, done: tuple[Path, dict[Any, Any]]
) -> None:
    found = done[1][stage, dtype]
    assert len(found["names"]) == 2 * 2 * len(PROJECTIONS)  # A and B, two layers
    assert all(".lora_" in name for name in found["names"])
    assert found["frozen_same"]
    assert all((found["trained"][name] != found["first"][name]).any() for name in found["names"])
    assert found["losses"][2] < found["losses"][0]  # on the same text
    assert found["losses"][3] < found["losses"][1]
    assert found["gone_back"] == pytest.approx(found["losses"][0], abs=0)
    assert found["resumed"] == found["losses"][SAVED_AFTER:]
    assert found["resumed_same"]
    assert found["best_same"]
    # Every way of sharding computes the same.
    tolerance = 1e-5 if dtype == "float32" else 0.02
    assert found["losses"][:2] == pytest.approx(done[1][0, "float32"]["losses"][:2], rel=tolerance)


@pytest.mark.parametrize(("stage", "dtype"), CONFIGURATIONS)
def test_what_is_saved_is_what_peft_merges(
    stage: int, dtype: str, done: tuple[Path, dict[Any, Any]], workplace: Workplace
) -> None:
    """Into weights as the folder stores them, also where the engine computed with rounded ones; without training it is
    the folder itself."""
    from transformers import AutoModelForCausalLM

    folder, found = done[0] / f"{stage}_{dtype}", done[1][stage, dtype]
    model = AutoModelForCausalLM.from_pretrained(workplace.model, dtype=torch.float32)
    inject(model, ADAPTERS)
    with ModelReader(workplace.model) as stored:
        reader = AdaptedReader(stored, ADAPTERS)
        for name, parameter in model.named_parameters():
            values = torch.from_numpy(found["trained"][name]) if ".lora_" in name else reader.tensor(name)
            parameter.data.copy_(values)
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.merge()
        expected = {name.replace(".base_layer", ""): each.detach() for name, each in model.named_parameters()}
        with ModelReader(folder / "trained") as saved, ModelReader(folder / "gone_back") as gone_back:
            assert set(saved.files) == set(stored.files)
            for name in stored.files:
                torch.testing.assert_close(saved.tensor(name), expected[name], rtol=1e-6, atol=1e-6)
                assert torch.equal(saved.tensor(name), stored.tensor(name)) == (not ADAPTERS.adapts(name))
                assert torch.equal(gone_back.tensor(name), stored.tensor(name))
