"""The text, and how it is cut into sequences: conf/data/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_at_least, require_choice, require_positive

TEXT_SOURCES = ("files", "hub", "python_stdlib")
STDLIB_PARTS = ("train", "heldout")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Where text comes from: local txt, jsonl and parquet files, a hub dataset, or this Python's library."""

    source: str
    files: list[str] = field(default_factory=list)  # paths or glob patterns
    hub_id: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    split: str = "train"
    text_field: str = "text"
    part: str = "train"  # python_stdlib only

    def __post_init__(self) -> None:
        require_choice("data.*.source", self.source, TEXT_SOURCES)
        require_choice("data.*.part", self.part, STDLIB_PARTS)
        require("data.*.files", self.files, self.source != "files" or bool(self.files), "name at least one file")
        require("data.*.hub_id", self.hub_id, self.source != "hub" or bool(self.hub_id), "name a hub dataset")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The text, and how it is cut into sequences."""

    train: TextConfig
    evaluation: TextConfig
    sequence_length: int  # tokens
    evaluation_sequences: int
    token_store: str  # folder shared by all runs

    def __post_init__(self) -> None:
        require_at_least("data", self, 2, "sequence_length")
        require_positive("data", self, "evaluation_sequences")
