"""How fast is it on a GPU: training of wide layers, and the choice and refit of channels, beside what is estimated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu_place import Figures, Place, Section, gib, require, training
from benchmarks.gpu_works import RIDGE, TOKENS
from benchmarks.workload import run_config
from transact.config.accelerators import model_flops_utilisation
from transact.config.machines import ASSUMED_MFU, ATTENTION_KINDS, EngineConfig
from transact.config.pruning import MethodConfig, PruneConfig
from transact.config.run import RunConfig
from transact.engine.engine import Engine, open_engine
from transact.engine.memory import estimate_memory
from transact.geometry import Geometry
from transact.pruning.greedy_obs import greedy_obs
from transact.pruning.refit import corrected, damped, refit
from transact.rounds import outline
from transact.stages.workload import stage_flops

LEARNING_RATE = 1e-4
STEPS = 3
KINDS = [each for each in ATTENTION_KINDS if "/" not in each]  # others are fetched from the Hub
CHOLESKY_FLOPS = 1 / 3  # of channels cubed


def layers(place: Place) -> Figures:
    """Train wide layers over micro-batch, recomputation, leaf modules and attention: tokens/s, MFU, memory."""
    folder, geometry = place.model(place.size.layers)
    cases: list[Figures] = []
    for gathers_layers, attention in itertools.product((True, False), KINDS):
        if not gathers_layers and attention != KINDS[0]:
            continue  # one after the other is enough
        with ExitStack() as stack:
            if not gathers_layers:
                stack.enter_context(patch("transact.engine.construction._gather_by_layers", lambda model: None))
            try:
                config = place.engine(attention=attention)
                engine = stack.enter_context(open_engine(folder, config, place.group, training=training()))
            except (ValueError, ImportError, OSError, RuntimeError) as error:  # kernels that are not here
                cases.append({"attention": attention, "reason": str(error)})
                continue
            for recomputes, sequences in itertools.product((True, False), place.size.micro_batches):
                case = {"attention": attention, "whole_layers": gathers_layers, "recomputes": recomputes}
                cases.append(case | {"sequences": sequences} | _speed(place, engine, geometry, recomputes, sequences))
                if "reason" in cases[-1]:
                    break  # an engine that ran out of memory is not whole any more
    measured = [case for case in cases if "tokens_per_s" in case]
    require(bool(measured), f"no case could be measured: {cases}")
    best = max(measured, key=lambda case: case["tokens_per_s"])
    for case in cases:
        if place.group.is_main:
            print(f"    {_words(case)}", flush=True)
    return {"cases": cases, "best": best, "said": f"best of {len(measured)}: {_words(best)}"}


def _words(case: Figures) -> str:
    if "sequences" not in case:
        return f"{case['attention']}: {case['reason']}"
    what = f"{case['attention']}, micro-batch {case['sequences']}"
    what += ", recomputing" if case["recomputes"] else ""
    what += "" if case["whole_layers"] else ", gathered by parameters"
    if "reason" in case:
        return f"{what}: {case['reason']}"
    share = "" if case["mfu"] is None else f", MFU {case['mfu']:.1%}"
    memory = f"{gib(case['peak_bytes'])} GiB (estimate {gib(case['estimated_bytes'])})"
    return f"{what}: {case['tokens_per_s']:,.0f} tokens/s{share}, {memory}"


def _speed(place: Place, engine: Engine, geometry: Geometry, recomputes: bool, sequences: int) -> Figures:
    """Measure steps of one micro-batch; running out of memory is a result."""
    length, module = place.size.sequence_length, engine.module
    tokens = place.tokens(geometry, sequences, length)
    with recomputing(module, recomputes):

        def step() -> None:
            engine.backward(engine.loss(tokens))
            engine.step(LEARNING_RATE)

        seconds: list[float] = []
        try:
            peak = place.peak(lambda: seconds.append(place.seconds(step, STEPS)))
        except torch.OutOfMemoryError:
            if place.group.world_size > 1:
                raise  # the other ranks wait in a collective
            module.zero_grad()
            torch.cuda.empty_cache()
            return {"reason": "out of memory"}
    of_one = sequences * length / seconds[0]
    known, per_token = place.accelerator, geometry.training_flops_per_token(length)
    config = _config(place, engine_config(place, recomputes, sequences))
    return {
        "tokens_per_s": place.group.world_size * of_one,
        "mfu": None if known is None else model_flops_utilisation(per_token, of_one, known.peak_flops),
        "peak_bytes": peak,
        "estimated_bytes": estimate_memory(geometry, config, place.group.world_size, "recover").total(),
    }


def engine_config(place: Place, recomputes: bool, sequences: int) -> EngineConfig:
    return place.engine(activation_checkpointing=recomputes, micro_batch_sequences=sequences)


@contextmanager
def recomputing(module: Any, wanted: bool) -> Iterator[None]:
    """Compute activations of an open engine's model again in backwards inside the block, or keep them."""
    if wanted:
        module.activation_checkpointing_enable({"use_reentrant": False})
    else:
        module.activation_checkpointing_disable()
    yield


def _config(place: Place, engine: EngineConfig) -> RunConfig:
    sequences = engine.micro_batch * place.group.world_size
    return run_config(
        Path(place.folder, "unused"),
        model=Path(place.folder, "unused"),
        engine=engine,
        sequence_length=place.size.sequence_length,
        batch_sequences=sequences,
        num_steps=1,
        calibration_sequences=sequences,
        other_sequences=sequences,
    )


def channels(place: Place) -> Figures:
    """Choose half of a layer's channels, refit and correct them, beside a factorisation and the estimate's seconds."""
    cases = [_channel_case(place, width, outputs) for width, outputs in place.size.widths]
    return {"cases": cases, "said": "; ".join(map(_channel_words, cases))}


def _channel_case(place: Place, width: int, outputs: int) -> Figures:
    generator = torch.Generator(place.device).manual_seed(0)
    activations = torch.randn(TOKENS, width, generator=generator, device=place.device)
    activations += activations.roll(1, dims=1)
    gram, weight = activations.T @ activations, torch.randn(outputs, width, device=place.device)
    kept = torch.arange(0, width, 2, device=place.device)
    inner = gram[kept][:, kept]
    half = weight[:, kept] @ inner, inner  # as good as the weight is: no correction helps, and all are tried
    seconds: dict[str, float] = {}

    def measure() -> None:
        seconds["cholesky"] = place.seconds(lambda: torch.linalg.cholesky(damped(gram, RIDGE)), 1)
        seconds["obs"] = place.seconds(lambda: greedy_obs(weight, gram, len(kept), RIDGE), 1)
        seconds["refit"] = place.seconds(lambda: refit(weight, gram, kept, RIDGE), 1)
        seconds["correction"] = place.seconds(lambda: corrected(weight[:, kept], (half, half), RIDGE), 1)

    peak, estimated = place.peak(measure), _estimated_seconds(place, width, outputs)
    case = {"channels": width, "outputs": outputs, "peak_bytes": peak, "estimated": estimated}
    return case | {"seconds": seconds}


def _channel_words(case: Figures) -> str:
    times = ", ".join(f"{name} {each:.2f} s" for name, each in case["seconds"].items())
    words = f"{case['channels']:,} channels: {times}"
    if case["estimated"] is None:
        return words
    return words + " (estimate: {select:.2f} s to choose, {slice:.2f} s to refit)".format(**case["estimated"])


def _estimated_seconds(place: Place, width: int, outputs: int) -> dict[str, float] | None:
    """Return what mode=estimate takes for such a layer: its FLOPs by the assumed share of the GPU's peak.

    None where there is no data sheet of the device.
    """
    heads = max(1, outputs // 128)
    geometry = Geometry(
        hidden_size=outputs,
        num_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=128,
        intermediate_size=width,
        vocab_size=32_000,
        tied_embeddings=False,
    )
    config = _config(place, place.engine())
    multiple = replace(config.prune.multiple, head_dim=8, intermediate_size=8)
    cut = PruneConfig(
        remove_fraction=None,
        head_dim=128,
        intermediate_size=width // 2,
        split="equal",
        multiple=multiple,
        method=MethodConfig(channels="obs", refit="least_squares"),
    )
    flops = stage_flops(config, outline(replace(config, prune=cut), geometry))
    if place.accelerator is None:
        return None
    speed = ASSUMED_MFU * place.accelerator.peak_flops
    return {stage.kind: each / speed for stage, each in flops.items() if stage.kind in ("select", "slice")}


FAST = (
    Section(name="channels", seconds=120, run=channels),
    Section(name="layers", seconds=330, run=layers),
)
