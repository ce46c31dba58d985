"""The licence of the parent, as far as its folder tells: a pruned model is a derived work and carries it on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from transact.errors import one_line
from transact.models.model_files import licence_files, own_file, read_object

KEYS = ("license", "license_name", "license_link")
MAX_CARD_BYTES = 1_000_000
FENCE = "---"


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """Attributes: metadata: the keys of a model card that name it. files: names of its texts in the folder."""

    metadata: dict[str, str]
    files: tuple[str, ...]

    @property
    def name(self) -> str | None:
        """In words; None where the folder does not say."""
        return self.metadata.get("license_name") or self.metadata.get("license")


def read_licence(folder: Path) -> Licence:
    """From the metadata block of the model card, and the licence texts beside it.

    Raises:
        ValueError: one of these files is a link out of the folder.
    """
    files = [path.name for path in licence_files(folder)]
    card = own_file(folder, "README.md")
    found = {} if card is None else _card_metadata(card)
    metadata = {key: one_line(found[key]) for key in KEYS if isinstance(found.get(key), str)}
    return Licence(metadata=metadata, files=tuple(files))


def copy_licence(licence: Licence, source: Path, target: Path) -> None:
    for name in licence.files:
        if file := own_file(source, name):
            shutil.copyfile(file, target / name)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a folder knows how to write a conversation."""
    settings = own_file(folder, "tokenizer_config.json")
    return own_file(folder, "chat_template.jinja") is not None or (
        settings is not None and bool(read_object(settings).get("chat_template"))
    )


def _card_metadata(path: Path) -> dict[str, object]:
    """Empty where YAML cannot read it: a card is decoration, not input."""
    with path.open("rb") as file:
        lines = file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0].rstrip() != FENCE or FENCE not in (line.rstrip() for line in lines[1:]):
        return {}
    end = [line.rstrip() for line in lines[1:]].index(FENCE) + 1
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return {}
    return found if isinstance(found, dict) else {}
