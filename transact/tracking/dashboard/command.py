"""`python -m transact dashboard push --entity E --project P`: the W&B workspaces for runs and for sweeps."""

from __future__ import annotations

import argparse
import json

from transact.errors import DONE, fail, one_line, refuse
from transact.tracking.dashboard.definitions import RUNS, SWEEPS
from transact.tracking.wandb_run import has_api_key


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="transact dashboard", description=__doc__)
    parser.add_argument("action", choices=("push", "show"), help="push: to the server; show: print what would be sent")
    parser.add_argument("--entity", default="", help="your user or team at W&B; needed to push")
    parser.add_argument("--project", default="transact", help="as in track.project (default: transact)")
    given = parser.parse_args(arguments)
    try:
        from transact.tracking.dashboard import workspaces
    except ImportError:
        return refuse("wandb-workspaces is not installed: pip install 'transact[dashboard]'")
    if given.action == "show":
        built = [workspaces.build(each, given.entity, given.project) for each in (RUNS, SWEEPS)]
        print(json.dumps([workspaces.specification(each) for each in built], indent=1))
        return DONE
    if not given.entity:
        return refuse("push needs --entity: your user or team at W&B")
    if not has_api_key():
        return refuse("no W&B API key: set WANDB_API_KEY or run `wandb login`")
    try:
        for each in (RUNS, SWEEPS):
            print(f"{each.name}: {workspaces.save(each, given.entity, given.project)}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever stands between us and the server
        return fail(f"W&B did not take it: {one_line(error)}")
    return DONE
