"""Quantised variants: made, loaded again, measured on the run's own text, published if they still are that model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from transact.errors import Failure
from transact.evaluation.other_python import ask
from transact.files import fresh_temporary_folder, publish, read_json, remove_flat, temporary_name, write_json
from transact.geometry import Geometry
from transact.models.model_files import CONFIG, shard_names
from transact.quantize.environment import LLM_COMPRESSOR, VLLM
from transact.quantize.finished_run import PRUNED, FinishedRun, Source
from transact.quantize.folder import CARD, complete, write_card
from transact.quantize.schemes import SCHEMES, group_words, recipe, undivided_words
from transact.quantize.table import NOT_QUANTISED
from transact.stages.evaluate import perplexity_of

FOLDER, COMPARISON = "quantized", "comparison.json"  # of the run's folder; what is below is no stage of it
CHECKED = (2, 128)  # sequences, and positions of each, whose logits are compared
CERTAINLY_BROKEN = 1.0  # difference of logits, as a share of their root mean square: nothing of the model is left
MOST_NATS_LOST = math.log(10)
OWN_FIGURE = 1.05  # times: the environment computes the export to the run's perplexity, up to dtypes
PROMPT_TOKENS, NEW_TOKENS, TURNS = 64, 64, 3

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What the work needs besides the run.

    Attributes:
        python: of llm-compressor's environment.
        versions: as `llm_compressor_versions` says.
        vllm, vllm_version: of the environment that measures speed; None: it is not measured.
        say: prints a line.
    """

    python: Path
    versions: Mapping[str, Any]
    vllm: Path | None
    vllm_version: str | None
    say: Callable[[str], object]


def sixteen_bits(dtype: str) -> str:
    """Return the dtype of what is not quantised."""
    return "bfloat16" if dtype == "float32" else dtype


class Variants:
    """The variants of a run and their figures, in comparison.json as soon as each is known.

    Attributes:
        failures: of single variants, which stop no other one.
    """

    def __init__(self, run: FinishedRun, workshop: Workshop) -> None:
        self.run, self.workshop = run, workshop
        self.folder = run.folder / FOLDER
        self.file = self.folder / COMPARISON
        self.failures: list[Failure] = []
        known: list[Row] = read_json(self.file)["rows"] if self.file.is_file() else []
        self.outdated = [row for row in known if self._is_outdated(row)]
        self.rows = [row for row in known if row not in self.outdated]

    def make(self, schemes: list[str]) -> list[Row]:
        """Make and measure what is missing; return all rows. A variant that fails is left out, see `failures`.

        Raises:
            ValueError: a folder that is not ours is in the way of a variant; nothing was made.
            Failure: a model itself could not be measured, or the environment computes another one.
        """
        self._check_places(schemes)
        self.folder.mkdir(exist_ok=True)
        self._remove_outdated()
        with tempfile.TemporaryDirectory(prefix="transact-") as where:
            scratch = Path(where)
            save_file({"tokens": self.run.calibration.int()}, scratch / "calibration.safetensors")
            save_file({"tokens": self.run.evaluation.int()}, scratch / "evaluation.safetensors")
            for role in self.run.sources:
                # What is there and was measured on other text is measured again, asked for or not: one table, one text.
                there = [row["scheme"] for row in self.rows if row["model"] == role and self._is_made(row)]
                asked = dict.fromkeys((NOT_QUANTISED, *schemes, *there))
                wanted = [each for each in asked if self._finished(role, each) is None]
                if wanted:
                    self._compare(role, wanted, scratch)
        if self.workshop.vllm is not None:
            for row in self.rows:
                # A row of a parent that is gone stays in the table, and there is nothing left to time.
                is_there = row["model"] in self.run.sources
                if is_there and row["scheme"] in (NOT_QUANTISED, *schemes) and row["speed"] is None:
                    self._time(row)
        return self.rows

    def write_cards(self) -> None:
        """Write the cards of all variants, with all figures that are known now."""
        for row in self.rows:
            folder = self._place(row["model"], row["scheme"]) if row["model"] in self.run.sources else None
            if row["scheme"] != NOT_QUANTISED and folder is not None and folder.is_dir():
                # The parent's own card is its makers': they have not quantised it.
                export = self.run.sources[PRUNED].folder / CARD
                is_ours = row["model"] == PRUNED and export.is_file()
                write_card(folder, export.read_text(encoding="utf-8") if is_ours else "", row, self.rows)

    def _identity(self, role: str, scheme: str) -> dict[str, Any]:
        """Return all that a variant is made of."""
        source = self.run.sources[role]
        how = None if scheme == NOT_QUANTISED else recipe(scheme, source.geometry)
        texts = {"calibration": self.run.texts["calibration"], "calibration_sequences": len(self.run.calibration)}
        return {"weights": source.digest, "recipe": how, "texts": texts}

    def _measured_on(self) -> dict[str, Any]:
        """Return what the figures of a row depend on besides."""
        return {"evaluation": self.run.texts["evaluation"], "evaluation_sequences": len(self.run.evaluation)}

    def _is_outdated(self, row: Row) -> bool:
        """Return whether a row is of other weights, or cannot be measured on the text of the others any more."""
        role = row["model"]
        if role not in self.run.sources:
            return bool(row["measured_on"] != self._measured_on())
        return bool(row["made_of"] != self._identity(role, row["scheme"]))

    def _remove_outdated(self) -> None:
        """Remove the variants of weights that the run has no more; those of a parent that is gone stay."""
        for row in self.outdated:
            if row["model"] in self.run.sources and row["scheme"] != NOT_QUANTISED:
                self.workshop.say(f"{row['model']}-{row['scheme']} is of other weights: removed")
                remove_flat(self._place(row["model"], row["scheme"]))
        self.outdated = []

    def _finished(self, role: str, scheme: str) -> Row | None:
        """Return the row of what is made, measured on this text and still there."""
        found = self._row(role, scheme)
        return found if found is not None and found["measured_on"] == self._measured_on() else None

    def _row(self, role: str, scheme: str) -> Row | None:
        """Return the row of what is made and still there."""
        rows = (row for row in self.rows if (row["model"], row["scheme"]) == (role, scheme))
        return next(filter(self._is_made, rows), None)

    def _is_made(self, row: Row) -> bool:
        return (self._place(row["model"], row["scheme"]) / CONFIG).is_file()

    def _place(self, role: str, scheme: str) -> Path:
        return self.run.sources[role].folder if scheme == NOT_QUANTISED else self.folder / f"{role}-{scheme}"

    def _check_places(self, schemes: list[str]) -> None:
        """Raise ValueError where a variant that will be made, or its temporary folder, holds a folder."""
        for role in self.run.sources:
            for scheme in schemes:
                if self._row(role, scheme) is not None:
                    continue
                final = self._place(role, scheme)
                for folder in (final, temporary_name(final)):
                    if not folder.is_symlink() and folder.is_dir() and any(map(Path.is_dir, folder.iterdir())):
                        raise ValueError(f"{str(folder)!r} holds a folder, which is not ours: move it away")

    def _compare(self, role: str, wanted: list[str], scratch: Path) -> None:
        source = self.run.sources[role]
        dense, logits = self._measure(role, source.folder, scratch)
        self._check_own_figure(role, source, perplexity_of(dense["loss"]))
        if NOT_QUANTISED in wanted:
            self._keep(role, NOT_QUANTISED, source.folder, dense)
        for scheme in wanted:
            if scheme == NOT_QUANTISED:
                continue
            try:
                self._variant(role, scheme, scratch, (dense["loss"], logits))
            except Failure as failure:
                remove_flat(temporary_name(self._place(role, scheme)))
                self.failures.append(failure)

    def _variant(self, role: str, scheme: str, scratch: Path, model: tuple[float, Tensor]) -> None:
        """Make, measure and publish a variant. model: loss and first logits of what it is made of."""
        loss, logits = model
        final, before = self._place(role, scheme), self._row(role, scheme)
        made = self._quantize(role, scheme, scratch) if before is None else final
        found, theirs = self._measure(f"{role}-{scheme}", made, scratch)
        found["logit_difference"] = relative_difference(theirs, logits)
        check_not_broken(f"{role} in {scheme}", found, loss)
        if before is None:
            remove_flat(final)  # one that was left without a row
            publish(made, final)
        self._keep(role, scheme, final, found)

    def _check_own_figure(self, role: str, source: Source, perplexity: float) -> None:
        ratio = perplexity / source.perplexity
        if self.run.is_whole and not 1 / OWN_FIGURE < ratio < OWN_FIGURE:
            version = self.workshop.versions["packages"]["transformers"]
            raise Failure(
                f"the perplexity of the {role}, {source.perplexity:.2f} in the run, is {perplexity:.2f} with "
                f"transformers {version} of {str(self.workshop.python)!r} on the same tokens: it computes another model"
            )

    def _quantize(self, role: str, scheme: str, scratch: Path) -> Path:
        """Return the temporary folder with a complete quantised model."""
        source, name = self.run.sources[role], f"{role}-{scheme}"
        self.workshop.say(f"{role}: quantise to {scheme}{_grouping(scheme, source.geometry)}")
        temporary = fresh_temporary_folder(self._place(role, scheme))
        dtype = sixteen_bits(source.dtype)
        question = {
            "action": "quantize",
            "folder": str(source.folder.absolute()),
            "output": str(temporary.absolute()),
            "dtype": dtype,
            "tokens": str(scratch / "calibration.safetensors") if SCHEMES[scheme].calibrated else None,
            **recipe(scheme, source.geometry),
        }
        ask(self.workshop.python, LLM_COMPRESSOR, question, self.folder / "logs" / f"{name}.log")
        complete(source.folder, temporary, dtype)
        return temporary

    def _measure(self, name: str, folder: Path, scratch: Path) -> tuple[Row, Tensor]:
        """Return the loss of a folder on the run's held-out text, and its first logits."""
        self.workshop.say(f"{name}: measure perplexity")
        logits = scratch / "logits.safetensors"
        question = {
            "action": "measure",
            "folder": str(folder.absolute()),
            "tokens": str(scratch / "evaluation.safetensors"),
            "dtype": self.run.dtype,
            "logits": str(logits),
            "checked": list(CHECKED),
        }
        log = self.folder / "logs" / f"measure-{name}.log"
        return ask(self.workshop.python, LLM_COMPRESSOR, question, log), load_file(logits)["logits"]

    def _keep(self, role: str, scheme: str, folder: Path, measured: Row) -> None:
        """Write a row into comparison.json."""
        geometry = self.run.sources[role].geometry
        row = {
            "model": role,
            "scheme": scheme,
            "groups": group_words(geometry) if scheme in SCHEMES and SCHEMES[scheme].preset is None else None,
            "parameters": geometry.parameters(),
            "bytes": sum((folder / name).stat().st_size for name in shard_names(folder)),
            "perplexity": perplexity_of(measured["loss"]),
            "logit_difference": 0.0,
            "speed": None if (before := self._row(role, scheme)) is None else before["speed"],
            **measured,
            "made_of": self._identity(role, scheme),
            "measured_on": self._measured_on(),
            "versions": self.workshop.versions["packages"],
        }
        self.workshop.say(f"{role}, {scheme}: {row['bytes'] / 1e6:,.1f} MB, perplexity {row['perplexity']:.2f}")
        others = [each for each in self.rows if (each["model"], each["scheme"]) != (role, scheme)]
        self.rows = sorted([*others, row], key=_place_in_table)
        self._write()

    def _time(self, row: Row) -> None:
        """Measure a row's decoding in vLLM; what it refuses stays without a speed."""
        name = f"{row['model']}-{row['scheme']}"
        self.workshop.say(f"{name}: measure decoding in {self.workshop.vllm_version}")
        assert self.workshop.vllm is not None
        question = {
            "folder": str(self._place(row["model"], row["scheme"]).absolute()),
            "prompt": self.run.evaluation[0, :PROMPT_TOKENS].tolist(),
            "new_tokens": NEW_TOKENS,
            "turns": TURNS,
        }
        try:
            found = ask(self.workshop.vllm, VLLM, question, self.folder / "logs" / f"vllm-{name}.log")
        except Failure as refusal:
            self.workshop.say(f"{name}: {self.workshop.vllm_version} does not serve it ({refusal})")
        else:
            row["speed"] = {
                "tokens_per_second": 1 / found["seconds_per_token"],
                "in": f"{found['version']}, {found['device']}, bfloat16, batch size 1",
                "tokens": [PROMPT_TOKENS, NEW_TOKENS],
            }
        self._write()

    def _write(self) -> None:
        settings = {
            "dtype": self.run.dtype,
            "sequence_length": self.run.evaluation.shape[1],
            "calibration_sequences": len(self.run.calibration),
            "device": self.workshop.versions["device"],
            "parent_missing": self.run.parent_missing,
        }
        write_json(self.file, {"settings": settings, "rows": self.rows})


def _grouping(scheme: str, geometry: Geometry) -> str:
    """Say which groups a scheme takes where these follow from the model, and why they are not the usual ones."""
    if SCHEMES[scheme].preset is not None:
        return ""
    undivided = undivided_words(geometry)
    return f" in {group_words(geometry)}" + (f" ({undivided})" if undivided else "")


def _place_in_table(row: Row) -> tuple[int, str]:
    order = (NOT_QUANTISED, *SCHEMES)
    return order.index(row["scheme"]), str(row["model"])


def relative_difference(theirs: Tensor, ours: Tensor) -> float:
    """Return the root mean square of the difference of logits, as a share of that of `ours`."""
    return float((theirs.double() - ours.double()).norm() / ours.double().norm())


def check_not_broken(what: str, measured: Mapping[str, Any], dense_loss: float) -> None:
    """Raise Failure for a variant that is certainly broken; how much a sound one may lose is for its user to judge.

    Raises:
        Failure: its loss is not finite or far above that of the model, or its logits are others altogether.
    """
    loss, difference = measured["loss"], measured["logit_difference"]
    problem = None
    if not math.isfinite(loss):
        problem = f"its loss is {loss}"
    elif loss > dense_loss + MOST_NATS_LOST:
        problem = f"its perplexity is {perplexity_of(loss):,.1f}, and was {perplexity_of(dense_loss):,.1f} before"
    elif not difference <= CERTAINLY_BROKEN:
        problem = f"its logits differ by {difference:.2f} of their root mean square"
    if problem is not None:
        raise Failure(f"{what} is broken and not published: {problem}")
