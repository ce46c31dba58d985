"""Take the figures that the benchmarks of vLLM and llama.cpp gave of a run's models into its report.

    transact import RUN [--parent FILE ...] [--pruned FILE ...]

FILE is the JSON of `vllm bench latency`, `throughput` or `serve`, of `llama-bench -o json`, or a completion of
llama.cpp's server, which says its timings. The figures go to efficiency_imported.json in the run's folder, and stand in
report.html beside those that transact measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transact.errors import DONE, Parser, fail, refuse
from transact.files import read_json, write_json
from transact.runs.run_folder import is_run

IMPORTED = "efficiency_imported.json"
ROLES = ("parent", "pruned")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A figure that another program measured.

    Attributes:
        role: of the model: "parent" or "pruned".
        software: the program that measured.
        model: as the file names it; empty where it does not.
        setting: what must be the same for two figures to be compared; None where the file does not say.
        what: the figure's name.
        unit: "tokens/s" or "ms".
    """

    role: str
    software: str
    model: str
    setting: str | None
    what: str
    unit: str
    value: float


def read_figures(file: Path, role: str, setting: str | None = None) -> list[Imported]:
    """Return the figures of a file.

    Args:
        setting: the user's word for what the file does not say.

    Raises:
        ValueError: it is none of the files that are known, or holds figures of more than one model.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{str(file)!r} is no JSON; {KNOWN}") from None
    read = next((reader for is_of, reader in READERS if is_of(content)), None)
    if read is None:
        raise ValueError(f"{str(file)!r} holds no figures that are known; {KNOWN}")
    try:
        found = [
            Imported(role=role, software=software, model=model, setting=said or setting, **figure)
            for software, model, said, figure in read(content)
            if figure["value"]  # 0: it was not measured, as the further tokens of answers of one token
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{str(file)!r} lacks a part of what its program writes, or it is no number") from None
    models = sorted({each.model for each in found})
    if len(models) > 1:
        raise ValueError(f"{str(file)!r} holds figures of {', '.join(models)}; a file may hold those of one model")
    return found


Row = tuple[str, str, str | None, dict[str, Any]]  # software, model, setting, and what, unit and value
KNOWN = "it must be of vllm bench latency, throughput or serve, of llama-bench -o json, or of llama.cpp's server"


def _figure(what: str, unit: str, value: Any) -> dict[str, Any]:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is no {what}")
    return {"what": what, "unit": unit, "value": number}


def _vllm_latency(content: Mapping[str, Any]) -> Iterator[Row]:
    # The file says neither lengths nor batch.
    figure = _figure("a batch from prompt to end", "ms", 1000 * content["avg_latency"])
    yield "vllm bench latency", str(content.get("model_id", "")), None, figure


def _vllm_throughput(content: Mapping[str, Any]) -> Iterator[Row]:
    setting = f"{content['num_requests']:,} requests, {content['total_num_tokens']:,} tokens"
    figure = _figure("prompts and answers", "tokens/s", content["tokens_per_second"])
    yield "vllm bench throughput", str(content.get("model_id", "")), setting, figure


def _vllm_serve(content: Mapping[str, Any]) -> Iterator[Row]:
    tokens = f"{content['total_input_tokens']:,}+{content['total_output_tokens']:,} tokens"
    at_once = f"{content['request_rate']} a second, at most {content['max_concurrency'] or 'all'} at a time"
    setting = f"{content['completed']:,} requests, {tokens}, {at_once}"
    for what, unit, name in (
        ("answers", "tokens/s", "output_throughput"),
        ("first token", "ms", "mean_ttft_ms"),
        ("each further token", "ms", "mean_tpot_ms"),
    ):
        yield "vllm bench serve", str(content["model_id"]), setting, _figure(what, unit, content[name])


def _llama_bench(content: list[Mapping[str, Any]]) -> Iterator[Row]:
    for each in content:
        prompt, new = each["n_prompt"], each["n_gen"]
        what = "prompts and answers" if prompt and new else "prompt" if prompt else "answer"
        tokens = f"{prompt}+{new} tokens after {each['n_depth']}, batch {each['n_batch']}"
        cache = f"cache {each['type_k']} and {each['type_v']}"
        where = f"{each['backends']}, {each['n_threads']} threads, {each['n_gpu_layers']} layers on a GPU"
        setting = f"{tokens}, {where}, {cache}"
        yield "llama-bench", Path(each["model_filename"]).name, setting, _figure(what, "tokens/s", each["avg_ts"])


def _llama_server(content: Mapping[str, Any]) -> Iterator[Row]:
    timings = content["timings"]
    setting, model = f"{timings['prompt_n']}+{timings['predicted_n']} tokens", Path(content.get("model", "")).name
    for what, name in (("prompt", "prompt_per_second"), ("answer", "predicted_per_second")):
        yield "llama.cpp's server", model, setting, _figure(what, "tokens/s", timings[name])


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda content: isinstance(content, dict) and all(name in content for name in names)


READERS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Iterator[Row]]], ...] = (
    (_has("avg_latency", "latencies"), _vllm_latency),
    (_has("elapsed_time", "num_requests"), _vllm_throughput),
    (_has("output_throughput", "mean_ttft_ms"), _vllm_serve),
    (_has("timings"), _llama_server),
    (lambda content: isinstance(content, list) and bool(content) and all(map(_has("avg_ts"), content)), _llama_bench),
)


def with_imported(before: Mapping[str, Any], new: list[Imported]) -> dict[str, Any]:
    """Return the contents of `IMPORTED`: those before, and the new ones in place of others of the same kind.

    Raises:
        ValueError: two of the new ones are of the same kind, but of different models.
    """

    def kind(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("role", "software", "setting", "what"))

    models: dict[tuple[Any, ...], set[str]] = {}
    for each in new:
        models.setdefault(kind(asdict(each)), set()).add(each.model)
    for (role, software, *_), names in models.items():
        if len(names) > 1:
            raise ValueError(
                f"--{role}: {software} measured {', '.join(sorted(names))} in one setting; the report compares one "
                f"{role} model with the other: import the files of one"
            )
    rows = {kind(row): row for row in [*before.get("figures", []), *map(asdict, new)]}
    return {"figures": list(rows.values())}


def main() -> int:
    """Run the command and return its exit code; a wrong request ends with one line."""
    from transact.tracking.report.writing import write_pages

    parser = Parser(prog="transact import", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    for role in ROLES:
        parser.add_argument(f"--{role}", type=Path, nargs="+", default=[], metavar="FILE", help=f"of the {role} model")
    parser.add_argument("--setting", help="lengths and batch, for files that do not say them (vllm bench latency)")
    given = parser.parse_args()
    try:
        if not is_run(given.folder):
            raise ValueError(f"{str(given.folder)!r} is no run's folder")
        files = {role: getattr(given, role) for role in ROLES}
        if not any(files.values()):
            raise ValueError(f"there is nothing to import: give {' or '.join(f'--{role}' for role in ROLES)}")
        new = [each for role in ROLES for file in files[role] for each in read_figures(file, role, given.setting)]
        target = given.folder / IMPORTED
        write_json(target, with_imported(read_json(target) if target.is_file() else {}, new))
        print(f"{len(new)} figures in {target}\n{write_pages(given.folder)[-1]}", flush=True)
    except ValueError as error:
        return refuse(error)
    except OSError as error:
        return fail(error)
    return DONE
