"""The Numba loop of ``kernels.spmm``, imported at its first use.

A loop over a row's entries with one vector accumulator that stays in registers is written as LLVM vector code. Plain Numba does not reach
it: scalar accumulators are not packed into vectors, and a short loop of constant length is unrolled before it can be vectorised.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from streamsvd.kernels.crew_numba import add

AHEAD = 16
BLOCK = 256  # rows in which every panel is done before the next rows, so that their entries stay in the first cache
WIDTHS = (1, 4, 8, 16, 32, 64)
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _row_sum(width: int) -> Any:
    """Return the intrinsic that writes ``out[row, c : c + width] = factor * sum_p data[p] X[indices[p], c : c + width]``.

    The sum runs over start <= p < stop; ``last`` is the last valid p, up to which is prefetched.
    """

    @intrinsic
    def row_sum(typingctx, data, indices, X, out, row, start, stop, last, c, factor):  # pyright: ignore[reportUnusedParameter]
        signature = types.void(data, indices, X, out, *([types.int64] * 5), out.dtype)

        def codegen(context, builder, signature, args):
            _emit(context, builder, signature.args, args, width)
            return context.get_dummy_value()

        return signature, codegen

    return row_sum


def _emit(context: Any, builder: Any, kinds: Any, args: Any, width: int) -> None:
    data, indices, X, out = (
        context.make_array(kind)(context, builder, value) for kind, value in zip(kinds[:4], args[:4], strict=True)
    )
    row, start, stop, last, c, factor = args[4:]
    sums = ir.VectorType(context.get_value_type(kinds[3].dtype), width)
    total = cgutils.alloca_once_value(builder, ir.Constant(sums, None))
    base = builder.gep(X.data, [c])
    stride, step = _row_stride(builder, X, kinds[2]), _row_stride(builder, out, kinds[3])
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(_I64, 1), intp=_I64) as (p, _):
        ahead = builder.add(p, ir.Constant(_I64, AHEAD))
        ahead = builder.select(builder.icmp_signed("<", ahead, last), ahead, last)
        _prefetch(builder, builder.gep(base, [builder.mul(_index(builder, indices, ahead), stride)]), width, kinds[2])
        x = _vector(builder, builder.gep(base, [builder.mul(_index(builder, indices, p), stride)]), width)
        x = _extend(builder, builder.load(x, align=kinds[2].dtype.bitwidth // 8), sums)
        value = _extend(builder, builder.load(builder.gep(data.data, [p])), sums.element)
        builder.store(_fma(builder, _splat(builder, value, sums), x, builder.load(total)), total)
    result = builder.fmul(builder.load(total), _splat(builder, factor, sums))
    target = _vector(builder, builder.gep(out.data, [builder.add(builder.mul(row, step), c)]), width)
    builder.store(result, target, align=kinds[3].dtype.bitwidth // 8)


def _vector(builder: Any, pointer: Any, width: int) -> Any:
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, width).as_pointer())


def _row_stride(builder: Any, array: Any, kind: Any) -> Any:
    """Return the distance of two rows in items."""
    stride = builder.extract_value(array.strides, 0)
    return builder.sdiv(stride, ir.Constant(_I64, kind.dtype.bitwidth // 8))


def _index(builder: Any, indices: Any, p: Any) -> Any:
    j = builder.load(builder.gep(indices.data, [p]))
    return j if j.type == _I64 else builder.sext(j, _I64)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, vector.count), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _extend(builder: Any, value: Any, wanted: Any) -> Any:
    return value if value.type == wanted else builder.fpext(value, wanted)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.fmuladd.{_suffix(a.type)}"
    return builder.call(_declare(builder, name, a.type, [a.type] * 3), [a, b, c])


def _prefetch(builder: Any, pointer: Any, width: int, kind: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    pointer = builder.bitcast(pointer, byte)
    function = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, _I32, _I32, _I32])
    options = [ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)]
    for offset in range(0, width * kind.dtype.bitwidth // 8, 64):
        builder.call(function, [builder.gep(pointer, [ir.Constant(_I64, offset)]), *options])


def _suffix(vector: Any) -> str:
    return f"v{vector.count}f{64 if isinstance(vector.element, ir.DoubleType) else 32}"


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


_sum1, _sum4, _sum8, _sum16, _sum32, _sum64 = (_row_sum(width) for width in WIDTHS)


@numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)
def rows(indptr, indices, data, scale, X, out, panels, first, stop):
    """Write the rows first .. stop of ``diag(scale) A X``; an empty ``scale`` stands for ones, ``panels`` (m, 2) lists (start, width)."""
    last, one = indices.size - 1, out.dtype.type(1)
    for r in range(first, stop, BLOCK):
        end = min(r + BLOCK, stop)
        for k in range(panels.shape[0]):
            c, width = panels[k, 0], panels[k, 1]
            if width == 64:
                for i in range(r, end):
                    factor = out.dtype.type(scale[i]) if scale.size else one
                    _sum64(data, indices, X, out, i, indptr[i], indptr[i + 1], last, c, factor)
            elif width == 32:
                for i in range(r, end):
                    factor = out.dtype.type(scale[i]) if scale.size else one
                    _sum32(data, indices, X, out, i, indptr[i], indptr[i + 1], last, c, factor)
            elif width == 16:
                for i in range(r, end):
                    factor = out.dtype.type(scale[i]) if scale.size else one
                    _sum16(data, indices, X, out, i, indptr[i], indptr[i + 1], last, c, factor)
            elif width == 8:
                for i in range(r, end):
                    factor = out.dtype.type(scale[i]) if scale.size else one
                    _sum8(data, indices, X, out, i, indptr[i], indptr[i + 1], last, c, factor)
            elif width == 4:
                for i in range(r, end):
                    factor = out.dtype.type(scale[i]) if scale.size else one
                    _sum4(data, indices, X, out, i, indptr[i], indptr[i + 1], last, c, factor)
            else:
                for i in range(r, end):
                    factor = out.dtype.type(scale[i]) if scale.size else one
                    _sum1(data, indices, X, out, i, indptr[i], indptr[i + 1], last, c, factor)


@numba.njit(cache=True, nogil=True)
def cuts(indptr, parts):
    """Return parts + 1 rows that share entries and rows evenly: a row costs about as much as two entries."""
    rows = indptr.size - 1
    out = np.empty(parts + 1, np.int64)
    out[0], out[parts] = 0, rows
    for k in range(1, parts):
        wanted = (indptr[rows] + 2 * rows) * (k / parts)
        low, high = 0, rows
        while low < high:
            middle = (low + high) // 2
            if indptr[middle] + 2 * middle < wanted:
                low = middle + 1
            else:
                high = middle
        out[k] = low
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)
def shared_rows(indptr, indices, data, scale, X, out, panels, cuts, board, ticket):
    """Do the pieces cuts[k] .. cuts[k + 1] that no other thread has taken (see ``kernels.crew``)."""
    if ticket.size:
        add(ticket, 0, 1)
    while True:
        k = add(board, 0, 1)
        if k >= cuts.size - 1:
            break
        rows(indptr, indices, data, scale, X, out, panels, cuts[k], cuts[k + 1])
        add(board, 1, 1)
