"""Writes report.html into the folder that it describes: one file that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transact.distributed.file_lock import exclusive
from transact.files import TEMPORARY_SUFFIX, publish
from transact.runs.run_folder import is_run, run_folders
from transact.tracking.report.drawing import Block, Chart, Code, Named, Note, Page, Section, Table, moment
from transact.tracking.report.run_files import read_run
from transact.tracking.report.run_page import run_page
from transact.tracking.report.sweep_page import REPORT, read_sweep, sweep_page

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PLOTLY = ASSETS / "plotly" / "plotly-cartesian.min.js"
NUMBER = re.compile(r"^-?[\d.,]*(e[-+]?\d+)?( ?%| ?[kMBT]| [KMGT]?iB| bytes| s| of [\d,]+)?$")
SCRIPT, STYLE = ASSETS / "report" / "page.js", ASSETS / "report" / "page.css"


def render(page: Page) -> str:
    """Return the whole file. Only the two scripts that are in it may run, and nothing may be loaded."""
    scripts = [path.read_text(encoding="utf-8") for path in (PLOTLY, SCRIPT)]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    body = "\n".join([_header(page), "<main id=content>", *map(_section, page.sections), "</main>", _footer()])
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">',
            f"<title>{_text(page.title)}: {_text(page.state)}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            body,
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _header(page: Page) -> str:
    state = page.state if page.state in ("running", "done", "failed", "diverged", "stopped") else "other"
    links = "".join(f'<li><a href="#{section.name}">{_text(section.title)}</a></li>' for section in page.sections)
    live = (
        '<label class="live"><input type="checkbox" id="reload"> Load again every minute</label>'
        if page.is_live
        else ""
    )
    tiles = "".join(
        f"<div><dt>{_text(label)}</dt><dd>{_text(value)}<small>{_text(remark)}</small></dd></div>"
        for label, value, remark in page.tiles
    )
    return "\n".join(
        [
            '<a class="skip" href="#content">Skip to the charts</a>\n<header>',
            f'<h1>{_text(page.title)} <span class="state {state}">{_text(page.state)}</span></h1>',
            *(f"<p>{_text(line)}</p>" for line in page.lines),
            f'<p class="muted">Written {moment(time.time())}. {live}</p>',
            f'<dl class="tiles">{tiles}</dl>' if tiles else "",
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
            "<noscript><p>The charts need JavaScript; the tables below them do not.</p></noscript>\n</header>",
        ]
    )


def _footer() -> str:
    return '<footer><p class="muted">Written by transact. Charts: plotly.js (MIT licence).</p></footer>'


def _section(section: Section) -> str:
    heading = f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
    title = f'<h2 id="{section.name}-title">{_text(section.title)}</h2>'
    return "\n".join([heading, title, '<div class="blocks">', *map(_block, section.blocks), "</div>\n</section>"])


def _block(block: Block) -> str:
    if isinstance(block, Chart):
        return _chart(block)
    if isinstance(block, Named):
        return f'<div class="wide"><h3>{_text(block.title)}</h3>{_table(block.table, block.title)}</div>'
    if isinstance(block, Note):
        return f'<p class="wide{" warning" if block.is_warning else ""}">{_text(block.text)}</p>'
    return _code(block)


def _code(block: Code) -> str:
    text = f'<pre tabindex="0" role="region" aria-label="{_text(block.title)}">{_text(block.text)}</pre>'
    if block.is_folded:
        return f'<details class="wide"><summary>{_text(block.title)}</summary>{text}</details>'
    return f'<div class="wide"><h3>{_text(block.title)}</h3>{text}</div>'


def _chart(chart: Chart) -> str:
    last = len(chart.views) - 1
    options = "".join(
        f'<option value="{turn}"{" selected" if turn == last else ""}>{_text(label)}</option>'
        for turn, label in enumerate(chart.views)
    )
    title = _text(chart.title)
    chooser = f'<select id="{chart.name}-view" aria-label="{title}: which round">{options}</select>' if last > 0 else ""
    return "\n".join(
        [
            f'<figure class="chart{" wide" if chart.is_wide else ""}" id="{chart.name}">',
            f"<figcaption><h3>{title}</h3>{chooser}</figcaption>",
            f'<div class="drawing" id="{chart.name}-drawing" role="img" aria-label="{_text(chart.summary)}" '
            f'style="height:{chart.height}px"></div>',
            f'<script type="application/json" id="{chart.name}-data">{_json(list(chart.views.values()))}</script>',
            f"<details><summary>{title}: the figures</summary><p>{_text(chart.summary)}</p>"
            f"{_table(chart.table, chart.title)}</details>\n</figure>",
        ]
    )


def _json(value: Any) -> str:
    """Encode JSON for the inside of a script element, which a `<` in a user's words could end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _table(table: Table, label: str) -> str:
    columns = [_is_text([row[turn] for row in table.rows]) for turn in range(len(table.headings))]
    head = "".join(
        f'<th scope="col"{_aligned(is_text)}>{_text(heading)}</th>'
        for heading, is_text in zip(table.headings, columns, strict=True)
    )
    body = "".join(_row(row, columns, table.links) for row in table.rows)
    note = f'<p class="muted">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(label)}: table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
    )


def _is_text(cells: Sequence[str]) -> bool:
    """Return whether a column holds text: numbers are aligned to the right."""
    return any(cell and not NUMBER.match(cell) for cell in cells)


def _aligned(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _row(row: Sequence[str], columns: Sequence[bool], links: dict[str, str]) -> str:
    name, *cells = row
    shown = f'<a href="{_text(links[name])}">{_text(name)}</a>' if name in links else _text(name)
    rest = (f"<td{_aligned(is_text)}>{_text(cell)}</td>" for cell, is_text in zip(cells, columns[1:], strict=True))
    return f'<tr><th scope="row">{shown}</th>{"".join(rest)}</tr>'


LOCK = "report.lock"  # in the folder of a sweep, whose points write the same page
POLL_SECONDS = 0.05


def write_run_page(folder: Path) -> Path:
    """Write the page of a run and return its path.

    Raises:
        OSError: it cannot be written.
    """
    return _write(folder / REPORT, render(run_page(read_run(folder))))


def write_sweep_page(folder: Path, patience_seconds: float = math.inf) -> Path:
    """Write the page of a sweep, one writer at a time. Each reads the files then, so the last page has everything.

    Raises:
        TimeoutError: others were writing it for `patience_seconds`.
        OSError: it cannot be written.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        with exclusive(folder / LOCK, wait=False) as is_alone:
            if is_alone:
                return _write(folder / REPORT, render(sweep_page(read_sweep(folder))))
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another process has held {LOCK} for {patience_seconds:g} s")
        time.sleep(POLL_SECONDS)


def write_pages(folder: Path) -> list[Path]:
    """Write the page of a run after those of its variants, or that of a sweep after those of its points.

    Raises:
        ValueError: the folder holds neither.
        OSError: a page cannot be written.
    """
    if is_run(folder):
        return [write_run_page(each) for each in reversed(run_folders(folder))]
    return [*(write_run_page(each) for each in run_folders(folder)), write_sweep_page(folder)]


def _write(path: Path, text: str) -> Path:
    """Write under a temporary name of this thread: a run and `transact report` may write the same page at once."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
