"""What the rows of `benchmarks.survival` say, in sentences: whichever way it comes out.

What follows from them for a user stands in the pages, written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.accuracy.table import NOT_MEASURED
from benchmarks.survival.arms import ARMS
from benchmarks.survival.cells import LONGER, ONCE, Recipe
from benchmarks.survival.tables import (
    BASE,
    ERK_ARM,
    Rows,
    counted,
    differences,
    energy_ratio,
    is_criticality,
    mean,
    measured,
    of,
    sign,
    text,
)

Difference = tuple[Recipe, str, list[float]]


def says(rows: Rows) -> str:
    """Return what the comparison says."""
    if not differences(rows, "x1", "published", BASE):
        return NOT_MEASURED
    parts = [*_criterion(rows), _against_magnitude(rows), _longer(rows), _erk(rows), _energy(rows)]
    return "\n".join(f"- {part}" for part in parts if part)


def _named(names: Iterable[str]) -> str:
    return "; ".join(ARMS[name].title for name in names)


def _criterion(rows: Rows) -> list[str]:
    """Return whether each criterion is worth more than its permuted scores."""
    says = {
        1: "the criterion picks better than chance within its layers",
        0: "the criterion cannot be told from chance within its layers",
        -1: "the criterion picks worse than chance within its layers",
    }
    found = []
    for recipe, name, values in _over_permuted(rows):
        where = "" if recipe is ONCE else f", {recipe.title},"
        found.append(
            f"**{ARMS[name].title}**{where} is {text(values)} points to its own scores permuted "
            f"among the channels of each layer ({len(values)} pairs): {says[sign(values)]}."
        )
    return found


def _over_permuted(rows: Rows) -> list[Difference]:
    """Return recipe, arm and differences to its control where there are two or more."""
    found = [
        (recipe, name, differences(rows, recipe.name, name, arm.control))
        for recipe in (ONCE, *LONGER)
        for name, arm in ARMS.items()
        if arm.control
    ]
    return [each for each in found if len(each[2]) > 1]


def _against_magnitude(rows: Rows) -> str:
    """Return which arms are above, below, and not to be told from magnitude."""
    names = [name for name in measured(rows, "x1") if is_criticality(name)]
    signs = {n: sign(differences(rows, "x1", n, BASE)) for n in names}
    groups = {
        word: [name for name in names if signs[name] == value]
        for word, value in (("Above it", 1), ("Below it", -1), ("Not to be told from it", 0))
    }
    words = [f"{word}: {_named(names)}" for word, names in groups.items() if names]
    return f"Against `Magnitude`, by 95 % intervals of pairs. {'. '.join(words)}. {_chance(names)}"


def _chance(found: Iterable[object]) -> str:
    number = len(list(found))
    return f"Of {number} such intervals about {0.05 * number:.1f} would miss 0 by chance alone."


def _longer(rows: Rows) -> str:
    """Return where criticality is above and below magnitude that divides weights likewise."""
    found: list[Difference] = [
        (recipe, name, differences(rows, recipe.name, name, ARMS[name].beside))
        for recipe in LONGER
        for name in measured(rows, recipe.name)
        if is_criticality(name)
    ]
    found = [each for each in found if len(each[2]) > 1]
    if not found:
        return "On other seeds, and in longer training: not measured yet."
    above, below = (
        [
            f"{ARMS[name].title} ({recipe.title}: {text(v)})"
            for recipe, name, v in found
            if sign(v) == s
        ]
        for s in (1, -1)
    )
    return (
        "Longer trainings and SGD, on seeds by which neither arm nor training was chosen: of "
        f"{len(found)} differences to `Magnitude` with the same allocation {len(above)} are above "
        f"0{_list(above)}, {len(below)} below{_list(below)}. {_chance(found)}"
    )


def _list(words: Iterable[str]) -> str:
    joined = "; ".join(words)
    return f": {joined}" if joined else ""


def _erk(rows: Rows) -> str:
    """Return what another allocation is worth without regrowth, and criticality beside it."""
    parts = []
    for recipe in LONGER:
        alone = differences(rows, recipe.name, ERK_ARM, BASE)
        keeps = differences(rows, recipe.name, "keeps", ERK_ARM)
        if len(alone) > 1 and len(keeps) > 1:
            ratio = energy_ratio(rows, recipe.name, "keeps", ERK_ARM)
            parts.append(
                f"{recipe.title}: {counted(alone)}, and keeps_value is {counted(keeps)} to it, at "
                f"{ratio:.1f} times its energy"
            )
    if not parts:
        return ""
    return (
        "Another allocation without regrowth, `Magnitude(allocation=ERK())`, points to "
        f"`Magnitude`. {'. '.join(parts)}."
    )


def _energy(rows: Rows) -> str:
    ratios = [
        f"{ARMS[name].title} {energy_ratio(rows, 'x1', name, BASE):.1f}"
        for name in ("published", "keeps", "keeps-layer", "mean")
        if differences(rows, "x1", name, BASE)
    ]
    return f"Energy of a sample over that of magnitude: {', '.join(ratios)}."


def groups(rows: Rows) -> str:
    """Return what four times as long comes to on the CPU's and on the GPU's seeds apart."""
    parts = []
    for where in ("CPU", "GPU"):
        mine = [row for row in rows if row["device"].startswith("cpu") == (where == "CPU")]
        values = [differences(mine, "x4", "keeps", other) for other in (BASE, "keeps-permuted")]
        if not all(values):
            return NOT_MEASURED
        parts.append(
            f"{where}: {counted(values[0])} to magnitude, {counted(values[1])} to its permuted "
            "scores"
        )
    return f"`keeps_value`, points, 32 epochs. {'. '.join(parts)}."


def trained(rows: Rows) -> str:
    """Return what the real training shows."""
    dense = list(of(rows, "cifar", "dense").values())
    if not dense:
        return NOT_MEASURED
    images = ", ".join(sorted({row["images"] for row in dense}))
    parts = [f"Images: {images}. Dense: {mean(dense, 'accuracy'):.2f} %, of {len(dense)} seeds."]
    for sparsity in ("90", "98"):
        names = [f"{name}-{sparsity}" for name in ("criticality", BASE)]
        values = differences(rows, "cifar", *names)
        if values:
            each = ", ".join(f"{value:+.2f}" for value in values)
            parts.append(
                f"At {sparsity} % `Criticality` is {each} points to `Magnitude` (a value a seed), "
                f"at {energy_ratio(rows, 'cifar', *names):.1f} times its energy."
            )
    parts.append("Two seeds show what happened here, not which method wins elsewhere.")
    return " ".join(parts)
