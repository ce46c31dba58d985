"""The imports of the package: downward only, and the heavy libraries each behind one door."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.support.commands import REPOSITORY

# Rooms (modules and folders of transact/) from the bottom up. A room imports itself and the layers below it.
LAYERS = (
    {"", "geometry", "errors"},  # "": transact/__init__.py
    {"files"},
    {"config", "pruning", "distributed"},
    {"dimensions"},
    {"data", "models", "rounds", "runs"},
    {"engine", "tracking"},
    {"evaluation", "export"},
    {"stages"},
    {"estimate", "launch", "quantize"},
    {"run", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
PURE_ROOM, ALLOWED_IN_PURE_ROOM = "pruning", {"torch", "transact.geometry", "transact.pruning"}
ONLY_IMPORTERS = {
    "deepspeed": "transact.engine.deepspeed_setup",
    "wandb": "transact.tracking.wandb_run",
    "submitit": "transact.launch.executors",
    "wandb_workspaces": "transact.tracking.dashboard.workspaces",
    "lm_eval": "transact.evaluation.tasks",
    "peft": "transact.models.adapters",
    "liger_kernel": "transact.models.fused_kernels",
    "llmcompressor": "transact.quantize.in_llmcompressor",
}
DISTRIBUTIONS = {
    "liger_kernel": "liger-kernel",
    "hydra": "hydra-core",
    "yaml": "pyyaml",
    "wandb_workspaces": "wandb-workspaces",
    "huggingface_hub": "huggingface-hub",
}  # where names differ

Imports = dict[str, set[str]]  # module -> what it imports anywhere in its file, functions and TYPE_CHECKING included


def read_imports(package: Path) -> Imports:
    files = {}
    for path in package.rglob("*.py"):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    return {name: set(_imported(name, path, files)) for name, path in sorted(files.items())}


def _imported(name: str, path: Path, files: dict[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                module = f"{source}.{alias.name}"  # `from transact.stages import recover` imports a module
                yield module if module in files else source


def room_of(module: str) -> str:
    """The first part of a module's name after the package; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def is_within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def upward_arrows(imports: Imports) -> list[str]:
    return [
        f"{module} -> {target}"
        for module, targets in imports.items()
        for target in sorted(targets)
        if is_within(target, "transact")
        and room_of(target) != room_of(module)
        and LEVEL[room_of(target)] >= LEVEL[room_of(module)]
    ]


def impure_imports(imports: Imports) -> list[str]:
    return [
        f"{module} -> {target}"
        for module, targets in imports.items()
        if room_of(module) == PURE_ROOM
        for target in sorted(targets)
        if target.split(".")[0] not in sys.stdlib_module_names
        and not any(is_within(target, allowed) for allowed in ALLOWED_IN_PURE_ROOM)
    ]


def importers(imports: Imports, library: str) -> list[str]:
    return [module for module, targets in imports.items() if any(is_within(each, library) for each in targets)]


IMPORTS = read_imports(REPOSITORY / "transact")


def test_every_room_has_a_layer() -> None:
    assert {room_of(module) for module in IMPORTS} == set(LEVEL)


def test_imports_point_downward() -> None:
    assert upward_arrows(IMPORTS) == []


def test_no_module_imports_itself_through_others() -> None:
    own = {module: {each for each in targets if each in IMPORTS} for module, targets in IMPORTS.items()}
    graphlib.TopologicalSorter(own).prepare()  # raises CycleError, which shows the cycle


def test_prune_imports_torch_and_geometry_alone() -> None:
    assert impure_imports(IMPORTS) == []


def test_heavy_libraries_have_one_door_each() -> None:
    assert {library: importers(IMPORTS, library) for library in ONLY_IMPORTERS} == {
        library: [module] for library, module in ONLY_IMPORTERS.items()
    }


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for name, group in project["optional-dependencies"].items() if name != "dev" for each in group]
    declared = {re.split(r"[^\w-]", each, maxsplit=1)[0] for each in [*project["dependencies"], *extras]}
    libraries = {target.split(".")[0] for targets in IMPORTS.values() for target in targets}
    libraries -= {"transact", *sys.stdlib_module_names}
    libraries -= {"llmcompressor", "vllm"}  # of other environments, whose Python runs the scripts that import them
    libraries |= {"kernels", "cyllama"}  # which transformers imports, for engine.attention; and a process of its own
    libraries |= {"s3fs", "gcsfs"}  # which fsspec imports
    assert {DISTRIBUTIONS.get(library, library) for library in libraries} == declared


MOST_PARAMETERS = 7


def long_signatures(package: Path) -> list[str]:
    """Functions with more parameters than a reader keeps apart; `self` does not count."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                of = node.args
                names = [each.arg for each in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
                if len(names) - (names[:1] in (["self"], ["cls"])) > MOST_PARAMETERS:
                    found.append(f"{path.name}: {node.name}")
    return found


def test_no_function_takes_more_than_seven_parameters() -> None:
    assert long_signatures(REPOSITORY / "transact") == []


def test_long_signatures_are_found(tmp_path: Path) -> None:
    seven, eight = "self, a, b, c, d, *, e, f, g", "self, a, b, c, d, e, *, f, g, h"
    source = f"class C:\n    def seven({seven}): ...\n    def eight({eight}): ..."
    (tmp_path / "room.py").write_text(source, encoding="utf-8")
    assert long_signatures(tmp_path) == ["room.py: eight"]


def test_violations_are_found(tmp_path: Path) -> None:
    package = tmp_path / "transact"
    sources = {
        "pruning/deep.py": "import torch.nn\nfrom transact import geometry\ndef f():\n    import transact.stages.job",
        "distributed/aside.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..pruning.deep import f",
        "stages/job.py": "from deepspeed.utils import groups\nimport transact.run\nfrom transact import config",
        "pruning/other.py": "import numpy, math\nfrom . import deep",
        "geometry.py": "",
        "config.py": "",
        "run.py": "",
    }
    for name, source in sources.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source, encoding="utf-8")
    imports = read_imports(package)
    assert upward_arrows(imports) == [
        "transact.distributed.aside -> transact.pruning.deep",
        "transact.pruning.deep -> transact.stages.job",
        "transact.stages.job -> transact.run",
    ]
    assert impure_imports(imports) == [
        "transact.pruning.deep -> transact.stages.job",
        "transact.pruning.other -> numpy",
    ]
    assert importers(imports, "deepspeed") == ["transact.stages.job"]
