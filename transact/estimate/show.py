"""Print the plan of a pruning run, and leave it in the run's folder."""

from __future__ import annotations

from pathlib import Path

from transact.config import RunConfig
from transact.errors import DONE, printable, refuse, speaks
from transact.estimate.contents import forecast
from transact.estimate.text import text
from transact.files import write_json, write_text
from transact.runs.run_record import LAYOUT, check_run_folder
from transact.stages.places import check_places
from transact.stages.preflight import check_hub_texts


def show_plan(config: RunConfig) -> int:
    """On rank 0: writes plan.json and plan.txt, and nothing else; a run in the same folder takes no notice of them.
    Returns the exit code."""
    if not speaks():
        return DONE
    try:
        check_places(config)
        check_run_folder(config.output_dir, config.share_dir)
        plan = forecast(config)
        check_hub_texts(config)
        said = text(plan)
        folder = Path(config.output_dir)
        write_json(folder / "plan.json", {"layout": LAYOUT} | plan)
        write_text(folder / "plan.txt", said)
    except (ValueError, OSError) as error:
        return refuse(error)
    print(f"{printable(said)}written: {folder / 'plan.txt'}, {folder / 'plan.json'}")
    return DONE
