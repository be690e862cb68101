"""What the rows of `benchmarks.survival` say, in sentences: whichever way it comes out."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.accuracy.table import NOT_MEASURED
from benchmarks.survival.arms import ARMS
from benchmarks.survival.cells import LONGER, ONCE, Recipe
from benchmarks.survival.tables import (
    BASE,
    EVEN,
    Rows,
    differences,
    energy_ratio,
    mean,
    measured,
    of,
    sign,
    text,
)


def follows(rows: Rows) -> str:
    """Return what follows from the comparison for a user."""
    if not differences(rows, "x1", "published", BASE):
        return NOT_MEASURED
    parts = [*_criterion(rows), _against_magnitude(rows), _confirmed(rows)]
    parts += [_denser_first_layers(rows), _energy(rows)]
    return "\n".join(f"- {part}" for part in [*parts, _advice(rows)] if part)


LATER = 107  # the first seed that was run once four times as long was known to pay
KEEPS = ("keeps", EVEN)


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


def _over_permuted(rows: Rows) -> list[tuple[Recipe, str, list[float]]]:
    """Return recipe, arm and differences to its control where there are two or more."""
    found = [
        (recipe, name, differences(rows, recipe.name, name, arm.control))
        for recipe in (ONCE, *LONGER)
        for name, arm in ARMS.items()
        if arm.control
    ]
    return [each for each in found if len(each[2]) > 1]


def _arms(rows: Rows) -> dict[str, list[float]]:
    """Return the differences to magnitude of every arm that is no control."""
    names = [n for n in measured(rows, "x1") if n not in (BASE, "dense")]
    return {n: differences(rows, "x1", n, BASE) for n in names if not ARMS[n].is_control}


def _against_magnitude(rows: Rows) -> str:
    """Return which arms are above, below, and not to be told from magnitude."""
    arms = _arms(rows)
    signs = {name: sign(values) for name, values in arms.items()}
    groups = {
        word: [name for name in arms if signs[name] == value]
        for word, value in (("Above it", 1), ("Below it", -1), ("Not to be told from it", 0))
    }
    words = [f"{word}: {_named(names)}" for word, names in groups.items() if names]
    return (
        f"Against `Magnitude`, by 95 % intervals of pairs. {'. '.join(words)}. Of {len(arms)} "
        f"such intervals about {0.05 * len(arms):.1f} would miss 0 by chance alone."
    )


def _tried(rows: Rows) -> list[tuple[str, str, list[float]]]:
    """Return recipe, arm and differences to magnitude of what was tried on other seeds."""
    found = [
        (recipe.title, name, differences(rows, recipe.name, name, BASE))
        for recipe in LONGER
        for name in measured(rows, recipe.name)
        if name not in (BASE, "dense") and not ARMS[name].is_control
    ]
    return [each for each in found if len(each[2]) > 1]


def _confirmed(rows: Rows) -> str:
    tried = _tried(rows)
    if not tried:
        return "On seeds that were not used to choose, and in longer training: not measured yet."
    wins, losses = (
        [f"{ARMS[name].title} ({title}: {text(v)})" for title, name, v in tried if sign(v) == want]
        for want in (1, -1)
    )
    start = (
        f"On seeds that nothing was chosen by, in {len(tried)} settings of longer training or SGD, "
    )
    if wins:
        start += f"criticality beats magnitude in {len(wins)}: {'; '.join(wins)}"
    else:
        start += "criticality beats magnitude in none"
    return f"{start}; it loses in {len(losses)}{': ' if losses else ''}{'; '.join(losses)}."


def later_seeds(rows: Rows) -> str:
    """Return what four times as long comes to on the seeds that were run once it was known."""
    left = [row for row in rows if row["recipe"] == "x4" and int(row["seed"]) >= LATER]
    values = [differences(left, "x4", "keeps", other) for other in (BASE, "keeps-permuted")]
    if not all(values):
        return NOT_MEASURED
    return (
        f"`keeps_value` is {text(values[0])} points to magnitude ({len(values[0])} pairs) and "
        f"{text(values[1])} to its permuted scores ({len(values[1])} pairs)."
    )


def _denser_first_layers(rows: Rows) -> str:
    """Return what ERK's densities are worth without regrowth, and criticality beside them."""
    parts = []
    for recipe in LONGER:
        alone, keeps = (differences(rows, recipe.name, *pair) for pair in ((EVEN, BASE), KEEPS))
        if len(alone) > 1 and len(keeps) > 1:
            parts.append(
                f"{recipe.title}: {text(alone)} to `Magnitude`; keeps_value is {text(keeps)} to "
                f"it, at {energy_ratio(rows, recipe.name, *KEEPS):.1f} times its energy"
            )
    if not parts:
        return ""
    return (
        "Denser first layers without regrowth, `Magnitude(allocation=ERK())`, points. "
        f"{'. '.join(parts)}."
    )


def _energy(rows: Rows) -> str:
    ratios = [
        f"{ARMS[name].title} {energy_ratio(rows, 'x1', name, BASE):.1f}"
        for name in ("published", "keeps", "keeps-layer", "mean")
        if differences(rows, "x1", name, BASE)
    ]
    return f"Energy of a sample over that of magnitude: {', '.join(ratios)}."


def _advice(rows: Rows) -> str:
    """Return what to take: what was confirmed on other seeds, or magnitude."""
    tried = _tried(rows)
    names = list(dict.fromkeys(name for _, name, values in tried if sign(values) == 1))
    if not tried and any(sign(v) == 1 for v in _arms(rows).values()):
        return "**So** nothing is settled before the best arms have been tried on other seeds."
    if not tried:
        return (
            "**So** take `Magnitude`: no arm is above it here. What longer training and the "
            "paper's optimizer would say is open."
        )
    if names and _even_suffices(rows, names):
        return (
            "**So** take `Magnitude`, and in trainings like those above, where energy does not "
            "matter, `Magnitude(allocation=ERK())`: nothing that regrows by criticality is above "
            "it there. What criticality gains over global magnitude, denser first layers gain "
            "without it."
        )
    if names:
        chance = any(
            r is not ONCE and n in names and not sign(v) for r, n, v in _over_permuted(rows)
        )
        return (
            f"**So** regrow by criticality with {_named(names)} where training is like that above, "
            "and look at the energy; elsewhere `Magnitude` is as good, cheaper and simpler."
            + (" It is the regrowth that pays: permuted scores are not told apart." * chance)
        )
    best = "`keeps_value=True` and a small `regrow` (0.01 to 0.03)"
    better = sign(differences(rows, "x1", "keeps", "published"))
    gain = f", which is {text(differences(rows, 'x1', 'keeps', 'published'))} points at r = 0.1 "
    return (
        "**So** take `Magnitude` for accuracy at a given sparsity: nothing here is a reason for "
        "regrowth by criticality. `Criticality` with its defaults is for comparing with the paper; "
        f"whoever wants its regrowth all the same sets {best}"
        + (f"{gain}over the published way." if better == 1 else ".")
    )


def _even_suffices(rows: Rows, names: Iterable[str]) -> bool:
    """Tell whether no arm that beats magnitude in a training beats ERK's densities there."""
    beats = [
        (recipe.name, name)
        for recipe in LONGER
        for name in names
        if sign(differences(rows, recipe.name, name, BASE)) == 1
    ]
    known = [pair for pair in beats if len(differences(rows, *pair, EVEN)) > 1]
    return bool(known) and all(sign(differences(rows, *pair, EVEN)) < 1 for pair in known)


def trained(rows: Rows) -> str:
    """Return what the real training shows."""
    dense = list(of(rows, "cifar", "dense").values())
    if not dense:
        return NOT_MEASURED
    images = ", ".join(sorted({row["images"] for row in dense}))
    parts = [f"Images: {images}. Dense: {mean(dense, 'accuracy'):.2f} %, of {len(dense)} seeds."]
    for sparsity in ("90", "98"):
        values = differences(rows, "cifar", f"criticality-{sparsity}", f"magnitude-{sparsity}")
        pair = [list(of(rows, "cifar", f"{n}-{sparsity}").values()) for n in (BASE, "criticality")]
        if values:
            ratio = mean(pair[1], "energy_nj") / mean(pair[0], "energy_nj")
            each = ", ".join(f"{value:+.2f}" for value in values)
            parts.append(
                f"At {sparsity} % `Criticality` is {each} points to `Magnitude` (a value a seed), "
                f"at {ratio:.1f} times its energy."
            )
    parts.append("Two seeds say how large the effects are, not which method wins.")
    return " ".join(parts)
