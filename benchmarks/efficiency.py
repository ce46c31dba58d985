"""Measure what removing half and four fifths of the parameters gains in latency and memory.

    python -m benchmarks.efficiency

Each speed-up stands beside the one that the removed FLOPs and bytes allow. The models have the dimensions of the demo
parent and of a LLaMA of 315 million parameters. The weights are random: how long a forward takes depends on dimensions
alone. Writes the figures, the table of docs/results.md and a picture of latencies on the paper's grid of lengths.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import transact
from benchmarks.efficiency_breakdown import breakdown
from benchmarks.efficiency_picture import draw
from benchmarks.efficiency_table import breakdown_markdown, efficiency_markdown
from benchmarks.random_models import ARCHITECTURES
from benchmarks.workload import RESULTS, machine, parse_whole, write_result
from transact.config.outputs import EfficiencyConfig
from transact.config.pruning import MultipleConfig
from transact.errors import DONE, leave
from transact.evaluation.efficiency.command import PRESETS
from transact.evaluation.efficiency.measure import PARENT, measure
from transact.files import write_text
from transact.models.llama import read_geometry
from transact.pruning.search_space import Multiples, Removal, SearchSpace, solve_geometry

REMOVED = (0.5, 0.8)
SIZES = {  # name -> architecture, dtypes, multiples of the cut dimensions
    "demo": ("demo", ("float32",), Multiples(head_dim=2, intermediate_size=1)),
    "315M": ("315m", ("float32", "bfloat16"), Multiples(head_dim=8, intermediate_size=32)),
}
SETTING: dict[str, Any] = {"prompt_tokens": [256], "new_tokens": [32], "batch_sizes": [1, 4], "max_minutes": 600}
SMALLEST = {"prompt_tokens": [4], "new_tokens": [2], "batch_sizes": [1], "turns": 1}


def write_folders(size: str, dtype: str, folder: Path) -> dict[str, Path]:
    """Write a random parent and its cuts, each a stock folder, and return role -> folder."""
    architecture, _, multiples = SIZES[size]
    config = ARCHITECTURES[architecture]().to_model_config()
    parent = read_geometry(config)
    folders = {PARENT: folder / PARENT}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config)).to(getattr(torch, dtype))
    model.save_pretrained(folders[PARENT])
    exact = MultipleConfig(head_dim=multiples.head_dim, intermediate_size=multiples.intermediate_size)
    tokens = [torch.randint(parent.vocab_size, (1, 64))]
    for fraction in REMOVED:
        cut = solve_geometry(Removal(parent=parent, remove_fraction=fraction), SearchSpace.below(parent, multiples))
        role = f"{fraction:.0%} removed"
        folders[role] = folder / role.split("%")[0]
        smaller = transact.prune_model(
            model,
            tokens,
            head_dim=cut.head_dim,
            intermediate_size=cut.intermediate_size,
            method="magnitude",
            multiple=exact,
        )
        smaller.save_pretrained(folders[role])
    return folders


def measured(
    size: str, dtype: str, config: EfficiencyConfig, folder: Path | None, *, broken_down: bool = False
) -> dict[str, Any]:
    """Measure the models of one size and dtype. broken_down: also where the time of a forward goes."""
    with tempfile.TemporaryDirectory(prefix="transact-efficiency-", dir=folder) as name:
        folders = write_folders(size, dtype, Path(name))
        found = measure(folders, config, dtype=dtype, device=torch.device("cpu"))
        if broken_down:
            found["breakdown"] = breakdown(folders, dtype, config.prompt_tokens[0], config.threads)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--pictured", choices=SIZES, default="315M", help="the model of the picture")
    parser.add_argument("--smallest", action="store_true", help="one short measurement of each kind")
    parser.add_argument("--folder", type=Path, help="where the weights are kept meanwhile (2.5 GB)")
    parser.add_argument("--output", type=Path, default=RESULTS / "efficiency.json")
    arguments = parse_whole(parser)
    setting = EfficiencyConfig(**(SMALLEST if arguments.smallest else SETTING | {"turns": arguments.turns}))
    # One turn is enough: a generation up to the last length of the grid is long.
    grid = (
        replace(setting, new_tokens=[2, 3])
        if arguments.smallest
        else EfficiencyConfig(**PRESETS["paper"], turns=1, max_minutes=600)
    )
    result: dict[str, Any] = {
        "environment": machine(torch.device("cpu")) | {"threads_per_rank": setting.threads},
        "sizes": [],
    }
    for size in arguments.sizes:
        for dtype in SIZES[size][1]:
            found = measured(size, dtype, setting, arguments.folder, broken_down=True)
            result["sizes"].append({"size": size, "dtype": dtype, **found})
    dtype = SIZES[arguments.pictured][1][-1]
    found = measured(arguments.pictured, dtype, grid, arguments.folder)
    result["grid"] = {"size": arguments.pictured, "dtype": dtype, **found}
    write_result(arguments.output, result)
    table = efficiency_markdown(result)
    write_text(arguments.output.with_suffix(".md"), table)
    write_text(arguments.output.with_name(f"{arguments.output.stem}_breakdown.md"), breakdown_markdown(result))
    draw(result["grid"], arguments.output.with_suffix(".svg"))
    print(table)


if __name__ == "__main__":
    main()
    leave(DONE)
