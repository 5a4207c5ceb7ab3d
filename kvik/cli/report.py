"""`kvik bench report`: result files as one HTML page. This file knows nothing of what is on it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE..")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="Write the page here.",
)
def report(files: tuple[Path, ...], output: Path) -> None:
    """Draw results: one HTML page with charts, light and dark, and the evidence behind each number. Needs
    kvik[report].

    FILE is a result or a suite. Each is verified first, and refused if a check fails.
    """
    from kvik.errors import ConfigError

    try:
        from kvik.bench.report.page import render
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError("a report needs matplotlib to draw; install kvik[report]") from error
    page = render(files)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}") from error
    click.echo(f"{output}: {len(page.encode()) / 1e6:.1f} MB")
