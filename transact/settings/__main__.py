"""`python -m transact.settings [--write FOLDER]`: every setting with type, default and meaning."""

from __future__ import annotations

import argparse
from pathlib import Path

from transact.errors import DONE, leave
from transact.files import write_text
from transact.settings.catalogue import settings
from transact.settings.pages import default_text, pages


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m transact.settings", description=__doc__)
    parser.add_argument("--write", metavar="FOLDER", type=Path, help="write a page per group: docs/config")
    folder = parser.parse_args(arguments).write
    if folder is None:
        for each in settings():
            print(
                f"{each.path}  ({each.type}; {default_text(each)})\n    {each.description}\n    Allowed: {each.allowed}"
            )
        return DONE
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        write_text(folder / name, text)
    return DONE


if __name__ == "__main__":
    leave(main())
