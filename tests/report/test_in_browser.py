"""Reports as a reader gets them: in a real browser, on a desk and on a phone, light and dark, without a network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import opened
from tests.support.commands import REPOSITORY
from tests.support.report_folders import SMALL, MadeUpRun, write_run
from transact.tracking.report.writing import write_pages, write_run_page

SCREENSHOTS = REPOSITORY / "outputs" / "report_screenshots"
MOST_BYTES = 3_000_000
RUN_CHARTS = {"loss", "perplexity", "learning-rate", "gradient-norm", "dimensions", "perplexity-by-round", "redundancy"}
RUN_CHARTS |= {"kept-energy", "map-query", "map-key", "map-attention-output", "map-intermediate", "throughput"}
RUN_CHARTS |= {"mfu", "memory", "stages"}
CHARTS = {
    "llama_7b": RUN_CHARTS | {"tasks", "speed-up"},
    "running": RUN_CHARTS,
    "failed": RUN_CHARTS,
    "begun": set(),
    "sweep": {f"{quality}-{cost}" for quality in ("perplexity", "tasks") for cost in ("parameters", "kv", "latency")},
}
VIEWS = [(name, width, theme) for name in ("llama_7b", "sweep") for width in (1280, 390) for theme in ("light", "dark")]
VIEWS += [("running", 390, "light"), ("failed", 390, "dark"), ("begun", 390, "light"), ("begun", 1280, "dark")]
# Marks that data has made: lines and dots, bars, and the picture of a heat map.
DRAWN = """() => Object.fromEntries([...document.querySelectorAll('figure.chart')].map(chart => [chart.id,
    chart.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image').length]))"""
COLOURS = "() => [...document.querySelectorAll('.drawing text')].slice(0, 1).map(text => getComputedStyle(text).fill)"


@pytest.mark.parametrize(("name", "width", "theme"), VIEWS)
def test_every_page_is_whole(browser: Any, pages: dict[str, Path], name: str, width: int, theme: str) -> None:
    """No complaint, no request but for the file, every chart there and not empty, nothing wider than the screen."""
    with opened(browser, pages[name], width=width, theme=theme) as watched:
        drawn = watched.page.evaluate(DRAWN)
        assert set(drawn) == CHARTS[name]
        assert [chart for chart, marks in drawn.items() if not marks] == []
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
        wider = (
            "[...document.querySelectorAll('.drawing')].filter(each => each.scrollWidth > each.clientWidth + 1).length"
        )
        assert watched.page.evaluate(wider) == 0
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        watched.page.screenshot(path=SCREENSHOTS / f"{name}_{width}_{theme}.png", full_page=True)
    assert watched.complaints == []
    assert watched.requests == [pages[name].absolute().as_uri()]


TICKS = """() => [...document.querySelectorAll('figure.chart')].flatMap(chart => {
    const drawing = chart.querySelector('.drawing');
    return Object.entries(drawing._fullLayout).filter(([name, axis]) => /^yaxis/.test(name) && axis.type === 'log')
        .map(([name]) => [...drawing.querySelectorAll(`.${name[0]}${name.slice(5)}tick text`)].map(text => {
            const box = text.getBoundingClientRect();
            return {words: text.textContent, top: box.top, bottom: box.bottom};
        })).map(ticks => ({chart: chart.id, ticks}));
})"""
# The perplexity of the parent, and nats to the worst: a hair, less than from tick to tick, decades, very many.
RANGES = [(25.0, 0.004), (12.0, 0.4), (5.0, 9.0), (1.5, 30.0), (3.0, 140.0)]


@pytest.mark.parametrize(("lowest", "growth"), RANGES)
def test_logarithmic_axes_are_readable_at_any_width(browser: Any, tmp_path: Path, lowest: float, growth: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten alone, two at least, and no word touches another."""
    for fraction in (0.5, 0.9):
        run = MadeUpRun(lowest=lowest, growth=growth, steps=4, fraction=fraction, geometry=SMALL, rounds=3, done=3)
        write_run(tmp_path / "sweep" / f"prune.remove_fraction={fraction}", run)
    *runs, sweep = write_pages(tmp_path / "sweep")
    for page, width in ((runs[-1], 320), (runs[-1], 1280), (sweep, 320)):
        with opened(browser, page, width=width) as watched:
            found = watched.page.evaluate(TICKS)
        assert {each["chart"] for each in found} >= ({"perplexity-kv"} if page == sweep else {"perplexity"})
        for each in found:
            words = [tick["words"] for tick in each["ticks"]]
            values = [float(word.replace(",", "")) for word in words]
            assert len(values) >= 2, (each, width)
            assert {f"{value:.4e}"[:6] for value in values} <= {"1.0000", "2.0000", "5.0000"}, (each, width)
            boxes = sorted((tick["top"], tick["bottom"]) for tick in each["ticks"])
            assert all(first[1] <= second[0] + 1 for first, second in pairwise(boxes)), (each, width)


def test_a_large_run_fits(pages: dict[str, Path]) -> None:
    """32 layers of 11,008 channels, eight rounds of 1,500 steps."""
    assert pages["llama_7b"].stat().st_size < MOST_BYTES


@contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of one on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()


def test_the_page_could_not_ask_for_anything_if_it_wanted_to(browser: Any, pages: dict[str, Path]) -> None:
    """The policy in the page stops pictures, scripts, styles and calls; a page without one shows that it is that."""
    attempt = """async (address) => {
        const load = (tag, name) => new Promise(done => {
            const element = document.createElement(tag);
            element.onload = element.onerror = done;
            if (tag === 'link') { element.rel = 'stylesheet'; element.href = address + name; }
            else element.src = address + name;
            document.head.append(element);
        });
        await Promise.all([load('img', '/img'), load('script', '/script'), load('link', '/link'),
            fetch(address + '/fetch', {mode: 'no-cors'}).catch(() => null)]);
    }"""
    with server() as (address, asked):
        with opened(browser, pages["running"]) as watched:
            watched.page.evaluate(attempt, address)
            assert asked == []
            assert any("Content Security Policy" in each for each in watched.complaints)
        page = browser.new_page()
        page.evaluate(attempt, address)
        page.close()
        assert {"/img", "/script", "/link", "/fetch"} <= set(asked)


def test_everything_is_reached_by_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    """First the way past the navigation, then all that can be used, in the order of the page, each with a frame."""
    where = """() => { const element = document.activeElement, style = getComputedStyle(element);
        return {tag: element.tagName, id: element.id, text: element.textContent.slice(0, 60),
            place: [...document.querySelectorAll('*')].indexOf(element), frame: style.outlineStyle}; }"""
    usable = "document.querySelectorAll('a, select, summary, input, [tabindex]').length"
    hidden = "document.querySelectorAll('details:not([open]) [tabindex], details:not([open]) a').length"
    with opened(browser, pages["running"]) as watched:
        page, found = watched.page, []
        count = page.evaluate(usable) - page.evaluate(hidden)
        for _ in range(count):
            page.keyboard.press("Tab")
            found.append(page.evaluate(where))
        assert found[0]["text"] == "Skip to the charts"
        assert {each["frame"] for each in found} == {"solid"}
        assert "BODY" not in {each["tag"] for each in found}
        assert [each["place"] for each in found] == sorted(each["place"] for each in found)
        assert {"SELECT", "SUMMARY", "A", "INPUT", "DIV"} <= {each["tag"] for each in found}

        page.focus("#loss summary")
        page.keyboard.press("Enter")
        assert page.is_visible("#loss table")
        before = page.evaluate("document.querySelector('#map-query .heatmaplayer image').href.baseVal")
        page.focus("#map-query-view")
        page.keyboard.press("ArrowUp")
        page.wait_for_function(
            "before => document.querySelector('#map-query .heatmaplayer image').href.baseVal !== before", arg=before
        )


def test_charts_say_what_they_show(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["llama_7b"]) as watched:
        unnamed = watched.page.locator("figure.chart:not(:has([role=img][aria-label])), figure.chart:not(:has(table))")
        assert unnamed.count() == 0
        assert watched.page.locator("h1, h2, h3").count() > 20
        assert watched.page.get_by_role("img", name="Perplexity over tokens").count() == 1


def test_charts_follow_the_theme(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["running"], theme="light") as watched:
        light = watched.page.evaluate(COLOURS)
        watched.page.emulate_media(color_scheme="dark")
        watched.page.wait_for_function(f"light => JSON.stringify(({COLOURS})()) !== light", arg=_json(light))
        watched.page.emulate_media(color_scheme="light")
        watched.page.wait_for_function(f"light => JSON.stringify(({COLOURS})()) === light", arg=_json(light))


def _json(value: list[str]) -> str:
    return "[" + ",".join(f'"{each}"' for each in value) + "]"


def test_words_of_users_stay_words(browser: Any, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)><b>%{y}</b>&amp;"
    folder = write_run(tmp_path / "run", MadeUpRun(name=hostile, state="failed", error=hostile))
    compared = {"tasks": {hostile: {"acc": 0.5}}}
    (folder / "comparison.json").write_text(str({"dense": compared, "pruned": compared}).replace("'", '"'))
    with opened(browser, write_run_page(folder)) as watched:
        assert hostile in watched.page.inner_text("h1")
        assert hostile in watched.page.inner_text("header")
        assert hostile.replace("&amp;", "&") in watched.page.text_content("#tasks .drawing").replace("&amp;", "&")
    assert watched.complaints == []


def test_a_page_of_a_run_at_work_can_load_itself_again(browser: Any, pages: dict[str, Path]) -> None:
    with opened(browser, pages["running"]) as watched:
        assert watched.page.is_visible("text=At work on round_02/recover.")
        assert not watched.page.is_checked("#reload")
        watched.page.check("#reload")
        watched.page.reload()
        assert watched.page.is_checked("#reload")
    with opened(browser, pages["failed"]) as watched:
        assert watched.page.locator("#reload").count() == 0
        assert "the disk is full" in watched.page.inner_text("header")
