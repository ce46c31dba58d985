"""python -m transact quantize RUN --python PYTHON [--schemes w4a16 fp8]: quantised variants of a run and its parent.

llm-compressor makes them, in an environment of its own, because it wants another version of transformers:

    python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install llmcompressor==0.14.0
    python -m transact quantize outputs/mine --python ENVIRONMENT/bin/python --schemes w4a16 fp8

Each variant is calibrated on the calibration text of the run, loaded again, measured on its held-out text and written
to RUN/quantized/, beside comparison.json: parent, pruned, parent quantised, pruned and quantised. The same command goes
on with what is missing.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from transact.errors import DONE, Failure, Parser, fail, refuse, say_error
from transact.quantize.schemes import SCHEMES, check_schemes

DEFAULT = ("w4a16", "fp8")
LOCK = "quantize.lock"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    schemes = "\n".join(f"  {name:<6} {scheme.words}" for name, scheme in SCHEMES.items())
    parser = Parser(prog="transact quantize", description=__doc__, epilog=f"schemes:\n{schemes}")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--python", type=Path, required=True, help="of an environment that has llm-compressor")
    parser.add_argument("--schemes", nargs="+", default=list(DEFAULT), metavar="SCHEME", help=", ".join(SCHEMES))
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="of an environment that has vLLM: measure decoding")
    parser.add_argument("--token-store", type=Path, help="where the run's tokens are (default: as the run says)")
    parser.add_argument("--sequences", type=int, help="of held-out text to measure on (default: all, as the run did)")
    return parser.parse_args(arguments)


def work(arguments: argparse.Namespace) -> None:
    """Check the request, then make what is missing.

    Raises:
        ValueError: the request cannot be met; nothing was written.
        Failure: a variant is broken, or another program failed; what else was asked for was made.
        OSError, SafetensorError: a file cannot be read or written.
    """
    check_schemes(arguments.schemes)
    from transact.distributed.file_lock import exclusive
    from transact.quantize.environment import llm_compressor_versions, vllm_version
    from transact.quantize.finished_run import read_finished_run
    from transact.quantize.table import settings_words, text_table
    from transact.quantize.variants import FOLDER, Variants, Workshop
    from transact.tracking.report.writing import write_pages

    run = read_finished_run(arguments.run, arguments.token_store, arguments.sequences)
    versions = llm_compressor_versions(arguments.python)
    say = partial(print, flush=True)
    workshop = Workshop(
        python=arguments.python,
        versions=versions,
        vllm=arguments.vllm,
        vllm_version=None if arguments.vllm is None else vllm_version(arguments.vllm),
        say=say,
    )
    if run.parent_missing is not None:
        say(f"the parent is left out: {run.parent_missing}")
    with exclusive(arguments.run / FOLDER / LOCK, wait=False, remove=True) as is_alone:
        if not is_alone:
            raise ValueError(f"another `transact quantize` is at work in {str(arguments.run)!r}")
        variants = Variants(run, workshop)
        try:
            rows = variants.make(arguments.schemes)
        finally:  # what was made before a failure is shown too
            if variants.file.is_file():
                variants.write_cards()
                write_pages(arguments.run)
    say(f"\n{text_table(rows)}\n\n{settings_words(rows)}\n{variants.folder}")
    for failure in variants.failures[:-1]:
        say_error(failure)
    if variants.failures:
        raise variants.failures[-1]


def main(command_line: list[str] | None = None) -> int:
    """Run the command and return its exit code; a wrong request ends with one line."""
    arguments = parse(command_line)
    try:
        work(arguments)
    except Failure as failure:
        return fail(failure)
    except ValueError as error:
        return refuse(error)
    except (OSError, SafetensorError) as error:
        return fail(error)
    return DONE
