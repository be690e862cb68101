"""What a plan is, as plain values: to recognise its checkpoint, and compare ranks.

Functions count by their qualified name, a lambda or local one by its code and what it closes over,
small objects by their class and fields. Nothing depends on a ``repr``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Integral, Real
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor

__all__ = ["check_same", "describe", "flat"]


def describe(method: object) -> dict[str, Any]:
    """Return name and settings of a method or plan, as plain values."""
    name = getattr(method, "name", None)
    known = isinstance(name, str)
    settings = {
        f.name: plain(getattr(method, f.name))
        for f in (fields(method) if is_dataclass(method) else ())
        if f.compare
    }
    if not is_dataclass(method):
        settings = {key: plain(value) for key, value in sorted(vars(method).items())}
    return {"name": name if known else type(method).__name__, **settings}


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value as plain ones: numbers, strings, lists and dictionaries of them."""
    if isinstance(value, (bool, str, type(None))):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, map(plain, value)))
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return _object(value)


def _object(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, FunctionType):
        return _function(value)
    if isinstance(value, MethodType):
        return {"function": _name(value.__func__), "of": plain(value.__self__)}
    if isinstance(value, Tensor):
        return {"tensor": _hash_of(str(value.dtype), value.detach().cpu().tolist())}
    if isinstance(value, partial):
        return {"partial": plain([value.func, list(value.args), dict(value.keywords)])}
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return _name(value)
    if is_dataclass(value):
        found = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    else:
        found = {key: plain(each) for key, each in sorted(vars(value).items())}
    return {"class": _name(type(value)), **found}


def _name(value: Any) -> str:  # noqa: ANN401
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', None) or 'builtins'}.{name}"


def _function(function: FunctionType) -> Any:  # noqa: ANN401
    name = _name(function)
    if "<" not in name:
        return name
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return {
        "function": name,
        "code": _digest(function.__code__),
        "values": plain([list(function.__defaults__ or ()), cells]),
    }


def _digest(code: CodeType) -> str:
    return _hash_of(*_parts_of(code))


def _hash_of(*parts: Any) -> str:  # noqa: ANN401
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(str(part).encode())
    return found.hexdigest()


def _parts_of(code: CodeType) -> Iterator[Any]:
    yield from (code.co_code, code.co_names, code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts_of(constant)
        else:
            yield type(constant).__name__, _ordered(constant)


def _ordered(constant: Any) -> Any:  # noqa: ANN401
    """Return a constant whose text is the same in every process: sets have no order."""
    if isinstance(constant, frozenset):
        return sorted(map(repr, constant))
    return [_ordered(each) for each in constant] if isinstance(constant, tuple) else constant


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def check_same(method: object, saved: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another method or of other settings.

    Settings that the checkpoint does not know are newer than it and have to be at their default.

    Raises:
        ValueError: naming the first setting that differs.
    """
    defaults = {f.name: plain(f.default) for f in fields(method)} if is_dataclass(method) else {}
    before = {key: value for key, value in defaults.items() if key not in saved}
    mine, theirs = flat(describe(method)), flat({**before, **_read(method, saved)})
    for key in [*mine, *theirs]:
        if mine.get(key) != theirs.get(key):
            raise ValueError(
                f"Expected a checkpoint with method.{key} = {mine.get(key)!r} but it has "
                f"{theirs.get(key)!r}: build the wrapper with the method that the checkpoint was "
                "saved from"
            )


def _read(method: object, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings; those of format 2 hold objects by their ``repr``."""
    found = dict(saved)
    for key, value in saved.items():
        mine = getattr(method, key, None)
        if isinstance(value, str) and is_dataclass(mine) and value == repr(mine):
            found[key] = plain(mine)
    return found
