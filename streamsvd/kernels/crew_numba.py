"""The atomic words of ``kernels.crew``, imported at their first use."""

from __future__ import annotations

import platform
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_X86, _ARM = ("llvm.x86.sse2.pause", []), ("llvm.aarch64.hint", [ir.Constant(_I32, 1)])
_PAUSE = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(platform.machine().lower())


def _word(context: Any, builder: Any, kind: Any, value: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, value).data, [index])


def _add(typingctx, words, index, more):
    """Add to a word at once for all threads, and return what it was."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _word(context, builder, signature.args[0], *args[:2]), args[2], "acq_rel")

    return types.int64(words, types.int64, types.int64), codegen


def _read(typingctx, words, index):
    """Return a word as other threads last wrote it."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_word(context, builder, signature.args[0], *args), "acquire", 8)

    return types.int64(words, types.int64), codegen


def _pause(typingctx):
    """Let the core rest for some tens of cycles."""

    def codegen(context, builder, signature, args):
        if _PAUSE is not None:
            name, args = _PAUSE
            kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in args])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)
        return context.get_dummy_value()

    return types.void(), codegen


add: Any = intrinsic(_add)
read: Any = intrinsic(_read)
pause: Any = intrinsic(_pause)


@numba.njit(cache=True, nogil=True)
def changes(words, index, seen, tries):
    """Wait until a word is no longer ``seen``, at most so many pauses; return whether it is not."""
    for _ in range(tries):
        if read(words, index) != seen:
            return True
        pause()
    return False


@numba.njit(cache=True, nogil=True)
def reaches(words, index, wanted, tries):
    """Wait until a word is at least ``wanted``, at most so many pauses; return whether it is."""
    for _ in range(tries):
        if read(words, index) >= wanted:
            return True
        pause()
    return False
