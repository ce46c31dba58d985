"""The criterion of docs/extending.md, on a statistic of its own: one file is touched, and a job cuts by it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.commands import REPOSITORY, command, environment, make_workplace
from tests.support.tiny import write_model
from transact import prune_model
from transact.config.pruning import MethodConfig
from transact.files import read_json
from transact.pruning import criteria

METHOD: dict[str, Any] = {"pair_score": "norm_product", "values": "norm", "channels": "mean_absolute", "refit": "none"}


def example() -> str:
    document = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- criterion -->\n```python\n(.*?)```", document, re.DOTALL)
    return str(block)


@torch.no_grad()
def mean_absolute(model: Any, batches: list[torch.Tensor]) -> torch.Tensor:
    """(layers, intermediate_size), seen here at the inputs of down_proj."""
    seen: list[torch.Tensor] = []
    for block in model.model.layers:
        block.mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].abs().mean((0, 1))))
    for batch in batches:
        model(batch)
    return torch.stack(seen).view(len(batches), len(model.model.layers), -1).mean(dim=0)


def test_a_model_in_memory_loses_the_channels_that_it_scores_lowest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(criteria.CHANNEL_CRITERIA, "mean_absolute", criteria.CHANNEL_NORMS)  # undone at the end
    exec(example(), dict(vars(criteria)))
    folder = write_model(tmp_path / "model")
    whole, watched = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    batches = [torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    cut = prune_model(whole, batches, method=MethodConfig(**METHOD), intermediate_size=96, target="transformers")
    kept = mean_absolute(watched, batches).sort(dim=-1, descending=True).indices[:, :96].sort(dim=-1).values
    for layer, (before, after) in enumerate(zip(whole.model.layers, cut.model.layers, strict=True)):
        assert torch.equal(after.mlp.gate_proj.weight, before.mlp.gate_proj.weight[kept[layer]])
    with pytest.raises(ValueError, match=r"'mean' is not allowed: it must be one of obs, .*, mean_absolute"):
        prune_model(whole, batches, method=MethodConfig(channels="mean"), intermediate_size=96, target="transformers")


def test_a_job_cuts_by_it_where_it_is_appended_to_one_file(tmp_path: Path) -> None:
    """On two ranks, whose sums are added."""
    place, source = make_workplace(tmp_path), tmp_path / "source"
    for folder in ("transact", "conf"):
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "transact/pruning/criteria.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{example()}")

    few = ["prune.rounds=1", "recover.tokens=0", "eval.efficiency.measured=false"]
    asked = [*place.overrides("job"), *few, *(f"prune.method.{name}={value}" for name, value in METHOD.items())]
    ran = subprocess.run(
        command(asked, 2), cwd=source, env=environment() | {"PYTHONPATH": str(source)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    made = tmp_path / "job/round_01"
    sums, selection = load_file(made / "statistics.safetensors"), read_json(made / "selection.json")
    scores = sums["absolute_intermediate"] / sums["num_tokens"]
    assert scores.dtype == torch.float64 and (scores.square() <= sums["intermediate"] / sums["num_tokens"]).all()
    count = selection["target"]["intermediate_size"]
    for layer, kept in enumerate(selection["channels"]):
        assert sorted(scores[layer].topk(count).indices.tolist()) == kept
    assert selection["method"]["channels"] == "mean_absolute"
