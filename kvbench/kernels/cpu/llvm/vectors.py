"""Pieces of LLVM code on vectors of 512 bits, for the intrinsics of the CPU kernels; LLVM fits them to the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

LANES = 16
"""32-bit lanes of a vector."""

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
WORDS = ir.VectorType(I32, LANES)
SHORTS = ir.VectorType(I16, 2 * LANES)
BYTES = ir.VectorType(I8, 4 * LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)


def emitted(function: Callable[..., Any]) -> Any:
    """An intrinsic: a function that numba calls while compiling, to emit LLVM code in its place."""
    return intrinsic(function)


def compiled_for(*features: str) -> bool:
    """Whether kernels may use these instructions: those of this processor, or what NUMBA_CPU_FEATURES says."""
    settings: Any = config
    known = settings.CPU_FEATURES
    named = (codegen.get_host_cpu_features() if known is None else known).split(",")
    return all(f"+{feature}" in named for feature in features)


def has_vnni() -> bool:
    """Whether 64 bytes are multiplied and added in one instruction."""
    return compiled_for("avx512vnni", "avx512vl")


def has_avx2() -> bool:
    """Whether there are instructions on the bytes of 256 bits."""
    return compiled_for("avx2")


def has_wide_bytes() -> bool:
    """Whether there are instructions on the bytes of 512 bits."""
    return compiled_for("avx512bw")


def has_byte_permute() -> bool:
    """Whether 64 bytes are looked up in a table of 64 or 128 in one instruction."""
    return compiled_for("avx512vbmi")


def called(b: ir.IRBuilder, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """LLVM's intrinsic function ``name`` of ``operands``."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), operands)


def wide_or_halves(b: ir.IRBuilder, wide: str, narrow: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """The intrinsic function ``wide`` of 512 bits, or where there is none ``narrow`` on either half of ``operands``."""
    if has_wide_bytes():
        return called(b, wide, result, *operands)
    kind = ir.VectorType(result.element, result.count // 2)
    first, second = (called(b, narrow, kind, *(half(b, operand, part) for operand in operands)) for part in range(2))
    return shuffle(b, first, second, range(result.count))


def half(b: ir.IRBuilder, value: ir.Value, part: int) -> ir.Value:
    """The first or the second half of a vector."""
    count = value.type.count // 2
    return shuffle(b, value, value, range(count * part, count * (part + 1)))


def load(b: ir.IRBuilder, base: ir.Value, offset: ir.Value, kind: ir.Type = WORDS, align: int = 4) -> ir.Value:
    """The vector at ``base + offset``, aligned to ``align`` bytes."""
    value = b.load(b.inttoptr(b.add(base, offset), kind.as_pointer()))
    value.align = align
    return value


def store(b: ir.IRBuilder, value: ir.Value, base: ir.Value, offset: int) -> None:
    """Write ``value`` to ``base + offset``."""
    done = b.store(value, b.inttoptr(b.add(base, I64(offset)), value.type.as_pointer()))
    done.align = 4


def shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: Sequence[int]) -> ir.Value:
    """Lanes of ``x`` and ``y``, counted through, in ``order``."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def loop(
    b: ir.IRBuilder, count: ir.Value, carried: list[ir.Value], body: Callable[..., list[ir.Value]]
) -> list[ir.Value]:
    """Emit ``for i in range(count)`` with values carried in registers; ``body(b, i, carried)`` returns the new ones."""
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    b.cbranch(b.icmp_signed(">", count, I64(0)), loop, after)
    b.position_at_end(loop)
    index = b.phi(I64)
    phis = [b.phi(value.type) for value in carried]
    results = body(b, index, phis)
    following = b.add(index, I64(1))
    end = b.block
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    for phi, start, new in zip([index, *phis], [I64(0), *carried], [following, *results], strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(new, end)
    b.position_at_end(after)
    final = []
    for start, new in zip(carried, results, strict=True):
        phi = b.phi(start.type)
        phi.add_incoming(start, before)
        phi.add_incoming(new, end)
        final.append(phi)
    return final


def choose(
    b: ir.IRBuilder,
    values: Sequence[ir.Value],
    choices: Sequence[Sequence[int]],
    body: Callable[..., None],
    taken: tuple[int, ...] = (),
) -> None:
    """Emit ``body(b, …)`` for every combination of ``choices``, and a jump to that which ``values`` are at run time."""
    if len(taken) == len(values):
        body(b, *taken)
        return
    value = values[len(taken)]
    for choice in choices[len(taken)]:
        with b.if_then(b.icmp_signed("==", value, ir.Constant(value.type, choice))):
            choose(b, values, choices, body, (*taken, choice))


def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, total: ir.Value) -> ir.Value:
    """x · y + total, of floats in all lanes."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), [x, y, total])


def every(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """An integer in all lanes, as 32 bits."""
    value = b.trunc(value, I32) if value.type != I32 else value
    word = b.insert_element(ir.Constant(WORDS, ir.Undefined), value, I32(0))
    return shuffle(b, word, word, [0] * LANES)


def constants(kind: ir.VectorType, value: int) -> ir.Constant:
    """An integer in all lanes."""
    return ir.Constant(kind, [value] * kind.count)


def zero() -> ir.Constant:
    """16 words of zero."""
    return ir.Constant(WORDS, [0] * LANES)


def lanes_left(b: ir.IRBuilder, count: ir.Value, done: ir.Value, lanes: int) -> ir.Value:
    """Which of ``lanes`` lie before ``count`` when ``done`` are behind."""
    kind = ir.VectorType(I32, lanes)
    left = b.insert_element(ir.Constant(kind, ir.Undefined), b.trunc(b.sub(count, done), I32), I32(0))
    left = b.shuffle_vector(left, left, ir.Constant(kind, [0] * lanes))
    return b.icmp_signed("<", ir.Constant(kind, list(range(lanes))), left)


def masked(b: ir.IRBuilder, name: str, kind: ir.VectorType) -> ir.Function:
    """``llvm.masked.load`` or ``llvm.masked.store`` of ``kind``."""
    bits = ir.VectorType(ir.IntType(1), kind.count)
    place = kind.as_pointer()
    signature = (
        ir.FunctionType(kind, [place, I32, bits, kind])
        if name == "load"
        else ir.FunctionType(ir.VoidType(), [kind, place, I32, bits])
    )
    return cgutils.get_or_insert_function(
        b.module, signature, f"llvm.masked.{name}.v{kind.count}i{kind.element.width}.p0"
    )


def splat(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A float in all lanes."""
    lanes = b.insert_element(ir.Constant(FLOATS, ir.Undefined), value, I32(0))
    return shuffle(b, lanes, lanes, [0] * LANES)


def emit_prefetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Prefetch the cache line at ``address``, which need not be valid, into the second level.

    The first level has room for two dozen requests at a time (Zen 4); with more, everything waits.
    """
    place, second = I8.as_pointer(), I32(2)
    kind = ir.FunctionType(ir.VoidType(), [place, I32, I32, I32])
    fetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(fetch, [b.inttoptr(address, place), I32(0), second, I32(1)])


@emitted
def prefetch(tx, address):  # type: ignore[no-untyped-def]
    """Prefetch the cache line at ``address``, which need not be valid."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        emit_prefetch(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@emitted
def half_to_float(tx, bits):  # type: ignore[no-untyped-def]
    """The fp16 number with these 16 ``bits``, as fp32."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.fpext(b.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@emitted
def as_float(tx, bits):  # type: ignore[no-untyped-def]
    """The fp32 number with these 32 ``bits``."""

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), emit


@emitted
def claim(tx, address, count):  # type: ignore[no-untyped-def]
    """Add ``count`` to the 64-bit number at ``address``, among threads; the number before.

    Whoever sees a number sees all that was written before it was added.
    """

    def emit(context, b, signature, args):  # type: ignore[no-untyped-def]
        return b.atomic_rmw("add", b.inttoptr(args[0], I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit
