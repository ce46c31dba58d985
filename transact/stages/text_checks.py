"""What is checked of the texts before any work starts: files are opened, the Hub is asked, nothing is tokenised."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from transact.config.inputs import TextConfig
from transact.config.run import RunConfig
from transact.config.setting import require
from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.filters import predicate
from transact.data.hub_text import HubUnavailable, check_hub_text
from transact.data.mixture import Dealing
from transact.data.text import check_text, shared_file, text_files
from transact.data.token_store import tokenizer_digest
from transact.data.tokenised_files import token_files
from transact.data.tokenised_text import TokenisedText
from transact.distributed.environment import environment_rank
from transact.models.folder import is_hub_reachable
from transact.models.stock import load_tokenizer


def check_texts(config: RunConfig) -> None:
    """Check the beginning of every file of the training and the held-out text.

    Raises:
        ValueError: a file cannot be used, or a text is trained on and evaluated on.
    """
    check_adaptive(config)
    for setting, text in config.texts().items():
        if text.filter is not None:
            predicate(text.filter, setting)
    trained, evaluation = config.data.training_texts(), config.data.evaluation
    for setting, text in {**trained, "data.evaluation": evaluation}.items():
        check_text(text, setting)
    if not (Path(config.output_dir) / "config.yaml").is_file():  # a run that exists continues as it began
        for setting, text in trained.items():
            check_apart(text, setting, evaluation, "data.evaluation")
        for (one, first), (other, second) in itertools.combinations(trained.items(), 2):
            check_apart(first, one, second, other)


def check_adaptive(config: RunConfig) -> None:
    """Raise ValueError unless every text of a mixture with weights that adapt has a validation sequence."""
    if not config.data.train.adaptive:
        return
    sources = config.data.train.by_name()
    counts = Dealing(tuple(each.weight for each in sources.values())).counts(config.recover.validation_sequences)
    for name, count in zip(sources, counts.tolist(), strict=True):
        few = f"data.train.sources.{name} has none of them by its weight, so that its loss is not known"
        require("recover.validation_sequences", config.recover.validation_sequences, count > 0, few)


def check_hub_texts(config: RunConfig) -> None:
    """Read the first document of every text that is on the hub, on rank 0, before anything large is downloaded.

    Where the hub is not reachable nothing is raised: the text may be tokenised already, and else reading it fails.

    Raises:
        ValueError: the hub has no such dataset, configuration, split or field, or it is a script.
    """
    from huggingface_hub import is_offline_mode

    on_hub = {field: text for field, text in config.texts().items() if text.source == "hub"}
    if not on_hub or environment_rank() != 0 or is_offline_mode() or not is_hub_reachable():
        return
    for field, text in on_hub.items():
        try:
            check_hub_text(text, field)
        except HubUnavailable as error:
            if not error.is_absent:
                raise


def check_apart(text: TextConfig, setting: str, other: TextConfig, other_setting: str) -> None:
    """Check that two texts are not the same, as far as names and the contents of files show.

    What is held out, or reserved of one text of a mixture, must not be trained on. Documents are compared later.

    Raises:
        ValueError: they are, or share a file.
    """
    on_disk = ("files", "tokens")
    if text.source not in on_disk or other.source not in on_disk:
        if _name(text) == _name(other):
            raise ValueError(f"{other_setting} is the text of {setting}: nothing of it is held out")
        return
    shared = shared_file(text_files(text, setting), text_files(other, other_setting))
    if shared is not None:
        same, path = shared
        also = "" if same == path else f" as {str(same)!r}"
        raise ValueError(f"{other_setting}.files: {str(path)!r} is trained on too{also} ({setting}.files)")


def open_tokens(text: TextConfig, setting: str, tokenizer: Any, marks: str, model: str | None) -> TokenisedText:
    """Open a text that is tokenised already; the model's own tokenizer must have done it.

    Args:
        marks: data.document_marks.
        model: model.path; a text that names it too is not asked for on the hub, which may be out of reach.

    Raises:
        ValueError: it was another tokenizer, its tokenizer cannot be loaded, or as `token_files` and `TokenisedText`.
    """
    files, own = token_files(text, setting), tokenizer_digest(tokenizer, DocumentMarks())
    other = next((each.path for each in files if each.tokenizer not in (None, own)), None)
    words = "is not the model's own tokenizer (model.path), for which its numbers mean other text"
    if other is not None:
        raise ValueError(f"{setting}.files: what made {str(other)!r} {words}")
    if text.tokenizer is not None and text.tokenizer != model:
        named = load_tokenizer(Path(text.tokenizer), f"{setting}.tokenizer")
        if tokenizer_digest(named, DocumentMarks()) != own:
            raise ValueError(f"{setting}.tokenizer={text.tokenizer!r} {words}")
    return TokenisedText(files, setting, tokenizer, document_marks(tokenizer, marks))


def _name(text: TextConfig) -> tuple[str | None, ...]:
    if text.source == "hub":
        return text.source, text.hub_id, text.hub_config, text.split
    return text.source, text.part
