"""The results as a short table for people."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """One line a section, or a line for each of its rows."""
    lines = ["", "section                  what                          tokens/s    ms/step   of limit"]
    for name, result in results.items():
        lines += section_lines(name, result)
    return "\n".join(lines)


def section_lines(name: str, result: dict[str, Any]) -> list[str]:
    """The lines of one section."""
    if "error" in result:
        return [f"{name:<25}FAILED: {result['error'][:90]}"]
    if "skipped" in result:
        return [f"{name:<25}skipped: {result['skipped']}"]
    if "rows" in result:
        return [row_line(name, row) for row in result["rows"]]
    if "output_tokens_per_s" in result:
        return [
            f"{name:<25}{'256 requests':<28}{result['output_tokens_per_s']:>10,.0f}  (wall {result['wall_s']:.1f} s)"
        ]
    facts = (f"{key} {short(value)}" for key, value in result.items() if isinstance(value, (int, float, str)))
    return [f"{name:<25}{', '.join(facts)}"]


def row_line(name: str, row: dict[str, Any]) -> str:
    """One measurement."""
    what = f"batch {row['batch']}, {row.get('context', row.get('length'))} tokens"
    fraction = row.get("fraction_of_bandwidth") or row.get("fraction_of_peak")
    share = f"{fraction:>10.1%}" if fraction else ""
    return f"{name:<25}{what:<28}{row['tokens_per_s']:>10,.0f} {row['ms']:>10.3f} {share}"


def short(value: Any) -> str:
    """A number in few digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
