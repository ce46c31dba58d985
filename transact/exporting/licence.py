"""The licence of the parent, as far as its folder tells: a pruned model is a derived work and carries it on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

KEYS = ("license", "license_name", "license_link")
FILE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
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
    """From the metadata block of the model card, and the licence texts beside it."""
    files = sorted({path.name for pattern in FILE_PATTERNS for path in folder.glob(pattern) if path.is_file()})
    found = _card_metadata(folder / "README.md")
    metadata = {key: str(found[key]) for key in KEYS if isinstance(found.get(key), str)}
    return Licence(metadata=metadata, files=tuple(files))


def copy_licence(licence: Licence, source: Path, target: Path) -> None:
    for name in licence.files:
        shutil.copyfile(source / name, target / name)


def _card_metadata(path: Path) -> dict[str, object]:
    """Empty where there is no card, or none that YAML can read: a card is decoration, not input."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != FENCE or FENCE not in (line.strip() for line in lines[1:]):
        return {}
    end = [line.strip() for line in lines[1:]].index(FENCE) + 1
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
