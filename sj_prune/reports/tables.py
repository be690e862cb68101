"""Numbers and tables as text, for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from os import PathLike


def readable(value: float, unit: str = "", exponent: int = 0) -> str:
    """Return ``value * 10**exponent`` with three digits and a prefix: ``1.23 M``.

    Args:
        value: any number.
        unit: put behind the prefix, such as ``"J"``.
        exponent: of 10, a multiple of 3; -12 for a value in pico-units.
    """
    prefixes = {-12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
    # 999.6 would print as 1e+03: what rounds up to the next prefix takes it.
    while abs(value) >= 999.5 and exponent < 12:
        value, exponent = value / 1000, exponent + 3
    return f"{value:.3g} {prefixes[exponent]}{unit}".rstrip()


def _change(before: float, after: float) -> str:
    """Return the relative change, or nothing where there is none."""
    return f" ({100 * (after / before - 1):+.1f} %)" if before and before != after else ""


def before_after(before: float, after: float, unit: str = "", exponent: int = 0) -> str:
    """Return both numbers as `readable` text, with the relative change."""
    texts = readable(before, unit, exponent), readable(after, unit, exponent)
    return f"{texts[0]} => {texts[1]}{_change(before, after)}"


def optional(value: float | None) -> str:
    """Return three digits, or a dash for None."""
    return "-" if value is None else f"{value:.3g}"


def shape_text(shape: Sequence[int]) -> str:
    """Return ``64x3x3x3``."""
    return "x".join(map(str, shape))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], markdown: bool) -> str:
    """Return a table of finished texts; columns that are empty throughout are left out."""
    cells = list(rows)
    used = [i for i in range(len(headers)) if any(row[i] for row in cells)]
    return tabulate(
        [[row[i] for i in used] for row in cells],
        headers=[headers[i] for i in used],
        tablefmt="github" if markdown else "simple",
        disable_numparse=True,
    )


def write(text: str, path: str | PathLike[str] | None) -> str:
    """Return `text`, written to `path` too if one is given."""
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
