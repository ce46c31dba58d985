"""Run the paper's ablations on the demo parent: one table, and one picture of where the redundancy is.

    python -m benchmarks.ablations

Attention alone, the MLP alone, or both, at equal parameters; the number of calibration sequences; one round or four;
the criteria. Every line is `+experiment=ablation_...` with the overrides that it names. The picture shows,
layer by layer, how much of the activations' energy the largest dims hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.pictures import pyplot, save_picture
from benchmarks.quality import Trial, partial_name, run_all
from benchmarks.workload import DEMO_PARENT, RESULTS, num_cores, parse_whole, write_result
from transact.errors import DONE, leave
from transact.files import write_text
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.models.hooks import collect_statistics
from transact.pruning.statistics import ATTENTION_OUTPUT, INTERMEDIATE, ActivationStatistics

CALIBRATIONS = (8, 32, 128, 512)
PAIR_SCORES = ("norm_product", "token_product", "logit_variance")
METHODS = ("norms", "taylor", "magnitude", "random")


def ablations(*, smallest: bool) -> dict[str, list[tuple[tuple[str, ...], bool]]]:
    """Return title -> lines: overrides, and whether the line goes on to recovery. smallest: one line of each kind."""
    base = "+experiment=ablation_criteria"
    lines: dict[str, list[tuple[tuple[str, ...], bool]]] = {
        "attention, MLP or both": [((f"+experiment=ablation_{part}",), True) for part in PARTS],
        "calibration sequences": [
            (("+experiment=ablation_calibration", f"prune.calibration_sequences={count}"), False)
            for count in CALIBRATIONS
        ],
        "rounds": [(("+experiment=ablation_one_shot",), True), (("+experiment=ablation_iterative",), True)],
        "criteria": [
            *(((base, f"prune.method.pair_score={name}"), False) for name in PAIR_SCORES),
            *(((base, f"prune.method.values={name}"), False) for name in ("svd", "pca", "norm")),
            *(((base, f"prune.method.channels={name}"), False) for name in ("obs", "norm")),
            *(((base, f"prune.method.refit={name}"), False) for name in ("none", "least_squares", "sequential")),
            *(((base, f"prune/method={name}"), False) for name in METHODS),
        ],
    }
    return {title: choices[:1] for title, choices in lines.items()} if smallest else lines


PARTS = ("attention_only", "mlp_only", "both")


def table(parent: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """Return one Markdown table of all rows, on held-out text of the parent's kind."""
    text = next(iter(parent))
    lines = [
        "| ablation | overrides | parameters | sliced | recovered |",
        "|---|---|---|---|---|",
        f"| dense parent | | | {parent[text]:.2f} | |",
    ]
    for row in (row for row in rows if row["text"] == text):
        one_shot, recovered = (_figure(row[name]) for name in ("perplexity_one_shot", "perplexity_recovered"))
        title, overrides = row["method"].split(": ", 1)
        lines.append(f"| {title} | `{overrides}` | {row['parameters']:,} | {one_shot} | {recovered} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def energy_kept(statistics: ActivationStatistics) -> dict[str, torch.Tensor]:
    """Return the share of the energy that the largest dims hold: kind -> (layers, dims), rising to 1 along the dims."""
    heads = statistics[ATTENTION_OUTPUT].sort(dim=-1, descending=True).values.sum(dim=1)
    channels = statistics[INTERMEDIATE].sort(dim=-1, descending=True).values
    sums = {"attention": heads, "MLP": channels}
    return {kind: each.cumsum(-1) / each.sum(-1, keepdim=True) for kind, each in sums.items()}


@torch.no_grad()
def demo_statistics(geometry: Geometry, num_sequences: int) -> ActivationStatistics:
    """Collect the activation statistics of the demo parent on held-out sequences of its own kind."""
    from itertools import islice

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from transact.data.stdlib_text import stdlib_documents

    model = AutoModelForCausalLM.from_pretrained(DEMO_PARENT).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_PARENT, model_max_length=10**9)
    text = "\n".join(islice(stdlib_documents("heldout"), 64))
    length = model.config.max_position_embeddings
    tokens = torch.tensor(tokenizer(text)["input_ids"][: num_sequences * length]).view(-1, length)
    with collect_statistics(model, geometry) as collector:
        for batch in torch.split(tokens, 8):
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    return collector.statistics(tokens.numel())


def draw(kept: dict[str, torch.Tensor], path: Path) -> None:
    """Draw one panel for attention and one for the MLP, with a curve for each layer."""
    with save_picture(path):
        figure, panels = pyplot.subplots(1, len(kept), figsize=(10, 4), sharey=True)
        for panel, (kind, curves) in zip(panels, kept.items(), strict=True):
            for layer, curve in enumerate(curves):
                share = torch.arange(1, len(curve) + 1) / len(curve)
                panel.plot(share.tolist(), curve.tolist(), label=f"layer {layer}")
            panel.set(title=kind, xlabel="dims kept, largest first", xlim=(0, 1), ylim=(0, 1.02))
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("energy of the activations kept")
        panels[-1].legend()
        figure.tight_layout()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131_072, help="of recovery, over all rounds")
    parser.add_argument("--evaluation-sequences", type=int, default=256)
    parser.add_argument("--smallest", action="store_true", help="one line of each ablation, on few sequences")
    parser.add_argument("--jobs", type=int, default=num_cores())
    parser.add_argument("--output", type=Path, default=RESULTS / "ablations.json")
    arguments = parse_whole(parser)
    few = ("prune.calibration_sequences=8",) if arguments.smallest else ()
    todo = [
        Trial(
            method=f"{title}: {' '.join(overrides)}",
            overrides=(*overrides, *few),
            fraction=None,
            seed=0,
            recovered=recovered,
        )
        for title, lines in ablations(smallest=arguments.smallest).items()
        for overrides, recovered in lines
    ]
    parent, rows = run_all(
        todo,
        tokens=arguments.tokens,
        evaluation_sequences=arguments.evaluation_sequences,
        jobs=arguments.jobs,
        partial=partial_name(arguments.output),
    )
    write_result(arguments.output, {"parent": parent, "rows": rows})
    write_text(arguments.output.with_suffix(".md"), table(parent, rows))
    statistics = demo_statistics(geometry_of(DEMO_PARENT), num_sequences=8 if arguments.smallest else 64)
    draw(energy_kept(statistics), arguments.output.with_suffix(".svg"))
    print(table(parent, rows))


if __name__ == "__main__":
    main()
    leave(DONE)
