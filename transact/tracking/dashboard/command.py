"""W&B workspaces for runs and for sweeps, made on the server or overwritten there.

python -m transact dashboard push --entity ENTITY --project PROJECT
"""

from __future__ import annotations

import json
from dataclasses import asdict

from transact.errors import DONE, Parser, fail, one_line, refuse
from transact.tracking.dashboard.definitions import RUNS, SWEEPS
from transact.tracking.wandb_run import has_api_key


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="transact dashboard", description=__doc__)
    parser.add_argument("action", choices=("push", "show"), help="push: to the server; show: print what they show")
    parser.add_argument("--entity", default="", help="your user or team at W&B; needed to make new ones")
    parser.add_argument("--project", default="transact", help="as in track.project (default: transact)")
    parser.add_argument("--runs", metavar="ADDRESS", help="overwrite the workspace for runs that an earlier push made")
    parser.add_argument("--sweeps", metavar="ADDRESS", help="the same, for sweeps")
    given = parser.parse_args(arguments)
    if given.action == "show":
        print(json.dumps([asdict(each) for each in (RUNS, SWEEPS)], indent=1))
        return DONE
    try:
        from transact.tracking.dashboard import workspaces
    except ImportError:
        return refuse("wandb-workspaces is not installed: pip install 'transact[dashboard]'")
    addresses = [(each, address) for each, address in ((RUNS, given.runs), (SWEEPS, given.sweeps)) if address]
    if not given.entity and not addresses:
        return refuse("push needs --entity: your user or team at W&B")
    if not has_api_key():
        return refuse("no W&B API key: set WANDB_API_KEY or run `wandb login`")
    try:
        for each, address in addresses:
            print(f"{each.name}: {workspaces.overwrite(each, address)}", flush=True)
        for each in (RUNS, SWEEPS) if not addresses else ():
            print(f"{each.name}: {workspaces.create(each, given.entity, given.project)}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever stands between us and the server
        return fail(f"W&B did not take it: {one_line(error)}")
    return DONE
