"""Write docs/options.md from the fields that declare the options. `--check` only says whether the file is up to date.

    python tools/make_options.py [--check]

Engine options come from the dataclasses of kvik/config.py, those of `kvik serve` from kvik/server/options.py; sampling
parameters from SamplingParams, whose attribute docstrings are read from the source.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

from kvik.config import CONCERNS
from kvik.request import SamplingParams
from kvik.server.options import SERVER_CONCERNS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "options.md"
HEADER = """# Options

Made by `tools/make_options.py` from `kvik/config.py`, `kvik/server/options.py` and `kvik/request.py`; a test holds it
true. On the command line an option `max_num_seqs` is the flag `--max-num-seqs`; in Python it is a keyword argument of
`LLM(...)`.
"""
SERVING = """# Options of `kvik serve`

Beside all of the above. Keys may also come from `--api-key-file FILE`, one a line, or from the environment,
`KVIK_API_KEY`. A request can shorten its own time with the header `x-request-timeout`, in seconds.
"""


def default_text(value: Any) -> str:
    """A default as a reader sees it."""
    return "" if value is None or value == () else f"`{value}`"


def values_text(field: dataclasses.Field[Any]) -> str:
    """What an engine option may be."""
    meta = field.metadata
    if meta["choices"]:
        return " ".join(f"`{choice}`" for choice in meta["choices"])
    if meta["size"]:
        return "a size such as `4GiB`"
    if isinstance(field.default, bool):
        return "`True` `False`"
    if isinstance(field.default, tuple):
        return "text, or several"
    number = "whole number" if "int" in str(field.type) else "number"
    return f"{number}, at least {meta['low']}" if meta["low"] is not None else "text"


def concern_table(kind: type) -> str:
    """One section: a concern and its options."""
    lines = [f"## {kind.__name__}", "", f"{inspect.getdoc(kind)}", "", "| option | values | default | meaning |"]
    lines.append("|---|---|---|---|")
    for f in dataclasses.fields(kind):
        meaning = f.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{f.name}` | {values_text(f)} | {default_text(f.default)} | {meaning} |")
    return "\n".join(lines) + "\n"


def attribute_docs(kind: type) -> dict[str, str]:
    """The string literal after each annotated field of a class."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(following, ast.Expr):
            docs[field.target.id] = " ".join(ast.literal_eval(following.value).split())
    return docs


def sampling_table() -> str:
    """The section on SamplingParams."""
    docs = attribute_docs(SamplingParams)
    lines = [
        "## SamplingParams",
        "",
        str(inspect.getdoc(SamplingParams)),
        "",
        "| field | default | meaning |",
        "|---|---|---|",
    ]
    for f in dataclasses.fields(SamplingParams):
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
        lines.append(f"| `{f.name}` | {default_text(default)} | {docs.get(f.name, '')} |")
    return "\n".join(lines) + "\n"


def render() -> str:
    """The whole document."""
    engine = [concern_table(kind) for kind in CONCERNS.values()]
    serving = [concern_table(kind) for kind in SERVER_CONCERNS.values()]
    return "\n".join([HEADER, *engine, sampling_table(), SERVING, *serving])


def main() -> int:
    """Write or check the document; the exit status is 1 when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the file is out of date")
    text = render()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET.name} is out of date: run python tools/make_options.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
