"""What a plan is, as plain values: to recognise its checkpoint, and compare ranks.

Functions count by their qualified name, a lambda or local one by its code and what it closes over,
small objects by their class and fields. Nothing depends on a ``repr``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import partial
from numbers import Integral, Real
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any

from torch import Tensor, device, dtype, uint8

#: plain values that ``str`` writes in full
_WRITTEN = (complex, bytes, Decimal, range, slice, device, dtype)


def describe(method: object) -> dict[str, Any]:
    """Return name and settings of a method or plan, as plain values."""
    name = getattr(method, "name", None)
    shown = {f.name for f in fields(method) if f.compare} if is_dataclass(method) else None
    settings = {
        key: plain(value)
        for key, value in _attributes(method).items()
        if shown is None or key in shown
    }
    return {"name": str(name) if isinstance(name, str) else type(method).__name__, **settings}


def plain(value: Any, inside: tuple[int, ...] = ()) -> Any:  # noqa: ANN401
    """Return a value as plain ones: numbers, strings, lists and dictionaries of them.

    Args:
        value: anything; what refers to itself is cut there.
        inside: the objects that hold it, by `id`.
    """
    if value is None or isinstance(value, (bool, str, Integral, Real)):
        return _single(value)
    if isinstance(value, Tensor) or {"dtype", "tobytes"} <= set(dir(type(value))):
        return _array(value)  # NumPy's too, by what they offer
    if isinstance(value, _WRITTEN):
        return {"class": _name(type(value)), "value": str(value)}
    if id(value) in inside:
        return "itself"
    inner = partial(plain, inside=(*inside, id(value)))
    if isinstance(value, Mapping):
        return {str(key): inner(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((inner(each) for each in value), key=repr)  # of plain values: no address
    if isinstance(value, (list, tuple)):
        return [inner(each) for each in value]
    return _object(value, inner)


def _single(value: bool | str | Integral | Real | None) -> Any:  # noqa: ANN401
    """Return one value in its plain type: checkpoints hold no enums or NumPy scalars."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, Integral) else float(value)


def _array(value: Any) -> Any:  # noqa: ANN401
    """Return type, shape and a digest of the values of a tensor or array."""
    if isinstance(value, Tensor):
        if value.is_meta:
            return [str(value.dtype), list(value.shape)]
        values = value.detach().cpu().to_dense().contiguous().flatten().view(uint8).numpy()
    else:
        values = value
    found = hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
    return [str(value.dtype), list(value.shape), found]


def _object(value: Any, inner: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    if isinstance(value, FunctionType):
        return _function(value, inner)
    if isinstance(value, MethodType):
        return {"method": inner(value.__func__), "of": inner(value.__self__)}
    if isinstance(value, partial):
        arguments = [list(value.args), dict(value.keywords)]
        return {"function": inner(value.func), "arguments": inner(arguments)}
    if isinstance(value, (type, BuiltinFunctionType, ModuleType)):
        return _name(value)
    return {
        "class": _name(type(value)),
        **{key: inner(each) for key, each in _attributes(value).items()},
    }


def _attributes(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what an object holds, by name, with or without a ``__dict__``."""
    if is_dataclass(value):
        return {f.name: getattr(value, f.name, None) for f in fields(value)}
    slots = [s for c in type(value).__mro__ for s in _names(vars(c).get("__slots__", ()))]
    found = {key: getattr(value, key) for key in slots if hasattr(value, key)}
    found.update(getattr(value, "__dict__", {}))
    return {key: found[key] for key in sorted(found) if key != "__weakref__"}


def _names(slots: Any) -> tuple[str, ...]:  # noqa: ANN401
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _name(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, ModuleType):
        return value.__name__
    return f"{getattr(value, '__module__', None) or 'builtins'}.{value.__qualname__}"


def _function(function: FunctionType, inner: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    name = _name(function)
    if "<" not in name:
        return name
    cells = [_content(cell) for cell in function.__closure__ or ()]
    defaults = [list(function.__defaults__ or ()), dict(function.__kwdefaults__ or {})]
    return {
        "function": name,
        "code": _digest(function.__code__),
        "values": inner([*defaults, cells]),
    }


def _content(cell: CellType) -> Any:  # noqa: ANN401
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _digest(code: CodeType) -> str:
    found = hashlib.blake2b(digest_size=8)
    for part in _parts_of(code):
        found.update(str(part).encode())
    return found.hexdigest()


def _parts_of(code: CodeType) -> Iterator[Any]:
    yield from (code.co_code, code.co_names, code.co_varnames)
    for constant in code.co_consts:
        yield from _constant(constant)


def _constant(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield a constant; of a set in an order that is the same in every process."""
    if isinstance(value, CodeType):
        yield from _parts_of(value)
    elif isinstance(value, (tuple, frozenset)):
        ordered = value if isinstance(value, tuple) else sorted(value, key=repr)
        yield type(value).__name__, len(value)
        for each in ordered:
            yield from _constant(each)
    else:
        yield type(value).__name__, value


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def check_same(
    method: object, saved: Mapping[str, Any], known: Mapping[str, Any] | None = None
) -> None:
    """Refuse the checkpoint of another method or of other settings.

    Settings that the checkpoint does not know are newer than it and have to be at their default.

    Args:
        method: of the wrapper.
        saved: what `describe` said when the checkpoint was saved.
        known: what it said when the network was wrapped, by default what it says now.

    Raises:
        ValueError: naming the first setting that differs.
    """
    defaults = {f.name: plain(f.default) for f in fields(method)} if is_dataclass(method) else {}
    before = {key: value for key, value in defaults.items() if key not in saved}
    mine, theirs = flat(known or describe(method)), flat({**before, **_read(method, saved)})
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
