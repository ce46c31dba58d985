"""The method on real ranks: 1, 2 and 4 of them decide and refit alike, and distillation is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks
from tests.support.selections import assert_same_choices

RANKS = (1, 2, 4)
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "many_passes": {"gram_gib": 1e-9},
    "parallel": {"refit": "least_squares"},
    "heads": {"attention": "heads", "values": "norm"},
    "shared_dims": {"attention": "shared_dims", "values": "norm"},
    "obs": {"pair_gains": "none", "channels": "obs", "refit": "least_squares", "ridge_unit": "mean"},
    "taylor": {"pair_score": "taylor", "values": "taylor", "channels": "taylor", "refit": "none"},
    "magnitude": {"pair_score": "magnitude", "values": "magnitude", "channels": "magnitude", "refit": "none"},
}


def make_job(folder: Path, model: Path, text: Path, group: Any, method: dict[str, Any]) -> Any:
    from benchmarks.workload import quiet_job, run_config
    from transact.config.machines import EngineConfig
    from transact.config.pruning import MethodConfig
    from transact.models.folder import geometry_of

    config = run_config(
        folder,
        model=model,
        engine=EngineConfig(micro_batch_sequences=2, device="cpu"),
        sequence_length=64,
        batch_sequences=8,
        num_steps=1,
        calibration_sequences=24,
        other_sequences=8,
    )
    config.prune.method = MethodConfig(**method)
    config.data.train, config.data.evaluation = (
        type(config.data.train)(source="files", files=[str(text.with_name(name))])
        for name in ("train.txt", "heldout.txt")
    )
    return quiet_job(config, geometry_of(model), group)


def cut(folder: Path, model: Path, text: Path) -> dict[str, Any]:
    """For every method: the selection, and the weights of the sliced model."""
    from transact.distributed.process import process_group
    from transact.files import read_json
    from transact.models.tensor_files import ModelReader
    from transact.stages.calibrate import calibrate, collect_gram_files
    from transact.stages.select import collect_evidence, decide, greedy_channels
    from transact.stages.slice import cut_model
    from transact.stages.texts import prepare_texts

    found: dict[str, Any] = {}
    with process_group("cpu", 5) as group:
        for name, method in METHODS.items():
            job = make_job(folder, model, text, group, method)
            texts = prepare_texts(job, model)
            work = folder / f"{name}_{group.world_size}"
            statistics, grams, sliced = work / "statistics.safetensors", work / "gram", work / "sliced"
            group.on_main(lambda work=work: work.mkdir(parents=True))
            calibrate(job, texts, model, statistics)
            if job.config.prune.method.needs_gram():
                collect_gram_files(job, texts, model, grams)
            group.barrier()
            evidence = collect_evidence(job, model, statistics)
            geometry, target = job.outline.parent, job.outline.rounds[0].geometry
            channels = greedy_channels(job, model, grams, [target.intermediate_size])
            selection = decide(job.config.prune, evidence, target, channels, parent=geometry)
            cut_model(job, texts, model, selection, sliced, grams)
            with ModelReader(sliced) as reader:
                weights = {key: reader.tensor(key).numpy() for key in reader.files}
            found[name] = {
                "selection": selection.to_json(),
                "weights": weights,
                "config": read_json(sliced / "config.json"),
            }
    return found


@pytest.fixture(scope="module")
def cuts(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("method")
    return {ranks: run_on_ranks(ranks, cut, folder, workplace.model, workplace.train)[0] for ranks in RANKS}


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_ranks_decides_and_refits_alike(cuts: dict[int, dict[str, Any]], method: str) -> None:
    one = cuts[1][method]
    for ranks in RANKS[1:]:
        other = cuts[ranks][method]
        assert_same_choices(one["selection"], other["selection"])
        assert other["config"] == one["config"]
        for name, weight in one["weights"].items():
            largest = abs(weight).max()
            assert abs(other["weights"][name] - weight).max() <= 1e-4 * largest, name


def test_a_layer_at_a_time_equals_all_at_once(cuts: dict[int, dict[str, Any]]) -> None:
    """The selection records the method without the limit on memory, so it is equal too."""
    once, many = cuts[2]["default"], cuts[2]["many_passes"]
    assert_same_choices(once["selection"], many["selection"])
    for name, weight in once["weights"].items():
        assert abs(many["weights"][name] - weight).max() <= 1e-6 * abs(weight).max(), name


def test_sequential_differs_from_parallel_in_its_corrections_alone(cuts: dict[int, dict[str, Any]]) -> None:
    """Only output projections are corrected, and where that helps on other text; bases and choices are the same."""
    parallel, sequential = cuts[1]["parallel"]["weights"], cuts[1]["default"]["weights"]
    corrected = []
    for key, weight in parallel.items():
        difference = abs(weight - sequential[key]).max() / abs(weight).max()
        if key.endswith(("o_proj.weight", "down_proj.weight")):
            corrected.append(difference > 1e-2)
        else:
            assert difference <= 1e-4, key
    assert any(corrected)


def distilled(model: Path, chunk_elements: int) -> dict[str, Any]:
    """Two training steps of a damaged model towards the whole one; the losses, and a weight afterwards."""
    from transact.config.machines import EngineConfig
    from transact.distributed.process import process_group
    from transact.engine.deepspeed_setup import TrainingSettings
    from transact.engine.engine import open_engine
    from transact.models.loss_head import Teaching

    settings = TrainingSettings(
        gradient_accumulation_steps=1, learning_rate=1e-2, weight_decay=0.0, betas=(0.9, 0.95), gradient_clipping=0.0
    )
    config = EngineConfig(micro_batch_sequences=4, device="cpu")
    tokens = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(0))
    losses = []
    with (
        process_group("cpu", 5) as group,
        open_engine(model, config, group) as teacher,
        open_engine(model, config, group, training=settings) as student,
    ):
        student.module.lm_head.chunk_elements = chunk_elements
        head = teacher.output_weight()
        share = tokens[group.rank :: group.world_size]
        for weight in (0.5, 1.0, 1.0):
            teaching = Teaching(hidden=teacher.final_hidden([share])[0], head=head, weight=weight, temperature=2.0)
            loss = student.loss(share, teaching)
            student.backward(loss)
            student.step(1e-2)
            losses.append(float(group.sum(loss.detach().double())) / group.world_size)
        parameters = dict(student.named_parameters())
        weight = student.full_weight(parameters["model.layers.1.mlp.down_proj.weight"]).clone()
    return {"losses": losses, "weight": weight.numpy()}


def plainly_distilled(model: Path) -> dict[str, Any]:
    """The same with transformers, torch.optim and torch.nn.functional.kl_div, in one process, without chunks."""
    from torch.nn import functional
    from transformers import LlamaForCausalLM

    teacher, student = (LlamaForCausalLM.from_pretrained(model) for _ in range(2))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    tokens = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(0))
    losses = []
    for weight in (0.5, 1.0, 1.0):
        logits = student(tokens).logits[:, :-1].flatten(0, 1)
        with torch.no_grad():
            target = functional.softmax(teacher(tokens).logits[:, :-1].flatten(0, 1) / 2.0, dim=-1)
        divergence = functional.kl_div(functional.log_softmax(logits / 2.0, dim=-1), target, reduction="batchmean")
        entropy = functional.cross_entropy(logits, tokens[:, 1:].flatten())
        loss = weight * 4.0 * divergence + (1 - weight) * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "weight": student.model.layers[1].mlp.down_proj.weight.detach().numpy()}


@pytest.mark.parametrize(("ranks", "chunk_elements"), [(1, 10**9), (2, 10**9), (2, 512 * 20)])
def test_distillation_equals_plain_pytorch(workplace: Workplace, ranks: int, chunk_elements: int) -> None:
    expected = plainly_distilled(workplace.model)
    for found in run_on_ranks(ranks, distilled, workplace.model, chunk_elements):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-3)
        assert abs(found["weight"] - expected["weight"]).max() < 2e-2 * abs(expected["weight"]).max()
