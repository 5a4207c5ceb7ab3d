"""`kvik bench verify`: holds result files against themselves and against physics. The arithmetic is in bench/."""

from __future__ import annotations

from pathlib import Path

import click

from kvik.cli.options import json_option
from kvik.cli.results import check_line
from kvik.cli.terminal import json_line


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE..")
@json_option
def verify(files: tuple[Path, ...], as_json: bool) -> None:
    """Compute every identity and limit of result files again, and refuse what contradicts itself or physics.

    FILE is a result, a suite of results, or a claim from elsewhere as an object of test_name, hardware,
    parameters, results.
    """
    from kvik.bench.checks import refuse_failed
    from kvik.bench.evidence import verify as verify_file

    found = {str(file): verify_file(file) for file in files}
    if as_json:
        each = [{"file": name, "passed": all(c["passed"] for c in checks), "checks": checks}
                for name, checks in found.items()]  # fmt: skip
        click.echo(json_line(each[0] if len(each) == 1 else {"files": each}))
    else:
        for name, checks in found.items():
            click.echo("\n".join([*([name] if len(found) > 1 else []), *map(check_line, checks)]))
    refuse_failed([check for checks in found.values() for check in checks])
