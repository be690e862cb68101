"""Checks of single values that users set: one wording, one place."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real


def check_number(name: str, value: object) -> float:
    """Return a finite number.

    Raises:
        TypeError: if `value` is not a number.
        ValueError: if it is infinite or NaN.
    """
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"Expected {name} to be finite but got {value}")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {name} to be a number but got {value!r}")
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf


def check_integer(name: str, value: object, least: int | None = None) -> int:
    """Return an integer of at least `least`.

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Expected {name} to be an integer but got {value!r}")
    if least is not None and int(value) < least:
        raise ValueError(f"Expected {name} to be at least {least} but got {value}")
    return int(value)


def check_fraction(
    name: str, value: object, *, least: float = 0.0, open_below: bool = False
) -> None:
    """Refuse anything but a number in [least, 1), or in (least, 1) if `open_below`.

    Raises:
        TypeError: if `value` is not a number.
        ValueError: if it is out of range.
    """
    number = _number(name, value)
    inside = (number > least if open_below else number >= least) and number < 1
    if not inside:
        bracket = "(" if open_below else "["
        raise ValueError(f"Expected {name} in {bracket}{least:g}, 1) but got {value}")


def check_choice(name: str, value: object, known: Collection[object]) -> None:
    """Refuse what is not among `known`.

    Raises:
        ValueError: naming the setting and its values.
    """
    # An array equals one number and is none.
    single = value is None or (isinstance(value, (str, Real)) and not isinstance(value, bool))
    if not single or value not in known:
        raise ValueError(f"Expected {name} to be one of {known} but got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: naming the setting.
    """
    if not isinstance(value, bool):
        raise TypeError(f"Expected {name} to be True or False but got {value!r}")


def check_factor(name: str, value: object, *, positive: bool = False) -> None:
    """Refuse what is no finite number of at least 0, or above 0 if `positive`.

    Raises:
        TypeError: if `value` is not a number.
        ValueError: if it is negative, infinite or NaN.
    """
    number = _number(name, value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(f"Expected {name} to be finite and {bound} but got {value}")


def check_steps(name: str, value: object, most: int | None = None) -> None:
    """Refuse what is no number of optimizer steps in [1, most].

    Raises:
        TypeError: if `value` is not an integer.
        ValueError: if it is out of range.
    """
    number = check_integer(name, value)
    if number < 1 or (most is not None and number > most):
        bound = "of at least 1" if most is None else f"in [1, {most}], the steps between updates,"
        raise ValueError(f"Expected {name} {bound} but got {value}")


def function_name(function: object) -> str:
    """Return the name by which `pkgutil.resolve_name` finds a function, ``"module:function"``.

    Raises:
        TypeError: for what cannot be found by a name, such as a lambda.
    """
    module, name = (getattr(function, key, "<none>") for key in ("__module__", "__qualname__"))
    if not callable(function) or "<" in f"{module}{name}":
        raise TypeError(
            "Expected a function of spikes that its module holds under its name, so that copies "
            f"find it, but got {function!r}: write it with def, outside of others"
        )
    return f"{module}:{name}"
