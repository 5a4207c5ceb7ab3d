"""The law of the house: floors, sizes, words that must not appear, and papers that match the code.

Reads the package as text and syntax trees; imports nothing of it but what is named by a test.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvik

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kvik"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}

FLOORS = {
    "": 9,  # __init__.py and __main__.py: the doors, which open onto every floor
    "errors": 0,
    "config": 0,
    "request": 0,
    "step": 0,
    "text": 1,
    "checkpoint": 1,
    "scheduler": 1,
    "runners": 2,
    "engine": 3,
    "bench": 4,
    "quantize": 4,
    "server": 4,
    "cli": 5,
}
GROUND = {"errors", "config", "request", "step"}
FLOOR_ZERO_IMPORTS = set(sys.stdlib_module_names) | {"numpy"}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
FORBIDDEN_MODULES = {"torch", "triton", "transformers", "pickle", "dill", "marshal", "shelve", "subprocess", "yaml"}
STARTS_PROGRAMS = {"kvik/bench/peers.py", "kvik/engine/remote/process.py"}
"""The engines that Kvik is compared with are processes, and so may its own engine be; nothing else here starts one."""
NEEDS_TORCH = "kvik/runners/cuda/"
"""The one folder whose files may import torch and triton; nothing imports them before a GPU is asked for."""
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_TEXT = ("trust_remote_code", "torch.load", "yaml.load", "os.system", "os.popen")
ENVIRONMENT = {"environ", "getenv", "environb"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str:
    """`engine` for kvik.engine.llm, `errors` for kvik.errors, `` for kvik itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] in ("__init__", "__main__") else parts)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, wherever the import stands, with its line."""
    package = module_of(path).split(".")
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + (path.name == "__init__.py")], base])
            if base == "kvik":
                yield from (
                    (f"kvik.{alias.name}" if (PACKAGE / alias.name).exists() else "kvik", node.lineno)
                    for alias in node.names
                )
            else:
                yield base, node.lineno


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    return ((module, line) for module, line in imports_of(path) if module.split(".")[0] == "kvik")


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def floor_violations(importer: str, imported: str) -> bool:
    """Whether this import goes up a floor, or sideways into another room."""
    here, there = room_of(importer), room_of(imported)
    if here == there or here == "" or there == "":
        return False
    return FLOORS[there] >= FLOORS[here] and not {here, there} <= GROUND


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module_of(path)) for path in FILES}
    assert rooms <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    wrong = [f"line {line}: {m}" for m, line in own_imports(path) if floor_violations(module_of(path), m)]
    assert not wrong, f"{name_of(path)} imports a room beside or above it: {wrong}"


def test_the_floor_law_catches_an_import_that_goes_up_or_sideways() -> None:
    assert floor_violations("kvik.scheduler.queue", "kvik.engine.llm")
    assert floor_violations("kvik.scheduler.queue", "kvik.checkpoint.spec")
    assert not floor_violations("kvik.engine.llm", "kvik.scheduler")


@pytest.mark.parametrize("path", [p for p in FILES if room_of(module_of(p)) in GROUND], ids=name_of)
def test_ground_floor_needs_only_stdlib_and_numpy(path: Path) -> None:
    roots = {module.split(".")[0] for module, _ in imports_of(path)} - {"kvik"}
    assert roots <= FLOOR_ZERO_IMPORTS


def test_scheduler_holds_integers_only() -> None:
    """The scheduler names numpy only where it fills a StepPlan."""
    rooms = {module.split(".")[0] for path in FILES if "scheduler" in path.parts for module, _ in imports_of(path)}
    assert rooms <= FLOOR_ZERO_IMPORTS | {"kvik"}


def forbidden_in(name: str) -> set[str]:
    """Modules that a file must not import, by its path."""
    starts = {"subprocess"} if name in STARTS_PROGRAMS else set()
    return FORBIDDEN_MODULES - starts - ({"torch", "triton"} if name.startswith(NEEDS_TORCH) else set())


def test_torch_is_for_one_folder_alone() -> None:
    assert {"torch", "triton"} <= forbidden_in("kvik/runners/choose.py") & forbidden_in("kvik/engine/engine.py")
    assert {"transformers", "pickle"} <= forbidden_in("kvik/runners/cuda/runner.py")
    assert not {"torch", "triton"} & forbidden_in("kvik/runners/cuda/kernels/rope.py")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_forbidden_module_or_call(path: Path) -> None:
    modules = {module.split(".")[0] for module, _ in imports_of(path)} & forbidden_in(name_of(path))
    calls = {
        node.func.id
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
    }
    text = [word for word in FORBIDDEN_TEXT if word in path.read_text(encoding="utf-8")]
    assert not modules | calls | set(text)


@pytest.mark.parametrize("path", [p for p in FILES if room_of(module_of(p)) != "cli"], ids=name_of)
def test_only_the_command_line_reads_the_environment(path: Path) -> None:
    reads = [
        node.lineno for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT
    ]
    assert not reads


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A Triton kernel, which cannot be cut as functions can."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


def test_only_kernels_may_be_long() -> None:
    kernel, cached, bare = functions_of(ast.parse("@triton.jit\ndef a(): 0\n@cache\ndef b(): 0\ndef c(): 0"))
    assert is_kernel(kernel)
    assert not is_kernel(cached)
    assert not is_kernel(bare)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for function in functions_of(TREES[path]):
        assert is_kernel(function) or (function.end_lineno or 0) - function.lineno < MAX_FUNCTION_LINES, function.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_function_is_annotated(path: Path) -> None:
    for function in functions_of(TREES[path]):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{function.name}, line {function.lineno}: {bare}"
        assert function.returns is not None, f"{function.name}, line {function.lineno}"


@pytest.mark.parametrize("path", [p for p in FILES if TREES[p].body], ids=name_of)
def test_public_names_are_documented(path: Path) -> None:
    tree = TREES[path]
    assert ast.get_docstring(tree), "the file says what it is for"
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name}, line {node.lineno}"


def test_architecture_names_every_folder() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT).as_posix() + "/" for path in FILES}
    folders |= {f"{path.relative_to(ROOT).as_posix()}/" for path in (ROOT / "tests").iterdir() if path.is_dir()}
    folders |= {"csrc/", "docs/", "tools/", ".ci/"}
    missing = sorted(f for f in folders if "__pycache__" not in f and f"`{f}`" not in text)
    assert not missing


def test_architecture_names_no_folder_that_is_not_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:kvik|tests|csrc|docs|tools|\.ci)/[\w/.]*/?)`", text)
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the same package as this one, and not the folder it was started in."""
    environment = os.environ | {"PYTHONPATH": str(Path(kvik.__file__).parents[1])}
    command = [sys.executable, *args]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False)


def test_option_reference_follows_from_the_code() -> None:
    made = run_python(str(ROOT / "tools/make_options.py"), "--check")
    assert made.returncode == 0, made.stderr


def test_readme_commands_run_in_ci() -> None:
    """CI runs the N-th line of the README's shell blocks as `readme N`, and there is no line that it leaves out."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    commands = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^readme (\d+)", ci, re.M)] == list(range(1, len(commands) + 1))
    assert len(commands) == 2, "one that installs and answers, one that passes the tests"


def test_changelog_and_project_name_the_version() -> None:
    assert f"## {kvik.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'version = "{kvik.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def loaded_after(statement: str) -> set[str]:
    """Modules in a fresh interpreter after one statement, beyond those it starts with."""
    before, after = "before = set(sys.modules)", "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = run_python("-c", f"import sys, json; {before}; {statement}; {after}")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_import_is_light() -> None:
    modules = loaded_after("import kvik")
    heavy = {"numpy", "tokenizers", "jinja2", "huggingface_hub", "click", "tqdm", "torch", "ctypes", "asyncio"}
    assert not {module.split(".")[0] for module in modules} & heavy


def test_command_line_starts_without_the_engine() -> None:
    modules = loaded_after("import kvik.cli.main")
    heavy = {"numpy", "tokenizers", "jinja2", "huggingface_hub", "tqdm", "torch"}
    assert not {module.split(".")[0] for module in modules} & heavy
    assert not {module for module in modules if module.startswith(("kvik.engine", "kvik.runners", "kvik.checkpoint"))}


def test_everything_that_runs_without_a_gpu_starts_without_torch() -> None:
    parts = ("kvik.cli.main", "kvik.engine.build", "kvik.engine.llm", "kvik.runners.choose", "kvik.server.run")
    modules = loaded_after(f"import {', '.join(parts)}; kvik.runners.choose.available()")
    assert set(parts) <= modules
    assert not {module.split(".")[0] for module in modules} & {"torch", "triton", "transformers"}
