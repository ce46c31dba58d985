"""The final model beside its parent: perplexity on texts, tasks, and what it costs to run."""

from __future__ import annotations

from typing import Any

from transact.config.inputs import NO_METRICS, of_what, trained_on
from transact.data.overlap import TOLD_SHARE, WINDOW
from transact.tracking.report.drawing import (
    COLOURS,
    MISSING,
    Block,
    Chart,
    Named,
    Note,
    Section,
    Table,
    axis,
    bars,
    number,
    size,
)
from transact.tracking.report.run_files import RunFiles, Values, figure, values_in

PREFERRED = ("acc_norm", "acc", "exact_match", "f1", "mc2", "mc1")  # the first of these is a task's score
# Endings of metric names where less is better.
NO_SCORES = ("perplexity", "bits_per_byte", "ppl", "loss", "brier_score")


def evaluation_section(run: RunFiles) -> Section | None:
    dense, pruned = sides(run)
    rows = [*_own_rows(run), *_rows(dense, pruned)]
    if not rows:
        return None
    if run.is_pretrained:  # there is no other model
        table = Table(headings=["text", "metric", "model"], rows=[row[:3] for row in rows])
        return Section(name="evaluation", title="Evaluation", blocks=[Named(title="The trained model", table=table)])
    table = Table(headings=["text or task", "metric", "parent", "pruned", "pruned / parent"], rows=rows)
    blocks: list[Block] = [Named(title="Parent and pruned model", table=table)]
    limits = values_in(run.result, "budget")
    if limits:
        blocks.append(
            Named(title="Limits asked and reached", table=_limits(limits, values_in(run.efficiency, "limit")))
        )
    blocks += [
        Note(
            text=f"{share:.1%} of the windows of {setting} ({WINDOW} tokens) stand in the training text too.",
            is_warning=True,
        )
        for setting, value in values_in(run.record, "texts_trained_on").items()
        if (share := figure(value) or 0.0) >= TOLD_SHARE
    ]
    chart = _tasks(dense, pruned)
    return Section(
        name="evaluation", title="Evaluation against the parent", blocks=[*blocks, chart] if chart else blocks
    )


def _limits(limits: Values, latency: Values) -> Table:
    """Return what was asked for and reached. latency: what of it was measured once more, on the machine of the run."""
    measured = figure(latency.get("measured"))
    headings = ["limit", "at most", "pruned", "parent", *(["pruned, measured here"] if measured is not None else [])]

    def cells(name: str) -> list[str]:
        own = [figure(limits[name].get(key)) for key in ("most", "reached", "dense")]
        again = [measured if name == "latency_ms" else None] if measured is not None else []
        return [f"prune.budget.{name}", *map(number, [*own, *again])]

    return Table(headings=headings, rows=[cells(name) for name in limits])


def sides(run: RunFiles) -> tuple[Values, Values]:
    """Return "texts" and "tasks" of the parent and of the pruned model."""
    return values_in(run.compared, "dense"), values_in(run.compared, "pruned")


def task_score(metrics: Values) -> tuple[str, float] | None:
    """Return the metric that is the score of a task, and its value: between 0 and 1, so that tasks can be averaged."""
    for name in (*PREFERRED, *(each for each in metrics if each not in NO_METRICS and not each.endswith(NO_SCORES))):
        value = figure(metrics.get(name))
        if value is not None and 0 <= value <= 1:
            return name, value
    return None


def mean_score(run: RunFiles, role: str) -> float | None:
    """Return the mean over the tasks that were asked for and have a score; one that measures perplexity has none.

    A group counts once, by its own score, and not again with its parts; where none that was asked for has a score, all
    parts count. The parent's metrics decide, and both models count the same tasks. role: "dense" or "pruned".
    """
    tasks = {side: values_in(run.compared, side, "tasks") for side in ("dense", "pruned") if side in run.compared}
    scores = {}
    for name in tasks.get("dense", {}):
        metric, _ = task_score(values_in(tasks["dense"], name)) or ("", 0.0)
        found: Values = {side: figure(values_in(each, name).get(metric)) for side, each in tasks.items()}
        if None not in found.values() and role in found:
            scores[name] = found[role]
    asked = values_in(values_in(run.config, "eval"), "tasks")
    counted = [scores[name] for name in asked if name in scores] or [*scores.values()]
    return sum(counted) / len(counted) if counted else None


def _own_rows(run: RunFiles) -> list[list[str]]:
    ends = [values_in(each.evaluation, "recovered") or values_in(each.evaluation, "sliced") for each in run.rounds]
    last = next(filter(None, reversed(ends)), {})
    before, after = figure(run.dense.get("perplexity")), figure(last.get("perplexity"))
    if before is None:
        return []
    metric = f"perplexity{of_what(run.dense)}"
    return [["held-out text of the run", metric, number(before), number(after), _ratio(before, after)]]


def _rows(dense: Values, pruned: Values) -> list[list[str]]:
    rows = []
    for kind in ("texts", "tasks"):
        for name, metrics in values_in(dense, kind).items():
            if not isinstance(metrics, dict):
                continue
            for metric, value in metrics.items():
                other = figure(values_in(pruned, kind, name).get(metric))
                before = figure(value)
                if metric not in NO_METRICS and before is not None:
                    shots = f" ({metrics['shots']}-shot)" if metrics.get("shots") else ""
                    metric += of_what(metrics)
                    rows.append(
                        [
                            f"{name}{shots}{trained_on(metrics)}",
                            metric,
                            number(before),
                            number(other),
                            _ratio(before, other),
                        ]
                    )
    return rows


def _ratio(before: float, after: float | None) -> str:
    return MISSING if after is None or not before else f"{after / before:.3f}"


def _tasks(dense: Values, pruned: Values) -> Chart | None:
    tasks = values_in(dense, "tasks")
    pairs = []
    for name in tasks:
        score = task_score(values_in(tasks, name))
        if score is not None:
            pairs.append((name, score[0], score[1], figure(values_in(pruned, "tasks", name).get(score[0]))))
    if not pairs:
        return None
    labels = [name for name, *_ in pairs]
    traces = [
        bars("parent", labels, [before for *_, before, _ in pairs], COLOURS[0]),
        bars("pruned", labels, [after for *_, after in pairs], COLOURS[1]),
    ]
    layout = {"xaxis": axis("", type="category"), "yaxis": axis("score", rangemode="tozero"), "barmode": "group"}
    told = "; ".join(f"{name}: {number(before)} and {number(after)}" for name, _, before, after in pairs)
    return Chart(
        name="tasks",
        title="Tasks",
        summary=f"Scores of parent and pruned model. {told}.",
        views={"": {"data": traces, "layout": layout}},
        table=Table(
            headings=["task", "metric", "parent", "pruned"],
            rows=[[name, metric, number(before), number(after)] for name, metric, before, after in pairs],
        ),
    )


PARENT, PRUNED = "parent", "pruned"
PHASES = ("prefill", "decode", "whole")
GIGA = 1e9


def efficiency_section(run: RunFiles) -> Section | None:
    found = run.efficiency
    if not found and not run.imported:
        return None
    blocks: list[Block] = []
    reason = found.get("not_measured")
    if reason:
        blocks.append(Note(text=f"Latency was not measured: {reason}."))
    rows = latency_rows(found)
    if rows:
        blocks.append(Note(text=_conditions(found, rows)))
        blocks.append(_speed_ups(rows))
    draft = values_in(found, "draft")
    if draft:
        blocks.append(Named(title="As a draft of its parent", table=_draft(draft)))
    tables = {
        "Latency and memory": _latencies(rows, found),
        "Work": _work(rows),
        "Size": _sizes(values_in(found, "models"), values_in(found, "settings").get("dtype")),
        "Measured by other software": _imported(run.imported),
    }
    blocks += [Named(title=title, table=table) for title, table in tables.items() if table.rows]
    return Section(name="efficiency", title="Efficiency", blocks=blocks) if blocks else None


def latency_rows(efficiency: Values) -> list[Values]:
    rows = efficiency.get("latency")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def decode_seconds(efficiency: Values, role: str = PRUNED) -> float | None:
    """Return the seconds of one decoding step in the first setting that was measured, or None where there is none."""
    rows = latency_rows(efficiency)
    return _seconds(rows[0], role, "decode", _clock(efficiency)) if rows else None


def decode_setting(efficiency: Values) -> str | None:
    """Return the setting in which `decode_seconds` was measured."""
    rows = latency_rows(efficiency)
    return _setting(rows[0]) if rows else None


def _clock(efficiency: Values) -> str:
    return str(values_in(efficiency, "settings").get("clock") or "wall")


def _seconds(row: Values, role: str, phase: str, clock: str) -> float | None:
    return figure(values_in(row, "models", role, phase).get(f"{clock}_seconds"))


def _setting(row: Values) -> str:
    return f"{row.get('prompt_tokens')}+{row.get('new_tokens')} tokens, batch {row.get('batch_size')}"


def _conditions(efficiency: Values, rows: list[Values]) -> str:
    settings = values_in(efficiency, "settings")
    clocks = {"processor": "processor time of one thread", "wall": "wall time"}
    clock = clocks.get(str(settings.get("clock")), "")
    turns = sorted({count for row in rows if isinstance(count := row.get("turns"), int)})
    counted = " to ".join(str(each) for each in dict.fromkeys((turns[0], turns[-1]))) if turns else MISSING
    missing = efficiency.get("left_out")
    shorter = (
        f" Left out for want of time: {'; '.join(map(str, missing))}." if isinstance(missing, list) and missing else ""
    )
    where = f"{settings.get('dtype')} on {settings.get('device')}"
    return f"{where}, {clock}, medians of {counted} turns; decode: one step.{shorter}"


def _speed_ups(rows: list[Values]) -> Chart:
    """Return a chart of the measured speed-ups beside those that the removed FLOPs and bytes allow."""
    labels = [f"{phase}, {_setting(row)}" if len(rows) > 1 else phase for row in rows for phase in PHASES]
    entries = [values_in(row, "speed_ups", PRUNED, phase) for row in rows for phase in PHASES]
    wanted = {"speed_up": "measured", "allowed": "allowed by the cut"}
    values = {key: [figure(entry.get(key)) for entry in entries] for key in wanted}
    traces = [
        bars(label, labels, values[key], COLOURS[turn])
        for turn, (key, label) in enumerate(wanted.items())
        if any(value is not None for value in values[key])
    ]
    table = Table(
        headings=["", *wanted.values()],
        rows=[[label, *(_times(values[key][turn]) for key in wanted)] for turn, label in enumerate(labels)],
    )
    told = "; ".join(f"{label}: {_times(values['speed_up'][turn])}" for turn, label in enumerate(labels))
    layout = {"xaxis": axis("", type="category"), "yaxis": axis("times as fast as the parent", rangemode="tozero")}
    return Chart(
        name="speed-up",
        title="Speed-up over the parent",
        summary=f"How many times as fast as the parent. {told}.",
        views={"": {"data": traces, "layout": layout | {"barmode": "group"}}},
        table=table,
    )


def _draft(draft: Values) -> Table:
    """Return what speculative decoding with the pruned model as the parent's draft gave."""
    keys = ("acceptance_rate", "tokens_per_parent_forward", "speed_up", "same_tokens")
    return Table(
        headings=[
            "proposals accepted",
            "tokens a forward of the parent",
            "speed-up",
            "tokens as without",
            "prompts",
            "tokens",
        ],
        rows=[
            [
                *(number(figure(draft.get(key))) for key in keys),
                str(draft.get("prompts")),
                f"{draft.get('prompt_tokens')}+{draft.get('new_tokens')}",
            ]
        ],
    )


def _imported(imported: Values) -> Table:
    """Return the figures of other programs: those of parent and pruned model side by side where the setting is one."""
    rows = imported.get("figures")
    kinds: dict[tuple[Any, ...], dict[str, Values]] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            kind = tuple(str(row.get(name) or MISSING) for name in ("software", "setting", "what", "unit"))
            kinds.setdefault(kind, {})[str(row.get("role"))] = row
    cells = []
    for (software, setting, what, unit), models in kinds.items():
        parent, pruned = (figure(values_in(models, role).get("value")) for role in (PARENT, PRUNED))
        ratio = None
        if setting != MISSING and parent and pruned:
            ratio = pruned / parent if unit == "tokens/s" else parent / pruned
        cells.append([software, setting, f"{what}, {unit}", number(parent), number(pruned), _times(ratio)])
    return Table(headings=["by", "setting", "figure", "parent", "pruned", "times as fast"], rows=cells)


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _latencies(rows: list[Values], efficiency: Values) -> Table:
    clock = _clock(efficiency)
    cells = []
    for row in rows:
        for role in (PARENT, PRUNED):
            prefill, decode, whole = (_seconds(row, role, phase, clock) for phase in PHASES)
            milliseconds = [number(None if each is None else 1000 * each) for each in (prefill, decode)]
            peak = values_in(row, "models", role).get("peak_bytes")
            cells.append([_setting(row), role, *milliseconds, number(whole), size(peak)])
    return Table(headings=["setting", "model", "prefill, ms", "decode, ms", "whole, s", "peak memory"], rows=cells)


def _work(rows: list[Values]) -> Table:
    """Return the table of FLOPs and bytes read, which follow from the dimensions alone."""
    cells = []
    for row in rows:
        for role in (PARENT, PRUNED):
            prefill, decode = (values_in(row, "models", role, phase) for phase in ("prefill", "decode"))
            flops = [
                number(None if (each := figure(phase.get("flops"))) is None else each / GIGA)
                for phase in (prefill, decode)
            ]
            cells.append([_setting(row), role, *flops, size(decode.get("bytes"))])
    return Table(headings=["setting", "model", "prefill, GFLOPs", "decode, GFLOPs", "decode, bytes read"], rows=cells)


def _sizes(models: Values, dtype: Any) -> Table:
    def cells(role: str, model: dict[str, Any]) -> list[str]:
        return [
            role,
            number(model.get("parameters")),
            size(model.get("file_bytes")),
            number(model.get("kv_bytes_per_token")),
        ]

    rows = [cells(role, values_in(models, role)) for role in models]
    cache = f"KV bytes/token in {dtype}" if isinstance(dtype, str) else "KV bytes/token"
    return Table(headings=["model", "parameters", "weight files", cache], rows=rows)
