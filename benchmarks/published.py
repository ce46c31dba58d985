"""Keep the measured figures in the documents those of the results, and check that the results meet the claims.

    python -m benchmarks.published            writes tables and pictures of benchmarks/results, and into documents
    python -m benchmarks.published --check    prints what is wrong: a line for each, and exit code 1

A table is recognised in a document by its first line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import efficiency_picture, real_model_table
from benchmarks.efficiency_table import breakdown_markdown, efficiency_markdown
from benchmarks.estimate_table import estimate_markdown
from benchmarks.gguf_files import gguf_markdown
from benchmarks.gpu_table import gpu_markdown, gpu_results
from benchmarks.memory_model import case_of, estimated, is_stale, memory_markdown
from benchmarks.quality_methods import BASELINES
from benchmarks.quality_table import quality_table
from benchmarks.quantized import quantized_markdown
from benchmarks.real_model_table import real_model_markdown, real_model_summary
from benchmarks.throughput import shortfalls_of_throughput, throughput_markdown
from benchmarks.workload import REPOSITORY, RESULTS
from transact.files import read_json, temporary_name, write_text

# Name of a table in benchmarks/results -> the result file that it is made from, and the function that makes it.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "quality": ("quality.json", quality_table),
    "efficiency": ("efficiency.json", efficiency_markdown),
    "efficiency_breakdown": ("efficiency.json", breakdown_markdown),
    "memory": ("memory.json", memory_markdown),
    "gguf_files": ("gguf_files.json", gguf_markdown),
    "quantized": ("quantized.json", quantized_markdown),
    "real_model": ("real_model.json", real_model_markdown),
    "real_model_summary": ("real_model.json", real_model_summary),
}
# Name of a picture -> its result file, and the function that draws it into a file.
PICTURES: dict[str, tuple[str, Callable[[dict[str, Any], Path], None]]] = {
    "efficiency": ("efficiency.json", lambda result, path: efficiency_picture.draw(result["grid"], path)),
    "real_model": ("real_model.json", real_model_table.draw),
}
AWAITED = ("real_model.json",)  # takes hours, with text that is not in the project: shown once it is there
# Right after the cut the default must have a lower perplexity than every baseline. The bounds, by removed fraction or
# dtype: its perplexity over that of paper_heads, its perplexity over that of the paper's recipe after recovery, and the
# share of the allowed speed-up that matrix products reach.
OF_PAPER_HEADS = {0.3: 1.0, 0.5: 0.7, 0.7: 0.6}
OF_PAPERS_RECIPE = 0.85
# What a method may take, of the time of two stock forwards over the calibration text.
OF_FORWARDS = {"parallel": 1.3, "default": 2.5}
PRODUCTS_REACH = {"float32": 0.85, "bfloat16": 0.8}


def documents() -> list[Path]:
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(table: str) -> list[str]:
    """Return the Markdown tables of a text, each from its first line to its last."""
    return [block.strip() for block in table.split("\n\n") if block.strip()]


def with_table(text: str, table: str) -> str:
    """Return the text with the table in place of the one that has the same first line."""
    head = table.splitlines()[0]
    lines, kept, is_inside = text.splitlines(), list[str](), False
    for line in lines:
        if line == head:
            kept += table.splitlines()
            is_inside = True
        is_inside = is_inside and line.startswith("|")
        if not is_inside:
            kept.append(line)
    return "\n".join(kept) + "\n"


def written(path: Path, tables: list[str]) -> str:
    """Return the text of a document with these tables in it."""
    text = path.read_text(encoding="utf-8")
    for table in tables:
        text = with_table(text, table)
    return text


def is_there(source: str) -> bool:
    """Return whether a result file is to be shown: all are, but for those that nobody has measured yet."""
    return source not in AWAITED or (RESULTS / source).is_file()


def current_tables() -> dict[str, str]:
    """Return the text of every table: of results (that of GPUs even without any), and of what is computed alone."""
    measured = {name: make(read_json(RESULTS / source)) for name, (source, make) in TABLES.items() if is_there(source)}
    others = {"gpu": gpu_markdown(gpu_results()), "throughput": throughput_markdown(throughputs())}
    return measured | others | {"estimates": estimate_markdown()}


def throughputs() -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(RESULTS.glob("throughput_*.json"))]


def wrong_tables() -> Iterator[str]:
    """Yield a line for each table that is not made of its results, or that no document or an old one shows."""
    tables = current_tables()
    for name, table in tables.items():
        shown_before = RESULTS / f"{name}.md"
        if not shown_before.is_file() or shown_before.read_text(encoding="utf-8") != table:
            yield f"benchmarks/results: the table {name} is an old one: python -m benchmarks.published"
        for block in blocks(table):
            shown = [path for path in documents() if block.splitlines()[0] in path.read_text(encoding="utf-8")]
            if not shown:
                yield f"no document shows the table {block.splitlines()[0]!r}"
            for path in shown:
                if block not in path.read_text(encoding="utf-8"):
                    yield f"{path.relative_to(REPOSITORY)} shows another table {name} than benchmarks/results"


def current_pictures() -> dict[str, bytes]:
    """Return the file of every picture.

    The same figures make the same one, with the version of matplotlib that the constraints name.
    """
    pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, draw) in PICTURES.items():
            if is_there(source):
                draw(read_json(RESULTS / source), Path(folder, name))
                pictures[name] = Path(folder, name).read_bytes()
    return pictures


def wrong_pictures() -> Iterator[str]:
    """Yield a line for each picture that is not drawn from its results."""
    for name, drawn in current_pictures().items():
        path = RESULTS / f"{name}.svg"
        if not path.is_file() or path.read_bytes() != drawn:
            yield f"benchmarks/results/{name}.svg is not drawn from {PICTURES[name][0]}: python -m benchmarks.published"


def perplexity(quality: dict[str, Any], method: str, fraction: float, figure: str) -> float:
    """Return the perplexity on held-out Python, the mean over both seeds."""
    rows = [
        row
        for row in quality["rows"]
        if (row["method"], row["fraction"], row["text"]) == (method, fraction, "python_heldout")
        and (row["tokens"] > 0) == (figure == "perplexity_recovered")
    ]
    assert {row["seed"] for row in rows} == {0, 1}, (method, fraction, figure)
    return mean(row[figure] for row in rows)


def shortfalls_of_quality(quality: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each baseline that the default does not beat by enough."""
    for fraction in (0.3, 0.5, 0.7):
        ours = perplexity(quality, "default", fraction, "perplexity_one_shot")
        for baseline in BASELINES:
            limit = perplexity(quality, baseline, fraction, "perplexity_one_shot")
            limit *= OF_PAPER_HEADS[fraction] if baseline == "paper_heads" else 1.0
            if ours >= limit:
                yield f"quality: the default at {fraction:.0%} has {ours:.2f}; by {baseline} {limit:.2f} is allowed"
    for fraction in (0.5, 0.7):
        ours, theirs = (
            perplexity(quality, name, fraction, "perplexity_recovered") for name in ("default", "paper recipe")
        )
        if ours > OF_PAPERS_RECIPE * theirs:
            yield f"quality: recovered at {fraction:.0%} the default has {ours:.2f}, the paper's recipe {theirs:.2f}"


def shortfalls_of_efficiency(efficiency: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each speed-up that is too far below the one that the cut allows.

    In float32 with half removed the whole model is compared; in every case the matrix products, which a cut shrinks.
    """
    large = [each for each in efficiency["sizes"] if each["size"] != "demo"]
    for measured in large:
        for row in measured["latency"] if measured["dtype"] == "float32" else ():
            for phase in ("prefill", "decode"):
                reached = row["speed_ups"]["50% removed"][phase]["reached"]
                if reached < 0.85:
                    yield f"efficiency: half removed reaches {reached:.2f} of what it allows in {phase}"
        for row in measured["breakdown"]:
            if "products_allowed" in row:
                share = row["products_speed_up"] / row["products_allowed"]
                if share < PRODUCTS_REACH[measured["dtype"]]:
                    name = f"{measured['dtype']}, {row['model']}, {row['phase']}"
                    yield f"efficiency: matrix products reach {share:.2f} of what the cut allows ({name})"
    assert sum("products_allowed" in row for measured in large for row in measured["breakdown"]) == 8
    assert sum(len(each["latency"]) for each in large if each["dtype"] == "float32") == 2


def shortfalls_of_cost(cost: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each method that takes too long to calibrate, choose and cut."""
    for method, most in OF_FORWARDS.items():
        if cost["cut"]["over_forwards"][method] > most:
            yield f"cost: {method} takes {cost['cut']['over_forwards'][method]:.2f} of two forwards, {most} is allowed"


def shortfalls_of_memory(memory: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each estimate that is off, or has changed since the measurement: today's formulas count."""
    assert {row["ranks"] for row in memory["rows"]} >= {1, 2}
    for row in memory["rows"]:
        if is_stale(row):
            yield (
                f"memory: {case_of(row)} on {row['ranks']} ranks: {row['measured_bytes']:,} bytes measured, "
                f"{row['estimated_bytes']:,} estimated then, {estimated(row):,} now: bench-memory, with --stale"
            )


def shortfalls_of_reliability(faults: dict[str, Any], saving: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each claim about crashes and the cost of checkpoints that the results do not hold."""
    if faults["identical"] != faults["runs"] or faults["kills"] < 30:
        yield f"faults: {faults['identical']} of {faults['runs']} runs ended the same, after {faults['kills']} kills"
    if max(faults["seconds_to_notice"]["all"]) >= 30:
        yield f"faults: {max(faults['seconds_to_notice']['all']):.1f} s until a death was noticed"
    if largest_saved(saving)["share_of_time"] >= saving["target"]:
        yield f"saving: {largest_saved(saving)['share_of_time']:.2%} of the time"


def largest_saved(saving: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the largest model whose checkpoints were measured."""
    return dict(max(saving["sizes"].values(), key=lambda size: size["parameters"]))


def told() -> Iterator[str]:
    """Yield words with measured figures, each of which some document must contain."""
    cost = read_json(RESULTS / "method_cost.json")
    seconds = {row["channels"]: row["seconds"] for row in cost["greedy_obs"]}
    yield f"{seconds[4096]:.0f} s of 4,096 and {seconds[11008]:.0f} s of 11,008"
    for method, ratio in cost["cut"]["over_forwards"].items():
        yield f"`{method}` {ratio:.2f} times"
    yield f"{read_json(RESULTS / 'packing.json')['ratio']:.2f} of the tokens per second of `stream`"
    text = read_json(RESULTS / "data_speed.json")
    yield f"a token store has {text['tokenising']['speed']:.2f} of the speed of the tokenizer's"
    yield f"are read at {text['reading']['speed']:.2f} of the speed of a memory map"
    yield f"a mixture of four texts at {text['mixture']['speed']:.2f} of that of one"
    yield f"100 batches of it take {text['opening']['memory_bytes'] / 1e6:.0f} MB of memory"
    large = next(each for each in read_json(RESULTS / "efficiency.json")["sizes"] if each["size"] != "demo")
    half = large["latency"][0]["speed_ups"]["50% removed"]
    yield f"prefills {half['prefill']['speed_up']:.2f} and decodes {half['decode']['speed_up']:.2f} times as fast"
    faults, saving = (read_json(RESULTS / f"{name}.json") for name in ("faults", "saving"))
    during = sum(count for place, count in faults["by_stage"].items() if place.endswith(": saving"))
    noticed = faults["seconds_to_notice"]["all"]
    yield f"{faults['kills']} kills over {faults['runs']} runs, {during} of them while a checkpoint was written"
    yield f"{faults['identical']} runs ended with the weights and losses of the undisturbed one"
    yield f"{faults['lost_steps']} steps lost, {faults['repeated_steps']} repeated"
    yield f"{faults['left_over_files']} temporary files left"
    yield f"({len(noticed)} times) the whole job had ended within {max(noticed):.1f} s"
    yield f"the median was {median(noticed):.1f} s"
    largest = largest_saved(saving)
    yield f"A checkpoint of {largest['parameters'] / 1e6:.0f} million parameters, best weights included"
    yield f"is {largest['bytes'] / 1e6:,.0f} MB and took {largest['save_seconds']:.1f} s"
    yield f"{largest['share_of_time']:.2%}".replace("%", " % of the time at the default interval")


def not_told() -> Iterator[str]:
    """Yield a line for each of the words of `told` that no document contains."""
    pages = [" ".join(path.read_text(encoding="utf-8").split()) for path in documents()]
    yield from (f"no document says {words!r}" for words in told() if not any(words in page for page in pages))


def problems() -> Iterator[str]:
    yield from wrong_tables()
    yield from wrong_pictures()
    yield from shortfalls_of_quality(read_json(RESULTS / "quality.json"))
    yield from shortfalls_of_efficiency(read_json(RESULTS / "efficiency.json"))
    yield from shortfalls_of_cost(read_json(RESULTS / "method_cost.json"))
    for each in throughputs():
        yield from shortfalls_of_throughput(each)
    yield from shortfalls_of_memory(read_json(RESULTS / "memory.json"))
    yield from shortfalls_of_reliability(read_json(RESULTS / "faults.json"), read_json(RESULTS / "saving.json"))
    yield from not_told()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is not so")
    if parser.parse_args().check:
        sys.exit("\n".join(problems()) or 0)
    tables = current_tables()
    for name, table in tables.items():
        write_text(RESULTS / f"{name}.md", table)
    for name, picture in current_pictures().items():
        path = RESULTS / f"{name}.svg"
        temporary_name(path).write_bytes(picture)
        temporary_name(path).replace(path)
    for path in documents():
        text = written(path, [block for table in tables.values() for block in blocks(table)])
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)


if __name__ == "__main__":
    main()
