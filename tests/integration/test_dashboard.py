"""W&B is sent the workspaces that are defined; those whose address is given are overwritten."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from transact.tracking.dashboard.command import main
from transact.tracking.dashboard.definitions import RUNS, SWEEPS, Definition, Points


class Server(ThreadingHTTPServer):
    """Answers the GraphQL of W&B as far as views go. views: by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.views: dict[str, dict[str, Any]] = {}
        self.inserted: list[str] = []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            name = variables["name"]
            if "id" not in variables:
                self.inserted.append(name)
            self.views[name] = {"id": name.upper(), "displayName": variables["displayName"], "spec": variables["spec"]}
            return {"upsertView": {"view": {"id": name.upper(), "name": name}, "inserted": "id" not in variables}}
        if "allViews" in query:
            found = self.views.get(variables["viewName"])
            return {"project": {"allViews": {"edges": [{"node": found}] if found else []}}}
        return {"viewer": {"id": "1", "entity": "someone"}, "serverInfo": {}}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        if self.path != "/graphql":  # W&B's figures of its own client, without a body
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, Server)
        answer = json.dumps({"data": self.server.answer(body["query"], body.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "f00d" * 10)
        yield server
        server.shutdown()


def test_a_push_with_addresses_overwrites_what_an_earlier_one_made(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "--entity", "someone", "--project", "pruning"]) == 0
    runs, sweeps = (line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert [runs[0], sweeps[0]] == ["transact runs", "transact sweeps"]
    made = dict(server.views)
    for view in server.views.values():  # as a user may leave them
        view["displayName"] = "renamed"
    assert main(["push", "--runs", runs[1], "--sweeps", sweeps[1]]) == 0
    assert capsys.readouterr().out.splitlines() == [": ".join(runs), ": ".join(sweeps)]
    assert server.inserted == list(made) == list(server.views)
    assert [view["displayName"] for view in server.views.values()] == ["transact runs", "transact sweeps"]
    assert [sent_panels(view["spec"]) for view in server.views.values()] == [
        defined_panels(each) for each in (RUNS, SWEEPS)
    ]


def test_an_address_that_is_none_is_told_in_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "--runs", "nonsense"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: W&B did not take it: ") and "\n" not in said
    assert server.inserted == []


def test_the_server_is_sent_every_panel_of_the_definitions(server: Server) -> None:
    assert main(["push", "--entity", "someone", "--project", "pruning"]) == 0
    sent = [sent_panels(view["spec"]) for view in server.views.values()]
    assert sent == [defined_panels(each) for each in (RUNS, SWEEPS)]


def test_show_prints_what_the_workspaces_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 0
    runs, sweeps = json.loads(capsys.readouterr().out)
    assert [runs["name"], sweeps["name"]] == ["transact runs", "transact sweeps"]
    titles = [panel["title"] for section in sweeps["sections"] for panel in section["panels"]]
    assert "Perplexity over decode speed-up" in titles


def sent_panels(spec: str) -> list[tuple[str, str, list[str], str | None, bool]]:
    """Section, title, figures, axis, and whether it is logarithmic, of each panel in its order."""
    found, places = [], set()
    for section in json.loads(spec)["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config, layout = panel["config"], panel["layout"]
            names = config.get("metrics") or [config["yAxis"]]
            axis, logarithmic = config.get("xAxis"), config.get("yLogScale", False)
            found.append((section["name"], config["chartTitle"], names, axis, logarithmic))
            places.add((section["name"], layout["x"], layout["y"]))
    assert len(places) == len(found), "two panels at the same place"
    return found


def defined_panels(definition: Definition) -> list[tuple[str, str, list[str], str | None, bool]]:
    found: list[tuple[str, str, list[str], str | None, bool]] = []
    for section in definition.sections:
        for panel in section.panels:
            if isinstance(panel, Points):
                found.append((section.name, panel.title, [f"summary:{panel.y}"], f"summary:{panel.x}", False))
            else:
                found.append((section.name, panel.title, list(panel.names), panel.axis, panel.is_logarithmic))
    return found


def test_a_request_without_entity_or_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["push"]) == 2
    assert capsys.readouterr().err == "error: push needs --entity: your user or team at W&B\n"
    assert main(["push", "--entity", "someone"]) == 2
    assert capsys.readouterr().err == "error: no W&B API key: set WANDB_API_KEY or run `wandb login`\n"
