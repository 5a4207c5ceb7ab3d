"""Charts as inline SVG, whose colours are those of the page: bars, distributions, stacked memory, the roofline.

Drawn by matplotlib, which the extra `kvik[report]` brings. Colours are drawn as marks and replaced by the page's
variables afterwards, so that one drawing serves light and dark. This file knows numbers and labels and nothing of
results.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches; the page scales it."""
MARKS = {"ink": "#010203", "soft": "#040506", "line": "#070809"} | {
    f"s{index}": f"#0a0b{16 + index:02x}" for index in range(1, 9)
}
"""What each variable of the page is drawn as."""
SERIES = 8
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvik",
    "font.size": 10.5,
    "axes.edgecolor": MARKS["line"],
    "axes.labelcolor": MARKS["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": MARKS["ink"],
    "xtick.color": MARKS["soft"],
    "ytick.color": MARKS["soft"],
    "grid.color": MARKS["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_CLIP = re.compile(r'(id="|url\(#|xlink:href="#|href="#)([\w.-]+)')


@dataclass(frozen=True)
class Bar:
    """One bar: the median, and every value that it is the median of."""

    label: str
    values: tuple[float, ...]
    height: float
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A point under the roof: operations per byte and operations per second."""

    label: str
    intensity: float
    rate: float
    series: int = 1


def series(index: int) -> str:
    """The colour of a series, from 0; they repeat after eight."""
    return MARKS[f"s{index % SERIES + 1}"]


def _svg(figure: Figure, name: str) -> str:
    """The drawing as an element of a page: no header, ids of its own, the page's colours."""
    held = io.StringIO()
    figure.savefig(held, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = held.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = _CLIP.sub(lambda found: f"{found[1]}{name}-{found[2]}", text)
    for variable, mark in MARKS.items():
        text = text.replace(mark, f"var(--{variable})")
    return text


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def bars(name: str, rows: Sequence[Bar], unit: str) -> str:
    """Horizontal bars from the first row down, every single value as a dot on its bar."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(0.9 + 0.42 * len(rows))
        places = range(len(rows))
        axes.barh(places, [row.height for row in rows], color=series(0), height=0.62, alpha=0.85)
        for place, row in zip(places, rows, strict=True):
            axes.plot(row.values, [place] * len(row.values), ".", color=MARKS["ink"], markersize=4, alpha=0.7)
            axes.annotate(
                f"{row.height:,.4g} {unit}{row.note}",
                (max((*row.values, row.height)), place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(places, [row.label for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.32 * max(max((*row.values, row.height)) for row in rows))
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        return _svg(figure, name)


def distributions(name: str, rows: Mapping[str, Sequence[Sequence[float]]], what: str) -> str:
    """For each row of counted values ([milliseconds, count]) the share that is at most so long, on a log scale."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.4)
        for index, (label, pairs) in enumerate(rows.items()):
            total, seen, xs, ys = sum(count for _, count in pairs), 0.0, [], []
            for value, count in sorted(map(tuple, pairs)):
                xs += [value, value]
                ys += [100 * seen / total, 100 * (seen + count) / total]
                seen += count
            axes.plot(xs, ys, color=series(index), linewidth=1.8, label=label)
        axes.set_xscale("log")
        axes.set_ylim(0, 101)
        axes.set_xlabel(f"{what}, milliseconds")
        axes.set_ylabel("% at most so long")
        axes.grid()
        axes.legend(loc="lower right", ncols=2)
        return _svg(figure, name)


def stacks(name: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal bars, each divided into its parts."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(1.3 + 0.42 * len(rows))
        places = list(range(len(rows)))
        start = [0.0] * len(rows)
        for index, part in enumerate(next(iter(rows.values()))):
            sizes = [row[part] for row in rows.values()]
            axes.barh(places, sizes, left=start, color=series(index), height=0.62, label=part)
            start = [before + size for before, size in zip(start, sizes, strict=True)]
        for place, total in zip(places, start, strict=True):
            axes.annotate(
                f"{total:,.4g} {unit}", (total, place), xytext=(8, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, list(rows))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(start))
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper left", ncols=8)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        return _svg(figure, name)


def roofline(name: str, bandwidth: float, peaks: Mapping[str, float], points: Sequence[Point]) -> str:
    """The roof: bytes/s times intensity, up to each peak; and the points below it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2)
        low = min([0.5, *(point.intensity / 2 for point in points)])
        high = max([4 * max(peaks.values()) / bandwidth, *(2 * point.intensity for point in points)])
        for form, peak in peaks.items():
            ridge = peak / bandwidth
            axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=MARKS["soft"], linewidth=1.4)
            axes.annotate(f"{form} peak", (high, peak), xytext=(-2, 4), textcoords="offset points", ha="right")
        for number, point in enumerate(points, 1):
            axes.plot(point.intensity, point.rate, "o", color=series(point.series - 1), markersize=8)
            axes.annotate(str(number), (point.intensity, point.rate), xytext=(7, -4), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations per byte")
        axes.set_ylabel("operations per second")
        axes.grid(which="major")
        return _svg(figure, name)


def drawn(value: Any) -> str:
    """A number for a table: four digits that matter."""
    return f"{value:,.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
