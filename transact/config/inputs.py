"""Settings of what goes in: the parent, and the texts that it is trained and evaluated on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transact.config.setting import LONGEST_PATH, Allowed, require, setting
from transact.config.text_template import as_written, parse_template

DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = ("parent", *DTYPES)
URL = re.compile(r"[A-Za-z][\w+.-]*://")


def is_url(pattern: str) -> bool:
    """Return whether a path or pattern begins as a URL does."""
    return URL.match(pattern) is not None


@dataclass(kw_only=True, slots=True)
class ArchitectureConfig:
    """The dimensions of a LLaMA, under the names of its config.json.

    `mode=estimate` uses them where the weights are not at hand; `mode=pretrain` starts a model of them.
    """

    hidden_size: int = setting(at_least=1, at_most=2**17)
    """Width of the residual stream, never cut."""
    num_hidden_layers: int = setting(at_least=1, at_most=1000)
    """Transformer layers."""
    num_attention_heads: int = setting(at_least=1, at_most=2**12)
    """Query heads."""
    num_key_value_heads: int = setting(at_least=1, at_most=2**12)
    """Key and value heads."""
    head_dim: int = setting(at_least=2, at_most=2**12)
    """Dims of a head."""
    intermediate_size: int = setting(at_least=1, at_most=2**20)
    """Channels inside the MLP."""
    vocab_size: int = setting(at_least=2, at_most=2**24)
    """Tokens of the vocabulary."""
    max_position_embeddings: int = setting(at_least=2, at_most=2**30)
    """Tokens of the longest context."""
    rope_theta: float = setting(10000.0, at_least=1, at_most=1e15)
    """Base of the rotary frequencies."""
    rms_norm_eps: float = setting(1e-5, at_least=0, at_most=1)
    """Added to the mean square in norms."""
    tie_word_embeddings: bool = False
    """Whether the output layer is the transposed embedding."""

    def to_model_config(self) -> dict[str, Any]:
        """Return the dimensions as a config.json dictionary."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {"model_type": "llama", **values}


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The model that is pruned."""

    path: str | None = setting(None, longest=LONGEST_PATH)
    """The parent: a local folder or an id of the Hugging Face hub. null: with mode=pretrain."""
    revision: str | None = setting(None)
    """A branch, tag or commit of the hub id. null: the newest."""
    dtype: str = setting("float32", choices=DTYPES)
    """"float32" or "bfloat16": of the weights in the folders between stages."""
    export_dtype: str = setting("parent", choices=EXPORT_DTYPES)
    """"parent" (the dtype that the parent is stored in, bfloat16 for float16), "float32" or "bfloat16": of the exported
    weights."""
    architecture: ArchitectureConfig | None = None
    """Dimensions of the model: mode=estimate uses them where the weights are not at hand, mode=pretrain starts a model
    of them. null: read from the weights' folder."""


TEXT_SOURCES = ("files", "hub", "tokens", "python_stdlib")
PACKINGS = ("stream", "documents")
DOCUMENT_MARKS = ("auto", "both", "begin", "end", "none")
# A user's password, the query of a web address, or a URL inside another, which may hold one in any place.
SECRET_URL = re.compile(r"(?i)[\w+.-]+://[^/@]*:(?!\d+/)[^@]*@|https?://([^/]*@|.*\?)|[\w+.-]+(://.*::|::[^/]*://)")
STDLIB_PARTS = ("train", "heldout")
OWN_NAME = Allowed(longest=100, pattern=r"[\w.+-]+", words="letters, digits and ._+-")  # of a text
LOSSES = ("all", "answers")
OF_EACH_SOURCE: tuple[tuple[str, object], ...] = (
    ("files", []),
    ("text_template", None),
    ("messages_field", None),
    ("loss", "all"),
    ("filter", None),
    ("tokenizer", None),
)  # settings that a mixture has none of itself, and what they are there


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """The source of a text: local files, a hub dataset, files of tokens, or this Python's library."""

    source: str = setting(choices=TEXT_SOURCES)
    """"files" (txt, md, jsonl, json with an object a line, csv, each also with .gz, .bz2, .xz or .zst; parquet; arrow,
    as `save_to_disk` writes it), "hub" (a dataset of the Hugging Face hub), "tokens" (files of text that is tokenised
    already) or "python_stdlib" (the library of the Python that runs)."""
    files: list[str] = setting(factory=list, longest=LONGEST_PATH)
    """With source "files": paths or glob patterns, local ones or URLs that fsspec reads: s3://BUCKET/... (with pip
    install 'transact[s3]'), gs://BUCKET/... (with 'transact[gs]'), hf://datasets/OWNER/NAME/... Credentials come from
    where the libraries look for them and never stand in a URL. With "tokens": local paths or patterns of Megatron-LM's
    indexed datasets (X.bin beside X.idx; X names both), of .npy arrays of integers, and of finished token stores of
    this program."""
    tokenizer: str | None = setting(None, longest=LONGEST_PATH)
    """With source "tokens": which tokenizer made them, a local folder or an id of the hub; it must be the model's own.
    Token stores record theirs. null: there are none but these, or the source is another."""
    hub_id: str | None = setting(None, pattern=r"[\w.-]+(/[\w.-]+)?", words="owner/name")
    """With source "hub": the dataset's id. null: with the other sources."""
    hub_config: str | None = setting(None)
    """The configuration of that dataset. null: its only one."""
    hub_revision: str | None = setting(None)
    """A branch, tag or commit of that dataset. null: the newest."""
    split: str = setting("train")
    """The split of that dataset."""
    text_field: str = setting("text")
    """The field that holds the text, of jsonl, csv, parquet and arrow files and of hub datasets."""
    text_template: str | None = setting(None, has_breaks=True, words="text")
    """Several fields of a row in place of text_field, as in "{title}\\n\\n{text}": a format string of Python with plain
    names, where \\n is a line break and {{ a brace. A field that is null, or missing in a row, counts as empty; a row
    whose fields are all empty is left out. null: the text is that of text_field."""
    messages_field: str | None = setting(None)
    """The field that holds a conversation, of jsonl, parquet and arrow files and of hub datasets: a list of {role,
    content}, or of {from, value}. Each is rendered by the chat template of the model's own tokenizer, with the tools of
    the row's field `tools` where it has one. null: the rows hold text, in text_field."""
    loss: str = setting("all", choices=LOSSES)
    """Of which tokens the loss is taken, in recovery, validation and perplexity alike: "all", or with messages_field
    "answers", those of the assistant's turns, the token that ends a turn included."""
    part: str = setting("train", choices=STDLIB_PARTS)
    """With source "python_stdlib": "train" or "heldout"; no file is in both."""
    filter: str | None = setting(None, longest=LONGEST_PATH, pattern=r".+:\w+", words="FILE.py:FUNCTION")
    """A function of yours, FILE.py:FUNCTION, which says of each document whether it stays: it is given the text, of a
    conversation its JSON. Every rank runs it, so that it needs data.trust_code=true. null: every document stays."""

    def __post_init__(self) -> None:
        needs_files = self.source in ("files", "tokens")
        require("data.*.files", self.files, not needs_files or bool(self.files), "name at least one file")
        no_secrets = "a URL holds no credentials (the environment does), and names one place, without ::"
        require("data.*.files", "(not shown)", not any(map(SECRET_URL.match, self.files)), no_secrets)
        require("data.*.hub_id", self.hub_id, self.source != "hub" or bool(self.hub_id), "name a hub dataset")
        is_plain, has_rows = self.messages_field is None, self.source not in ("python_stdlib", "tokens")
        if self.text_template is not None:
            is_alone = self.text_field == "text" and is_plain
            one_way = "text_field, text_template and messages_field exclude each other"
            require("data.*.text_template", self.text_template, is_alone, one_way)
            try:
                parse_template(self.text_template)
            except ValueError as error:
                require("data.*.text_template", self.text_template, False, str(error))
            no_rows = f'source "{self.source}" has no rows'
            require("data.*.text_template", self.text_template, has_rows, no_rows)
        rows = f'source "{self.source}" has no conversations'
        require("data.*.messages_field", self.messages_field, is_plain or has_rows, rows)
        is_text = self.source != "tokens"
        require(
            "data.*.filter", self.filter, is_text or self.filter is None, 'it is given text; source "tokens" has none'
        )
        made = 'source "tokens" alone says which tokenizer made it'
        require("data.*.tokenizer", self.tokenizer, not is_text or self.tokenizer is None, made)
        turns = "text has no answers; messages_field names the field of conversations"
        require("data.*.loss", self.loss, self.loss == "all" or not is_plain, turns)

    @property
    def is_remote(self) -> bool:
        """Whether something of the text is read over the network."""
        return self.source == "hub" or any(map(is_url, self.files))

    @property
    def row_setting(self) -> tuple[str, str]:
        """The setting that names what is read of a row, and its value."""
        if self.messages_field is not None:
            return "messages_field", self.messages_field
        if self.text_template is not None:
            return "text_template", as_written(self.text_template)
        return "text_field", self.text_field

    @property
    def row_fields(self) -> tuple[str, ...]:
        """The fields that every row to read must have."""
        setting, value = self.row_setting
        if setting != "text_template":
            return (value,)
        return tuple(dict.fromkeys(name for _, name in parse_template(value) if name is not None))


MIXTURE = "mixture"
ENDS = ("repeat", "stop")


@dataclass(kw_only=True, slots=True)
class SourceConfig(TextConfig):
    """One text of a mixture."""

    weight: float = setting(at_least=1e-9, at_most=1e9)
    """Its share of the tokens, over the sum of all weights; kept to less than two sequences in any part of the training
    and of the calibration text."""
    at_end: str = setting("repeat", choices=ENDS)
    """Once all of it was used: "repeat" (it begins anew, in another order) or "stop" (the others go on without it, by
    their weights; once all have stopped, the mixture begins anew)."""


@dataclass(kw_only=True, slots=True)
class TrainTextConfig(TextConfig):
    """The training text: one text, or a mixture of several."""

    source: str = setting(choices=(*TEXT_SOURCES, MIXTURE))
    """As of data.evaluation, or "mixture": of the texts of data.train.sources."""
    sources: dict[str, SourceConfig] = setting(factory=dict, entries=(0, 100), keys=OWN_NAME)
    """With source "mixture": its texts, by a name of your own, each described as data.evaluation is, with `weight` (its
    share of the tokens, over the sum of all weights) and `at_end`: once all of it was used, "repeat" (it begins anew;
    the default) or "stop" (the others go on without it)."""
    adaptive: bool = False
    """Whether the weights of a mixture follow the losses: after every validation a text whose loss is further above the
    parent's gets more of the tokens that follow."""

    def by_name(self) -> dict[str, SourceConfig]:
        """Return the sources in the order of their names: what is dealt does not depend on how they are written."""
        return dict(sorted(self.sources.items()))

    def __post_init__(self) -> None:
        is_mixture, names = self.source == MIXTURE, list(self.sources)
        of_sources = "with data.train.source=mixture each of data.train.sources has its own"
        for name, unused in OF_EACH_SOURCE:
            value = getattr(self, name)
            require(f"data.train.{name}", value, not is_mixture or value == unused, of_sources)
        TextConfig.__post_init__(self)
        require("data.train.sources", names, is_mixture or not names, "only data.train.source=mixture has some")
        require("data.train.sources", names, not is_mixture or bool(names), "a mixture has at least one")
        can_adapt = len(names) > 1 and all(source.at_end == "repeat" for source in self.sources.values())
        needed = "it needs data.train.source=mixture with several texts, none of them with at_end: stop"
        require("data.train.adaptive", self.adaptive, can_adapt or not self.adaptive, needed)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The text, and how it is cut into sequences."""

    train: TrainTextConfig
    """Text for recovery, validation and calibration."""
    evaluation: TextConfig
    """Held-out text, on which perplexity is reported."""
    sequence_length: int = setting(0, at_least=0, at_most=2**20)
    """Tokens of a sequence, 2 or more, in training, calibration and evaluation alike. 0: as many as the model takes, at
    most 4096."""
    evaluation_sequences: int = setting(256, at_least=1, at_most=10**7)
    """Sequences of the held-out text, at most as many as it has."""
    token_store: str = setting("outputs/token_store", longest=LONGEST_PATH)
    """A folder for tokenised text, shared by all runs: the same text is tokenised once. It may be moved: what counts is
    the content."""
    document_marks: str = setting("auto", choices=DOCUMENT_MARKS)
    """Tokens between documents: "both" (the tokenizer's bos before and its eos after each), "begin" or "end" (one of
    them), "none". "auto": before a document what the tokenizer itself puts before a text, after it its end of text.
    That is eos, or where the chat template names eos (it ends a turn) <|endoftext|> or alike, if there is one."""
    packing: str = setting("stream", choices=PACKINGS)
    """What a token attends to in a sequence that holds parts of several documents: "stream" (everything before it), or
    "documents" (its own document or conversation alone, in which positions begin anew)."""
    trust_code: bool = False
    """Whether the functions that the `filter` of a text names may run."""

    def __post_init__(self) -> None:
        length = self.sequence_length
        require("data.sequence_length", length, length != 1, "it must be at least 2, or 0 for what the model takes")

    def of_what(self, text: TextConfig) -> str:
        """Return what is said behind the name of a figure on the text: see `of_what`."""
        return of_what({"loss_of": text.loss, "packing": self.packing})

    def training_texts(self) -> dict[str, TextConfig]:
        """Return setting -> text: of the training text, or of each source of a mixture."""
        if self.train.source != MIXTURE:
            return {"data.train": self.train}
        return {f"data.train.sources.{name}": source for name, source in self.train.by_name().items()}


# What is recorded beside the metrics of a text or task, and is no metric itself.
NO_METRICS = ("documents", "shots", "tokens", "loss_of", "packing", "documents_trained_on")


def of_what(measured: Mapping[str, Any]) -> str:
    """Return what is said behind a figure's name: of which tokens it is ("loss_of"), what they attend to ("packing").

    It is empty for the defaults, which older files do not name.
    """
    answers = " of the answers" if measured.get("loss_of") == "answers" else ""
    return answers + (" of documents apart" if measured.get("packing") == "documents" else "")


def trained_on(measured: Mapping[str, Any]) -> str:
    """Return what is said behind a text's name where documents of it were trained on too; else nothing."""
    count = measured.get("documents_trained_on")
    return f" (documents trained on too: {count})" if count else ""
