"""Statistics of the package's own Python: lines, functions, classes, and how many ways lead through a function.

Cyclomatic complexity is McCabe's: one, and one more for every place where the way forks (if, for, while, except,
conditional expressions, comprehension conditions, and each further operand of `and` and `or`). This file reads source
and runs none of it.
"""

from __future__ import annotations

import ast
import statistics
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef
FORKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)
METHOD = (
    "Syntax trees of every .py file of the package. Lines of a function from `def` to its end; complexity is McCabe's: "
    "1, and 1 for each if, for, while, except, case, conditional expression and condition of a comprehension, and for "
    "each further operand of and/or; a function inside another counts for itself. C++ is counted in files and lines."
)


def complexity(function: Function) -> int:
    """Independent ways through a function, those of functions inside it left out."""
    return 1 + sum(map(_forks, _own_nodes(function)))


def _own_nodes(function: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found += [node, *_own_nodes(node)]
    return found


def _forks(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return len(node.ifs)
    return int(isinstance(node, FORKS))


def code_statistics(package: Path = PACKAGE) -> dict[str, Any]:
    """Of all Python below `package`, and of the C++ beside it where that is there. Raises OSError, SyntaxError."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = [(function.end_lineno or function.lineno) - function.lineno + 1 for function in functions]
    ways = [complexity(function) for function in functions]
    native = [path for path in (package.parent / "csrc").glob("*") if path.suffix in (".cpp", ".h")]
    return {
        "files": len(texts),
        "total_loc": sum(len(text.splitlines()) for text in texts),
        "function_count": len(functions),
        "class_count": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "mean_function_lines": statistics.fmean(lengths),
        "median_function_lines": statistics.median(lengths),
        "longest_function_lines": max(lengths),
        "avg_complexity": statistics.fmean(ways),
        "max_complexity": max(ways),
        "native_files": len(native),
        "native_loc": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in native),
        "how_obtained": METHOD,
    }
