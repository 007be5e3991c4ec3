"""Read the pickles of CIFAR's batches without unpickling: their instructions are followed one by one, and only those that
make plain values and arrays of bytes are understood. Nothing that a file names is imported or called."""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np


class PickleRefused(Exception):
    """The pickle has an instruction or a value that batches of images do not have."""


@dataclass(frozen=True)
class _Name:
    """Something that the pickle names; it is recognized, never looked up."""

    kind: str


@dataclass
class _Array:
    """An array under construction."""

    values: np.ndarray | None = None


_UINT8 = _Name("the dtype uint8")
_NAMES = {
    ("numpy", "ndarray"): _Name("ndarray"),
    ("numpy", "dtype"): _Name("dtype"),
    ("_codecs", "encode"): _Name("encode"),  # how Python 3 writes bytes for Python 2
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Name("_reconstruct") for core in ("core", "_core")},
}
_SKIPPED = frozenset(("PROTO", "FRAME"))
_VALUES = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain(data: bytes) -> Any:
    """The value of a pickle that is made of dictionaries, lists, tuples, numbers, text, bytes and arrays of uint8.

    Raises:
        PickleRefused: it has anything else.
        ValueError, IndexError, KeyError: it is damaged.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return machine.result()
        machine.step(opcode.name, argument)
    raise ValueError("it has no end")


class _Machine:
    """The stack of values, the marks on it, and the values remembered by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise ValueError("values are left over")
        return _finished(self.stack[0])

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name in _TUPLES:
            stack.append(tuple(self._last(_TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self._to_mark() if name == "APPENDS" else self._last(1)
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._to_mark() if name == "SETITEMS" else self._last(2)
            self._set(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            place = tuple(argument.split(" ", 1)) if name == "GLOBAL" else tuple(self._last(2))
            stack.append(_name_of(place))
        elif name == "REDUCE":
            function, arguments = self._last(2)
            stack.append(_made(function, arguments))
        elif name == "BUILD":
            (state,) = self._last(1)
            _fill(stack[-1], state)
        elif name not in _SKIPPED:
            raise PickleRefused(
                f"it has the instruction {name}, which batches of images do not have; it was not loaded"
            )

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count + (self.marks[-1] if self.marks else 0):
            raise ValueError("values are missing")
        out = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return out

    def _to_mark(self) -> list[Any]:
        start = self.marks.pop()
        out = self.stack[start:]
        del self.stack[start:]
        return out

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} stands where a {kind.__name__} should be")
        return self.stack[-1]

    def _set(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(isinstance(key, str | bytes) for key in keys):
            raise ValueError("a dictionary has keys that are no text")
        self._top(dict).update(zip(keys, values, strict=True))


def _name_of(place: tuple[Any, ...]) -> _Name:
    found = _NAMES.get(place) if all(isinstance(word, str) for word in place) else None
    if found is None:
        raise PickleRefused(
            f"it names {'.'.join(map(str, place))}, which batches of images do not need; it was not loaded"
        )
    return found


def _made(function: Any, arguments: Any) -> Any:
    """What a call would make; only four calls are understood, by the form of their arguments."""
    kind = function.kind if isinstance(function, _Name) else ""
    if isinstance(arguments, tuple):
        if kind == "_reconstruct" and arguments[:2] == (_NAMES["numpy", "ndarray"], (0,)) and len(arguments) == 3:
            return _Array()
        if kind == "dtype" and arguments and isinstance(arguments[0], str):
            if arguments[0].lstrip("|") != "u1":
                raise PickleRefused(f"it has an array of {arguments[0][:20]}, not uint8")
            return _UINT8
        if kind == "encode" and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
            return arguments[0].encode("latin1")
        if kind == "encode" and arguments == ():
            return b""
    raise PickleRefused("it calls something, which batches of images do not need; it was not loaded")


def _fill(target: Any, state: Any) -> None:
    """Give an array its values: state is (version, shape, dtype, whether in Fortran order, bytes)."""
    if target is _UINT8:
        return  # byte order and alignment, which one byte does not have
    if not isinstance(target, _Array) or not isinstance(state, tuple) or len(state) != 5:
        raise PickleRefused("it sets the state of something that is no array; it was not loaded")
    _, shape, dtype, fortran, raw = state
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    fits = (
        dtype is _UINT8
        and not fortran
        and isinstance(raw, bytes)
        and isinstance(shape, tuple)
        and all(type(side) is int and side >= 0 for side in shape)
        and math.prod(shape) == len(raw)
    )
    if not fits:
        raise ValueError("the size of an array is not that of its values")
    target.values = np.frombuffer(raw, np.uint8).reshape(shape)


def _finished(value: Any) -> Any:
    """The value without the traces of its making, two levels deep, which is all that batches have."""
    if isinstance(value, _Array):
        if value.values is None:
            raise ValueError("an array has no values")
        return value.values
    if isinstance(value, _Name):
        raise PickleRefused("it holds something that is no value; it was not loaded")
    if isinstance(value, dict):
        return {key: _finished(each) for key, each in value.items() if not isinstance(each, dict)}
    return value
