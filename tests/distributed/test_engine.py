"""ZeRO-3 for real: what a rank holds, what it reads, and that nothing is left when it is closed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.support.commands import Workplace
from tests.support.configs import compose_config
from tests.support.ranks import run_on_ranks
from tests.support.selections import hand_selection
from tests.support.tiny import write_model
from tests.support.tiny_families import FAMILIES, write_family_model

MEGABYTE = 1024**2


def engine_config(**changes: Any) -> Any:
    from transact.config.machines import EngineConfig

    return EngineConfig(**({"micro_batch_sequences": 2, "device": "cpu"} | changes))


def training() -> Any:
    from transact.engine.deepspeed_setup import TrainingSettings

    return TrainingSettings(
        gradient_accumulation_steps=1, learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95), gradient_clipping=1.0
    )


def each_engine(
    group: Any, model: Path, configurations: list[tuple[int, str]]
) -> Iterator[tuple[tuple[int, str], Any]]:
    """(stage, dtype) and a training engine of it, one after the other."""
    from transact.engine.engine import open_engine

    for stage, dtype in configurations:
        config = engine_config(zero_stage=stage, dtype=dtype)
        with open_engine(model, config, group, training=training()) as engine:
            yield (stage, dtype), engine


def some_tokens(rank: int, vocab_size: int = 512, length: int = 32) -> torch.Tensor:
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(rank))


def rank_share(model: Path) -> dict[str, Any]:
    """After two training steps: elements that this rank holds of weights, gradients and optimizer states."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine

    with (
        process_group("cpu", 5) as group,
        deepspeed_optimizers() as optimizers,
        open_engine(model, engine_config(), group, training=training()) as engine,
    ):
        (optimizer,) = optimizers
        for _ in range(2):
            loss = engine.loss(some_tokens(group.rank))
            engine.backward(loss)
            gradients = sum(part.numel() for parts in optimizer.averaged_gradients.values() for part in parts)
            engine.step(1e-3)
        parameters = list(engine.module.parameters())
        return {
            "whole": sum(parameter.ds_numel for parameter in parameters),
            "outside": sum(parameter.numel() for parameter in parameters),
            "weights": sum(parameter.ds_tensor.numel() for parameter in parameters),
            "gradients": gradients,
            "masters": sum(flat.numel() for flat in optimizer.fp32_partitioned_groups_flat),
            "moments": sum(
                state[name].numel()
                for state in optimizer.optimizer.state.values()
                for name in ("exp_avg", "exp_avg_sq")
            ),
        }


@contextmanager
def deepspeed_optimizers() -> Iterator[list[Any]]:
    """The optimizers of the engines that are opened inside, as `deepspeed.initialize` returns them."""
    import deepspeed

    made: list[Any] = []
    initialize = deepspeed.initialize

    def noted(*given: Any, **named: Any) -> Any:
        found = initialize(*given, **named)
        made.append(found[1])
        return found

    with patch.object(deepspeed, "initialize", noted):
        yield made


def test_weights_gradients_and_optimizer_are_partitioned(workplace: Workplace) -> None:
    for held in run_on_ranks(2, rank_share, workplace.model):
        half = held["whole"] / 2
        assert held["outside"] == 0, "a parameter is whole on this rank"
        for part in ("weights", "gradients", "masters"):
            assert half <= held[part] <= 1.05 * half, part
        assert 2 * half <= held["moments"] <= 2.1 * half


def four_rounds(model: Path) -> dict[str, Any]:
    """Open, take two steps, close, four times over; what is alive afterwards."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine

    alive, resident = [], []
    with process_group("cpu", 5) as group, deepspeed_optimizers() as optimizers:
        for _ in range(4):
            with open_engine(model, engine_config(), group, training=training()) as engine:
                for _ in range(2):
                    engine.backward(engine.loss(some_tokens(group.rank)))
                    engine.step(1e-3)
                watched = [weakref.ref(parameter) for parameter in engine.module.parameters()]
                watched += [weakref.ref(engine.module), weakref.ref(optimizers.pop())]
            del engine
            gc.collect()
            alive.append(sum(reference() is not None for reference in watched))
            resident.append(resident_bytes())
    return {"alive": alive, "resident": resident}


def test_a_closed_engine_is_gone(tmp_path: Path) -> None:
    """Neither objects survive nor their memory: three leaked engines, of 40 MB a rank, would be 120 MB."""
    model = write_model(tmp_path / "model", hidden_size=256, intermediate_size=2048, num_hidden_layers=3, head_dim=64)
    for held in run_on_ranks(2, four_rounds, model):
        assert held["alive"] == [0, 0, 0, 0]
        assert held["resident"][3] - held["resident"][0] < 60 * MEGABYTE, "the allocator alone keeps up to about 25"


def resident_bytes(field: str = "RssAnon") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


class PeakMemory:
    """Anonymous memory above what was there at the start, sampled every 2 ms. Mapped files do not count."""

    def __enter__(self) -> PeakMemory:
        import threading

        gc.collect()
        self.start = self.peak = resident_bytes()
        self.running = True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        import time

        while self.running:
            self.peak = max(self.peak, resident_bytes())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        self.bytes = self.peak - self.start


LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 4096,
}


def peaks(model: Path, output: Path, warm_up: Path) -> dict[str, int]:
    """Peak bytes of this rank while it loads a model for inference, and while it slices it."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.files import read_json
    from transact.models.llama import read_geometry
    from transact.stages.slice import slice_in_parallel

    source = read_geometry(read_json(model / "config.json"))
    dims, channels = [[range(64)] * 8] * 8, [range(1536)] * 8
    selection = hand_selection(source, range(32), dims, channels)
    with process_group("cpu", 5) as group:
        with open_engine(warm_up, engine_config(), group):
            pass  # imports and DeepSpeed's own start are not the model's memory
        with PeakMemory() as loading, open_engine(model, engine_config(), group):
            pass
        with PeakMemory() as slicing:
            job: Any = SimpleNamespace(config=compose_config(["name=large", "prune/method=norms"]), group=group)
            slice_in_parallel(job, model, selection, output, grams=output)
    return {"loading": loading.bytes, "slicing": slicing.bytes}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("large") / "model", **LARGE)


def test_no_rank_holds_the_model_while_loading_and_slicing(large: Path, workplace: Workplace, tmp_path: Path) -> None:
    """At most its own share and two layers, and 40 MB for what allocators and DeepSpeed's buffers take."""
    whole = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    layer = 4 * (4 * 1024 * 1024 + 3 * 1024 * 3072)
    allowed = whole / 2 + 2 * layer + 40 * MEGABYTE
    assert allowed < 0.85 * whole, "the test would not notice a whole model"
    for held in run_on_ranks(2, peaks, large, tmp_path / "sliced", workplace.model):
        assert held["loading"] <= allowed, f"{held['loading'] / MEGABYTE:.0f} of {allowed / MEGABYTE:.0f} MB"
        assert held["slicing"] <= allowed, f"{held['slicing'] / MEGABYTE:.0f} of {allowed / MEGABYTE:.0f} MB"


CONFIGURATIONS = [(stage, dtype) for stage in range(4) for dtype in ("float32", "bfloat16")]


def exactness(model: Path) -> dict[str, Any]:
    """For every stage and dtype: weights as loaded; after damage was undone the losses of forwards, the weights, and
    what is left of Adam's mean of gradients."""
    from transact.distributed.process import process_group

    found = {}
    with process_group("cpu", 5) as group:
        for configuration, engine in each_engine(group, model, CONFIGURATIONS):
            as_loaded = weights_of(engine)
            rotary = {str(each.dtype) for name, each in engine.module.named_buffers() if "inv_freq" in name}
            snapshot = engine.snapshot()
            for _ in range(2):
                engine.backward(engine.loss(some_tokens(group.rank)))
                engine.step(0.5)
            damaged = any(bool((part != snapshot[name]).any()) for name, part in engine.snapshot().items())
            with torch.no_grad():
                engine.loss(some_tokens(0))  # as a validation does, which leaves weights gathered: none came earlier
            engine.go_back(snapshot)
            mean = max(float(each.exp_avg.abs().max()) for each in engine.fragments().values())
            at_once = float(engine.loss(some_tokens(0)).detach())
            restored = weights_of(engine)
            losses = at_once, float(engine.loss(some_tokens(0)).detach())
            found[configuration] = (as_loaded, losses, rotary, damaged, restored, mean)
    return found


def weights_of(engine: Any) -> dict[str, Any]:
    return {name: engine.full_weight(parameter).float().numpy().copy() for name, parameter in engine.named_parameters()}


@pytest.fixture(scope="module")
def exact(workplace: Workplace) -> list[dict[Any, Any]]:
    """On three ranks, which divide no tensor evenly."""
    return run_on_ranks(3, exactness, workplace.model)


@pytest.mark.parametrize(("stage", "dtype"), CONFIGURATIONS)
def test_loading_is_exact_and_damage_can_be_undone(
    stage: int, dtype: str, exact: list[dict[Any, Any]], workplace: Workplace
) -> None:
    """Bit for bit what the folder holds, in bfloat16 too: there the float32 masters must not be rounded, and the
    rotary frequencies must stay float32. Going back to a snapshot is as exact."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workplace.model, dtype=torch.float32)
    with torch.no_grad():
        expected_loss = float(model(input_ids=some_tokens(0), labels=some_tokens(0)).loss)
    expected = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    for results in exact:
        as_loaded, losses, rotary, damaged, restored, mean = results[stage, dtype]
        assert as_loaded.keys() == expected.keys()
        for name, weight in expected.items():
            assert (as_loaded[name] == weight).all(), name
            assert (restored[name] == weight).all(), name
        assert damaged
        assert rotary == {"torch.float32"}
        assert mean == 0.0
        assert losses == pytest.approx(2 * [expected_loss], rel=1e-5 if dtype == "float32" else 1e-2)


MICRO_BATCHES = 16


def summing_errors(model: Path) -> dict[int, float]:
    """ZeRO stage -> largest relative error of a gradient that the engine summed over micro-batches."""
    from transact.distributed.process import process_group

    found = {}
    with process_group("cpu", 5) as group:
        for stage in (1, 2, 3):
            each = gradients(model, group, stage, micro_batches=1)
            (summed,) = gradients(model, group, stage, micro_batches=MICRO_BATCHES)
            exact = {name: sum(one[name] for one in each) / MICRO_BATCHES for name in summed}
            found[stage] = max(float((summed[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
    return found


def gradients(model: Path, group: Any, stage: int, micro_batches: int) -> list[dict[str, torch.Tensor]]:
    """Name -> gradient, float64, of each step over `MICRO_BATCHES` micro-batches in all; no step changes a weight."""
    from dataclasses import replace

    from transact.engine.engine import open_engine

    # Without a memory Adam's mean of gradients is the last one.
    settings = replace(training(), gradient_accumulation_steps=micro_batches, gradient_clipping=0.0, betas=(0.0, 0.95))
    found = []
    config = engine_config(zero_stage=stage, dtype="bfloat16")
    with open_engine(model, config, group, training=settings) as engine:
        for number in range(MICRO_BATCHES):
            engine.backward(engine.loss(some_tokens(number)))
            engine.step(0.0)
            if (number + 1) % micro_batches == 0:
                found.append({name: each.exp_avg.double() for name, each in engine.fragments().items()})
    return found


def test_gradients_of_micro_batches_are_summed_in_float32(workplace: Workplace) -> None:
    """In bfloat16 the sum would be off by more than 1e-3."""
    (found,) = run_on_ranks(1, summing_errors, workplace.model)
    assert max(found.values()) < 1e-6, found


def gathers_by_family(models: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """Family -> all-gathers of a micro-batch once DeepSpeed knows the order of modules, and layers of the model."""
    from benchmarks.engine_work import GATHERS, counting
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine

    found = {}
    with process_group("cpu", 5) as group:
        for family, model in models.items():
            config = engine_config(prefetch_elements=0, live_elements=0)
            with open_engine(model, config, group, training=training()) as engine:
                for _ in range(3):
                    with counting() as counted:
                        engine.backward(engine.loss(some_tokens(group.rank, vocab_size=64)))
                    engine.step(1e-3)
            found[family] = sum(counted.calls[name] for name in GATHERS), engine_layers(model)
    return found


def engine_layers(model: Path) -> int:
    from transact.models.folder import geometry_of

    return geometry_of(model).num_layers


def test_every_family_is_gathered_by_layers(tmp_path: Path) -> None:
    """A layer at once in the forward and in the backward, and around them embedding, last norm and output layer."""
    models = {family: write_family_model(tmp_path / family, family) for family in FAMILIES}
    for gathers, layers in run_on_ranks(2, gathers_by_family, models)[0].values():
        assert 2 * layers <= gathers <= 2 * layers + 6


def refusal_of(settings: dict[str, Any]) -> str | None:
    from transact.distributed.process import process_group
    from transact.engine.deepspeed_setup import check_deepspeed_settings

    with process_group("cpu", 5):
        try:
            check_deepspeed_settings(engine_config(deepspeed=settings))
        except ValueError as error:
            return str(error)
    return None


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"zero_optimization.overlap_comm": False, "wall_clock_breakdown": True}, None),
        ({"zero_optimization.overlap_com": False}, "engine.deepspeed.zero_optimization.overlap_com=false is not"),
        ({"zero_optimization.overlap_comm": "perhaps"}, "engine.deepspeed.zero_optimization.overlap_comm='perhaps'"),
    ],
)
def test_settings_that_deepspeed_does_not_take_are_refused(settings: dict[str, Any], refused: str | None) -> None:
    (found,) = run_on_ranks(1, refusal_of, settings)
    assert (found is None) if refused is None else found is not None and found.startswith(refused)
