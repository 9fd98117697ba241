"""numpy arrays over the bytes of pages. Only here is numpy imported, when it is first needed."""

from __future__ import annotations

import struct
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zcfs.pool.errors import PoolUsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

_numpy: ModuleType | None = None


class Arrays:
    """What has the bytes of a page as `data` has arrays over them too."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def data(self) -> memoryview: ...

    def array(
        self,
        dtype: DTypeLike,
        offset: int = 0,
        count: int | None = None,
        stride: int | None = None,
    ) -> np.ndarray[Any, Any]:
        """A numpy array over `data`, without a copy.

        It begins `offset` bytes into `data` and has `count` items (None: all that fit), `stride`
        bytes apart (None: one behind another). PoolUsageError (a ValueError) if they do not fit;
        ImportError without numpy.
        """
        return view(self.data, dtype, offset, count, stride)

    def records(
        self,
        layout: DTypeLike | struct.Struct,
        offset: int = 0,
        count: int | None = None,
        stride: int | None = None,
    ) -> np.ndarray[Any, Any]:
        """As `array`, of records.

        `layout`: a structured dtype, whatever numpy makes one of (a list of fields, a
        ctypes.Structure), or a struct.Struct, whose fields are then f0, f1, …
        """
        return view(self.data, layout, offset, count, stride)


def numpy() -> Any:
    """The module numpy; ImportError that says how to install it."""
    global _numpy
    if _numpy is None:
        try:
            import numpy
        except ImportError as error:
            raise ImportError(
                "arrays need numpy, which is not installed: pip install 'zcfs[numpy]' "
                "(page.data, a memoryview, works without it)"
            ) from error
        _numpy = numpy
    return _numpy


def struct_dtype(layout: struct.Struct) -> np.dtype[Any]:
    """The dtype of a struct format: fields f0, f1, … in its order, where struct puts them."""
    order, body = "@", layout.format
    if body[:1] in tuple("@=<>!"):
        order, body = body[0], body[1:]
    names: list[str] = []
    formats: list[str] = []
    offsets: list[int] = []
    done, count = order, ""
    for code in body.replace(" ", ""):
        if code.isdigit():
            count += code
            continue
        for each in [count + code] if code in "sp" else [code] * int(count or 1):
            done += each
            if code != "x":
                names.append(f"f{len(names)}")
                formats.append(_format(order, each))
                offsets.append(struct.calcsize(done) - struct.calcsize(order + each))
        count = ""
    dtype: np.dtype[Any] = numpy().dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": layout.size}
    )
    return dtype


def _format(order: str, code: str) -> str:
    """numpy's word for one value of a struct format."""
    letter = code[-1]
    if letter in "sc":
        return f"S{struct.calcsize(code)}"
    if letter == "?":
        return "?"
    kind = next((kind for kind, letters in _KINDS.items() if letter in letters), None)
    if kind is None:
        raise PoolUsageError(f'struct format "{letter}": there is no numpy type for it')
    return f"{ {'@': '=', '!': '>'}.get(order, order)}{kind}{struct.calcsize(order + letter)}"


_KINDS = {"i": "bhilqn", "u": "BHILQN", "f": "efd"}


def view(
    data: memoryview, dtype: object, offset: int, count: int | None, stride: int | None
) -> np.ndarray[Any, Any]:
    """An array over `data` from `offset` on, without a copy.

    It has `count` items (None: all that fit), `stride` bytes apart (None: one behind another).
    """
    numpy_ = numpy()
    of = struct_dtype(dtype) if isinstance(dtype, struct.Struct) else numpy_.dtype(dtype)
    step = of.itemsize if stride is None else stride
    room = len(data) - offset - of.itemsize
    if offset < 0 or step <= 0:
        raise PoolUsageError(f"offset {offset}, stride {stride}: not negative, and no stride 0")
    fit = room // step + 1 if room >= 0 else 0
    if count is None:
        count = fit
    if not 0 <= count <= fit:
        raise PoolUsageError(
            f"{count} items of {of.itemsize} bytes, {step} bytes apart, from offset {offset} on: "
            f"{len(data)} bytes hold {fit}"
        )
    array: np.ndarray[Any, Any] = numpy_.ndarray(
        (count,), of, buffer=data, offset=offset if count else 0, strides=(step,)
    )
    return array
