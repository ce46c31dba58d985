"""Layers that differ: one picture of the channels, heads and rotary pairs that each of them keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.report_folders import SMALL, MadeUpRun, write_run
from transact.files import read_json, write_json
from transact.geometry import Widths
from transact.tracking.report.drawing import Chart
from transact.tracking.report.run_files import read_run
from transact.tracking.report.shapes import shapes_section


def test_one_picture_shows_what_every_layer_keeps(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", MadeUpRun(rounds=1, done=1))
    assert shapes_section(read_run(folder)) is None  # all layers are alike
    sizes = ((2, 640), (1, 320), (2, 160), (1, 480))
    widths = [Widths(num_key_value_heads=heads, intermediate_size=size) for heads, size in sizes]
    shape = replace(SMALL, head_dim=24).with_layers(widths)
    path = folder / "round_01" / "selection.json"
    write_json(path, read_json(path) | {"source": SMALL.to_dict(), "target": shape.to_dict()})
    section = shapes_section(read_run(folder))
    assert section is not None
    (chart,) = section.blocks
    assert isinstance(chart, Chart) and chart.table is not None
    (view,) = chart.views.values()
    assert {bars["name"]: bars["y"] for bars in view["data"]} == {
        "MLP channels": [1.0, 0.5, 0.25, 0.75],
        "key-value heads": [1.0, 0.5, 1.0, 0.5],
        "rotary pairs": [0.75] * 4,
    }
    assert chart.table.rows[1] == ["1", "320", "3", "1", "12"]
