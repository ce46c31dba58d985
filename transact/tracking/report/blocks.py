"""What a page is made of: sections, and in them charts, tables and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Figure = dict[str, Any]  # "data" and "layout", as plotly.js takes them; a colour may be a variable of the page's style


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """
    Attributes:
        rows: of as many cells as there are headings; the first cell names the row.
        links: a row's name -> where it leads.
        note: what is left out, if anything.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """
    Attributes:
        name: in the page's addresses; letters, digits and dashes.
        summary: what the chart shows, in words, for those who do not see it.
        views: label -> figure; where there are several, the reader chooses, and the last one is shown first.
        table: the figures behind it.
        height: of the drawing, in pixels.
        is_wide: takes the whole width of the page.
    """

    name: str
    title: str
    summary: str
    views: dict[str, Figure]
    table: Table
    height: int = 300
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A table that stands by itself."""

    title: str
    table: Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Text to read or copy as it is. is_folded: shown when it is asked for."""

    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A sentence. is_warning: something is wrong."""

    text: str
    is_warning: bool = False


Block = Chart | Named | Code | Note


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """name: in the page's addresses."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """
    Attributes:
        state: one word for what the run is doing: running, done, failed, ...
        lines: below the title.
        tiles: the figures to see first: what it is, value, and a remark.
        is_live: the page will be written again; it offers to be loaded again.
    """

    title: str
    state: str
    lines: Sequence[str]
    tiles: Sequence[tuple[str, str, str]]
    sections: Sequence[Section]
    is_live: bool
