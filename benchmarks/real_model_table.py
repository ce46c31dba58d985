"""The rows of a real model as Markdown tables, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.pictures import pyplot, save_picture

Row = dict[str, Any]


def real_model_markdown(result: dict[str, Any]) -> str:
    """Return what was measured with, then a table of each kind of rows that there are."""
    rows = result["rows"]
    dense, cut = [row for row in rows if row["fraction"] == 0], [row for row in rows if row["fraction"] > 0]
    one_shot = [row for row in cut if "perplexity" in row and not row["recovery_tokens"]]
    recovered = [row for row in cut if "perplexity" in row and row["recovery_tokens"]]
    with_tasks = [row for row in rows if "tasks" in row]
    parent = next(row for row in dense if "perplexity" in row)
    parts = [measured_with(result, parent)]
    if one_shot:
        parts.append(perplexity_table("A real model, cut once", parent, one_shot))
    for tokens in sorted({row["recovery_tokens"] for row in recovered}):
        own = [row for row in recovered if row["recovery_tokens"] == tokens]
        parts.append(perplexity_table(f"A real model, after recovery on {tokens:,} tokens", parent, own))
    if with_tasks:
        parts.append(accuracy_table(with_tasks))
    return "\n".join(parts)


SUMMARY = {
    "default": "`default`, the default method",
    "obs": "`obs`, the default before: greedy OBS, no gains, every layer for itself",
    "norms": "activation norms alone",
    "flap": "FLAP in what stock models can express: uniform widths, no bias",
    "taylor": "Taylor importance",
    "paper_heads": "TransAct's released code (eight shots where it recovers)",
    "paper_heads, refit": "the same heads and channels, with the refit",
}
SUMMARY_RECOVERED = {"paper_heads": "paper recipe"}  # where the recipe has another name once it trains


def real_model_summary(result: dict[str, Any]) -> str:
    """Return the README's table: perplexity on the first text at half of the transitional parameters."""
    measured = [row for row in result["rows"] if "perplexity" in row]
    parent = next(row for row in measured if row["fraction"] == 0)
    rows = [row for row in measured if row["fraction"] == 0.5]
    text = next(iter(parent["perplexity"]))
    trained = max(row["recovery_tokens"] for row in rows)
    after = f" after recovery on {trained:,} tokens |" if trained else ""
    cut_in_half = f"{result['model']['name']}, half of the transitional parameters removed"
    lines = [
        f"| {cut_in_half} | right after the cut |{after} KV cache |",
        "|---|---|---|" + ("---|" if trained else ""),
        f"| nothing removed | {_perplexity(parent, text)} |{' |' if trained else ''} 100% |",
    ]
    for method, words in SUMMARY.items():
        cut = next((row for row in rows if row["method"] == method and not row["recovery_tokens"]), None)
        if cut is None:
            continue
        named = SUMMARY_RECOVERED.get(method, method)
        recovered = next((row for row in rows if (row["method"], row["recovery_tokens"]) == (named, trained)), None)
        cells = [_perplexity(cut, text), *([_perplexity(recovered, text)] if trained else [])]
        share = cut["kv_bytes_per_token"] / parent["kv_bytes_per_token"]
        lines.append(_line(words, [*cells, f"{share:.0%}"]))
    return "\n".join(lines) + "\n"


def measured_with(result: dict[str, Any], parent: Row) -> str:
    """Return a table of what the figures depend on."""
    return "\n".join(f"| {name} | {value} |" for name, value in _conditions(result, parent)) + "\n"


def _conditions(result: dict[str, Any], parent: Row) -> Iterator[tuple[str, str]]:
    model, settings, mixture = result["model"], result["settings"], result["texts"]["mixture"]
    whole, own = model["parameters"], model["transitional_parameters"]
    yield "a real model", model["name"]
    yield "---", "---"
    yield "parameters", f"{whole / 1e6:.1f} M, of which {own / 1e6:.1f} M ({own / whole:.0%}) are transitional"
    fractions = sorted({row["fraction"] for row in result["rows"]} - {0.0})
    of_all = ", ".join(f"{fraction:.0%} of them are {fraction * own / whole:.0%} of all" for fraction in fractions)
    yield "percentages", f"of the transitional parameters: {of_all}"
    yield "dimensions", f"head_dim and intermediate_size are multiples of {settings['multiple']}"
    shares = ", ".join(f"{source} {each['characters'] / 1e6:.1f} M" for source, each in mixture["train"].items())
    yield "mixture", f"{shares} characters; {result['texts']['held_out']} is held out"
    length, sequences = settings["sequence_length"], settings["calibration_sequences"]
    yield "calibration", f"{sequences * length:,} tokens of the mixture in sequences of {length}"
    tokens = ", ".join(f"{name} {count:,}" for name, count in parent["evaluation_tokens"].items())
    yield "perplexity", f"on held-out tokens: {tokens}, in sequences of {length}"
    device, threads = result["machine"]["device"], settings["threads"]
    yield "seed, machine", f"{settings['seed']}; {device}, {threads} thread(s), float32"


def perplexity_table(title: str, parent: Row, rows: list[Row]) -> str:
    """Return a line for each method. Parameters, and seconds of choosing and cutting, are those at 50 %.

    Where no row is at 50 %, those of the smallest fraction. The seconds are of all rounds, without recovery and
    without the first calibration, which rows share.
    """
    texts, fractions = list(parent["perplexity"]), sorted({row["fraction"] for row in rows})
    columns = [(text, fraction) for text in texts for fraction in fractions]
    shown = 0.5 if 0.5 in fractions else fractions[0]
    cache_head = "KV bytes/token at " + " / ".join(f"{fraction:.0%}" for fraction in fractions)
    last = [f"parameters at {shown:.0%}", cache_head, f"seconds of cutting at {shown:.0%}"]
    heads = [*(f"{fraction:.0%} {text}" for text, fraction in columns), *last]
    lines = [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    dense = [f"{parent['perplexity'][text]:,.1f}" for text, _ in columns]
    lines.append(_line("nothing removed", [*dense, f"{parent['parameters'] / 1e6:.1f} M", _kv(parent), ""]))
    for method in dict.fromkeys(row["method"] for row in rows):
        by_fraction = {row["fraction"]: row for row in rows if row["method"] == method}
        cells = [_perplexity(by_fraction.get(fraction), text) for text, fraction in columns]
        row = by_fraction.get(shown)
        parameters, seconds = ("", "") if row is None else (f"{row['parameters'] / 1e6:.1f} M", _seconds(row))
        cache = " / ".join(_kv(by_fraction[each]) if each in by_fraction else "-" for each in fractions)
        lines.append(_line(method, [*cells, parameters, cache, seconds]))
    return "\n".join(lines) + "\n"


def accuracy_table(rows: list[Row]) -> str:
    """Return accuracies with their standard errors, and their mean over the tasks."""
    tasks = list(rows[0]["tasks"])
    count = int(max(each["documents"] for row in rows for each in row["tasks"].values()))
    head = f"| A real model, accuracy on {count} documents | removed |"
    lines = [f"{head} {' | '.join(tasks)} | mean |", "|---|---|" + "---|" * (len(tasks) + 1)]
    for row in sorted(rows, key=lambda each: float(each["fraction"])):
        found = [row["tasks"][name] for name in tasks]
        mean = sum(each["accuracy"] for each in found) / len(found)
        error = sqrt(sum(each["standard_error"] ** 2 for each in found)) / len(found)
        cells = [f"{each['accuracy']:.3f} ± {each['standard_error']:.3f}" for each in found]
        lines.append(_line(row["method"], [f"{row['fraction']:.0%}", *cells, f"{mean:.3f} ± {error:.3f}"]))
    return "\n".join(lines) + "\n"


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _perplexity(row: Row | None, text: str) -> str:
    return "" if row is None else f"{row['perplexity'][text]:,.1f}"


def _kv(row: Row) -> str:
    return f"{row['kv_bytes_per_token']:,}"


def _seconds(row: Row) -> str:
    kinds = ("calibrate", "gram", "split", "shapes", "select", "slice")  # the calibration of round 1 is no row's own
    return f"{sum(seconds for name, seconds in row['seconds'].items() if name.partition('/')[2] in kinds):,.0f}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw perplexity on the first text against parameters and against KV bytes, a line for each method.

    The same figures make the same file. A method with the refit and the same without have one colour.
    """
    rows = [row for row in result["rows"] if "perplexity" in row and not row["recovery_tokens"]]
    parent = next(row for row in rows if row["fraction"] == 0)
    text = next(iter(parent["perplexity"]))
    methods = list(dict.fromkeys(row["method"] for row in rows if row["fraction"] > 0))
    bases = list(dict.fromkeys(map(_without_refit, methods)))
    looks = {name: (f"C{number % 10}", "os^"[number // 10 % 3]) for number, name in enumerate(bases)}

    def draw_panels(panels: Any) -> None:
        for panel, figure, unit, label in zip(
            panels,
            ("parameters", "kv_bytes_per_token"),
            (1e6, 1e3),
            ("million parameters", "thousand KV bytes per token"),
            strict=True,
        ):
            for method in methods:
                own = sorted((row for row in rows if row["method"] == method), key=lambda row: float(row["fraction"]))
                style = "-" if own[0]["refit"] != "none" else ":"
                own.insert(0, parent)
                places, heights = [row[figure] / unit for row in own], [row["perplexity"][text] for row in own]
                colour, marker = looks[_without_refit(method)]
                panel.plot(places, heights, style, marker=marker, markersize=4, color=colour, label=method)
            panel.set(xlabel=label, yscale="log")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(f"perplexity on {text}, cut once; all begin at the dense model")
        panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

    with save_picture(path):
        figure, panels = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
        draw_panels(panels)
        figure.tight_layout()


def _without_refit(method: str) -> str:
    return method.removesuffix(", refit").removesuffix(", no refit")
