"""Checkpoints inside a recovery: exact on the same ranks, readable on any number, and damage is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_engine import CONFIGURATIONS, each_engine, some_tokens, weights_of
from tests.support.apart import anonymous_growth, in_a_file
from tests.support.commands import Workplace
from tests.support.exported import write_exported
from tests.support.ranks import run_on_ranks
from transact.engine.sharded_state import KINDS, Fragment
from transact.geometry import Widths
from transact.models.shard_writer import WRITE_BUFFER_BYTES

STEPS, SAVED_AFTER = 6, 3


def train(engine: Any, group: Any, first: int, last: int) -> list[float]:
    """Global steps [first, last) on batches of four sequences that depend on the step alone."""
    losses = []
    for step in range(first, last):
        tokens = torch.cat([some_tokens(2 * step), some_tokens(2 * step + 1)])
        loss = engine.loss(tokens[group.rank :: group.world_size])
        engine.backward(loss)
        engine.step(1e-3)
        losses.append(float(group.sum(loss.detach().double())) / group.world_size)
    return losses


def the_rest(engine: Any, group: Any, losses: list[float], best: Any) -> tuple[list[float], Any, Any]:
    """The steps after the checkpoint: losses, final weights, and the best ones, put back."""
    losses = losses + train(engine, group, SAVED_AFTER, STEPS)
    final = weights_of(engine)
    engine.restore(best)
    return losses, final, weights_of(engine)


def checkpoint_of(folder: Path, configuration: tuple[int, str]) -> Path:
    stage, dtype = configuration
    return folder / f"{stage}_{dtype}" / "step_3"


def undisturbed(model: Path, folder: Path, configurations: list[tuple[int, str]]) -> dict[Any, Any]:
    """Saves on the way, and goes on: configuration -> losses, final weights, best weights."""
    from transact.distributed.process import process_group
    from transact.engine.training_checkpoints import save_training

    found = {}
    with process_group("cpu", 5) as group:
        for configuration, engine in each_engine(group, model, configurations):
            losses = train(engine, group, 0, 1)
            best = engine.snapshot()
            losses += train(engine, group, 1, SAVED_AFTER)
            save_training(
                engine, checkpoint_of(folder, configuration), group, best=best, position={"step": SAVED_AFTER}
            )
            found[configuration] = the_rest(engine, group, losses, best)
    return found


def resumed(model: Path, folder: Path, configurations: list[tuple[int, str]]) -> dict[Any, Any]:
    """Starts from the checkpoint, in an engine of its own: configuration -> losses, final weights, best weights."""
    from transact.distributed.process import process_group
    from transact.engine.training_checkpoints import damage, load_training

    found = {}
    with process_group("cpu", 5) as group:
        for configuration, engine in each_engine(group, model, configurations):
            checkpoint = checkpoint_of(folder, configuration)
            assert damage(checkpoint, group) is None
            best = load_training(engine, checkpoint, group)
            found[configuration] = the_rest(engine, group, [], best)
    return found


@pytest.fixture(scope="module")
def saved(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run_on_ranks(2, undisturbed, workplace.model, folder, CONFIGURATIONS)[0]


def assert_goes_on_bit_for_bit(model: Path, folder: Path, expected: dict[Any, Any]) -> None:
    for results in run_on_ranks(2, resumed, model, folder, list(expected)):
        for configuration, (losses, final, best) in results.items():
            all_losses, expected_final, expected_best = expected[configuration]
            assert losses == all_losses[SAVED_AFTER:], configuration
            for name, weight in expected_final.items():
                assert (final[name] == weight).all(), (configuration, name)
                assert (best[name] == expected_best[name]).all(), (configuration, name)


def test_the_same_ranks_go_on_bit_for_bit(saved: tuple[Path, dict[Any, Any]], workplace: Workplace) -> None:
    assert_goes_on_bit_for_bit(workplace.model, *saved)


def test_layers_that_differ_go_on_under_every_stage_and_learn_the_same(tmp_path: Path) -> None:
    """MLP widths and heads of every layer: each stage and a single rank train alike, and resume bit for bit."""
    widths = [Widths(num_key_value_heads=heads, intermediate_size=size) for heads, size in ((1, 160), (2, 32))]
    model = write_exported(tmp_path, {"head_dim": 8, "widths": widths})
    stages = [(stage, "float32") for stage in range(4)]
    expected = run_on_ranks(2, undisturbed, model, tmp_path / "saved", stages)[0]
    assert_goes_on_bit_for_bit(model, tmp_path / "saved", expected)
    (alone,) = run_on_ranks(1, undisturbed, model, tmp_path / "alone", stages[:1])
    losses, final, best = next(iter(alone.values()))
    assert all((final[name] != best[name]).any() for name in final)  # those of the last step and of the first
    for configuration, found in expected.items():
        assert found[0] == pytest.approx(losses, rel=1e-5), configuration


@pytest.mark.parametrize("ranks", [1, 4])
def test_another_number_of_ranks_goes_on_alike(
    ranks: int, saved: tuple[Path, dict[Any, Any]], workplace: Workplace
) -> None:
    folder, expected = saved
    configurations = [(3, "float32"), (2, "float32"), (0, "float32")]
    results = run_on_ranks(ranks, resumed, workplace.model, folder, configurations)[0]
    for configuration, (losses, final, best) in results.items():
        all_losses, expected_final, expected_best = expected[configuration]
        assert losses == pytest.approx(all_losses[SAVED_AFTER:], rel=1e-5), configuration
        for name, weight in expected_final.items():
            assert abs(final[name] - weight).max() < 1e-4, (configuration, name)
            assert (best[name] == expected_best[name]).all(), (configuration, name)


def broken_gradients(model: Path) -> dict[Any, Any]:
    """A loss of one rank is not a number: configuration -> what `step` said, and whether weights stayed."""
    from transact.distributed.process import process_group

    found = {}
    with process_group("cpu", 5) as group:
        for configuration, engine in each_engine(group, model, CONFIGURATIONS):
            train(engine, group, 0, 2)
            before, steps = weights_of(engine), engine.adam_steps
            loss = engine.loss(some_tokens(group.rank))
            engine.backward(loss * float("nan") if group.rank == 1 else loss)
            applied = engine.step(1e-3)
            after = weights_of(engine)
            same = all((after[name] == weight).all() for name, weight in before.items())
            engine.backward(engine.loss(some_tokens(group.rank)))
            next_applied = engine.step(1e-3)
            moved = any((weights_of(engine)[name] != weight).any() for name, weight in before.items())
            found[configuration] = (applied, same, engine.adam_steps - steps, next_applied, moved)
    return found


def test_a_gradient_that_is_no_number_changes_nothing(workplace: Workplace) -> None:
    for results in run_on_ranks(2, broken_gradients, workplace.model):
        for configuration, outcome in results.items():
            assert outcome == (False, True, 1, True, True), configuration


def damaged(folder: Path) -> str | None:
    from transact.distributed.process import process_group
    from transact.engine.training_checkpoints import damage

    with process_group("cpu", 5) as group:
        return damage(folder, group)


def test_damage_is_named(saved: tuple[Path, dict[Any, Any]]) -> None:
    folder, _ = saved
    checkpoint = checkpoint_of(folder, (3, "float32"))
    file = checkpoint / "state-00001-of-00002.safetensors"
    content = file.read_bytes()
    for broken, expected in (
        (content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
        (content[:1000], f"has 1000 of {len(content)} bytes"),
    ):
        file.write_bytes(broken)
        found = run_on_ranks(2, damaged, checkpoint)
        assert found[0] == found[1]
        assert file.name in found[0]
        assert expected in found[0]
    file.unlink()
    file.symlink_to(file)  # stands for blocks that the disk cannot give back: reading fails
    assert "cannot be read" in run_on_ranks(2, damaged, checkpoint)[0]
    file.unlink()
    file.write_bytes(content)
    manifest = checkpoint / "manifest.json"
    intact = manifest.read_text()
    for broken in (intact[:-20], intact.replace('"adam_steps": ', '"adam_steps": 1')):
        manifest.write_text(broken)
        assert run_on_ranks(2, damaged, checkpoint) == ["manifest.json is not as it was written"] * 2
    manifest.write_text(intact)
    assert run_on_ranks(2, damaged, checkpoint) == [None, None]


ELEMENTS = 50_000_000  # of each of weight and moments: 600 MB together


class OnADevice:
    """What `save_training` asks of an engine: fragments on a device, here a stand-in for one."""

    is_replicated = False
    adam_steps = 7

    def __init__(self, folder: Path) -> None:
        self._kinds = {kind: in_a_file(folder / kind, ELEMENTS) for kind in KINDS}

    def fragments(self) -> dict[str, Fragment]:
        return {"embedding": Fragment(start=0, **self._kinds)}


def growth_of_a_save(folder: Path) -> tuple[int, bool]:
    """How far the process's own memory rises while a checkpoint is written, and whether it holds what it should."""
    from transact.distributed.process import process_group
    from transact.engine.training_checkpoints import damage, open_ranges, save_training

    with process_group("cpu", 5) as group:
        engine: Any = OnADevice(folder)
        checkpoint = folder / "checkpoint"
        with anonymous_growth() as risen:
            save_training(engine, checkpoint, group, best=None, position={"step": 1})
            growth = risen()
        same = damage(checkpoint, group) is None
        with open_ranges([checkpoint / "state-00000-of-00001.safetensors"]) as ranges:
            for kind, tensor in engine._kinds.items():
                same &= torch.equal(ranges.read("embedding", kind, 0, ELEMENTS), tensor.inner)
        return growth, same


def test_a_save_needs_a_buffer_and_not_the_state_again(tmp_path: Path) -> None:
    ((growth, same),) = run_on_ranks(1, growth_of_a_save, tmp_path)
    assert same
    assert WRITE_BUFFER_BYTES / 2 < growth < 150e6


def offloaded(model: Path, folder: Path) -> dict[Any, Any]:
    """Configuration -> losses of six steps on the device, with the optimizer offloaded, and resumed on the way."""
    from tests.distributed.test_engine import engine_config, training
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.engine.training_checkpoints import load_training, save_training

    found = {}
    with process_group("cpu", 5) as group:
        for stage, dtype in ((1, "bfloat16"), (2, "float32"), (3, "bfloat16")):
            checkpoint = checkpoint_of(folder, (stage, dtype))
            losses = []
            for offload in (None, "cpu", "cpu"):
                config = engine_config(zero_stage=stage, dtype=dtype, offload_optimizer=offload)
                with open_engine(model, config, group, training=training()) as engine:
                    begins = SAVED_AFTER if len(losses) == 2 else 0
                    if begins:
                        load_training(engine, checkpoint, group)
                    first = train(engine, group, begins, SAVED_AFTER)
                    if offload and not begins:
                        save_training(engine, checkpoint, group, best=None, position={})
                    losses.append(first + train(engine, group, SAVED_AFTER, STEPS))
            found[stage, dtype] = losses
    return found


def test_an_offloaded_optimizer_trains_alike_and_resumes_bit_for_bit(workplace: Workplace, tmp_path: Path) -> None:
    """On ranks without GPUs both memories are the same; the way that DeepSpeed takes is the one of a GPU."""
    for results in run_on_ranks(2, offloaded, workplace.model, tmp_path):
        for configuration, (on_device, offload, resumed_losses) in results.items():
            assert offload == pytest.approx(on_device, rel=1e-3), configuration
            assert resumed_losses == offload[SAVED_AFTER:], configuration
