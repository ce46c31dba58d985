"""The final model beside its parent: perplexity on texts, and tasks."""

from __future__ import annotations

from transact.tracking.report.blocks import Block, Chart, Named, Section, Table
from transact.tracking.report.drawing import COLOURS, axis, bars
from transact.tracking.report.metric_rows import figure
from transact.tracking.report.run_files import RunFiles, Values, values_in
from transact.tracking.report.words import MISSING, number
from transact.tracking.scores import COUNTS

PREFERRED = ("acc_norm", "acc", "exact_match", "f1", "mc2", "mc1")  # the one that stands for a task
NO_SCORES = ("perplexity", "bits_per_byte", "ppl", "loss")  # how names of metrics end where less is better


def evaluation_section(run: RunFiles) -> Section | None:
    dense, pruned = sides(run)
    rows = [*_own_rows(run), *_rows(dense, pruned)]
    if not rows:
        return None
    table = Table(headings=["text or task", "metric", "parent", "pruned", "pruned / parent"], rows=rows)
    blocks: list[Block] = [Named(title="Parent and pruned model", table=table)]
    chart = _tasks(dense, pruned)
    return Section(
        name="evaluation", title="Evaluation against the parent", blocks=[*blocks, chart] if chart else blocks
    )


def sides(run: RunFiles) -> tuple[Values, Values]:
    """ "texts" and "tasks" of the parent and of the pruned model."""
    return values_in(run.compared, "dense"), values_in(run.compared, "pruned")


def task_score(metrics: Values) -> tuple[str, float] | None:
    """The metric that stands for a task, and its value: a share of 1, so that tasks can be averaged."""
    for name in (*PREFERRED, *(each for each in metrics if each not in COUNTS and not each.endswith(NO_SCORES))):
        value = figure(metrics.get(name))
        if value is not None and 0 <= value <= 1:
            return name, value
    return None


def mean_score(side: Values) -> float | None:
    """The mean over all tasks that have a score; one that measures perplexity has none."""
    tasks = values_in(side, "tasks")
    scores = [found[1] for name in tasks if (found := task_score(values_in(tasks, name))) is not None]
    return sum(scores) / len(scores) if scores else None


def _own_rows(run: RunFiles) -> list[list[str]]:
    ends = [values_in(each.evaluation, "recovered") or values_in(each.evaluation, "sliced") for each in run.rounds]
    last = next(filter(None, reversed(ends)), {})
    before, after = figure(run.dense.get("perplexity")), figure(last.get("perplexity"))
    if before is None:
        return []
    return [["held-out text of the run", "perplexity", number(before), number(after), _ratio(before, after)]]


def _rows(dense: Values, pruned: Values) -> list[list[str]]:
    rows = []
    for kind in ("texts", "tasks"):
        for name, metrics in values_in(dense, kind).items():
            if not isinstance(metrics, dict):
                continue
            for metric, value in metrics.items():
                other = figure(values_in(pruned, kind, name).get(metric))
                before = figure(value)
                if metric not in COUNTS and before is not None:
                    shots = f" ({metrics['shots']}-shot)" if metrics.get("shots") else ""
                    rows.append([f"{name}{shots}", metric, number(before), number(other), _ratio(before, other)])
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
