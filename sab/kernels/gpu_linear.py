"""Triton kernels of the product with a packed weight, read straight from the stored tensors (`layout.py`).

A *unit* is UNIT columns of one block, a power of two that divides the block size k; a *cell* is four columns.
Two kernels, both with float32 sums in a fixed order, so that a call repeats bit for bit. Where there are few tokens,
SPLITS programs share the columns, and the one that arrives last adds up what they left in `partial`; `counters`, which
tell the last one, are zero before and after.


  decode   one token a program. The 16 sums ±x_a ±x_b ±x_c ±x_d of every cell are tabulated once for all rows of the
           program, and each row looks one up with four of its bits, so four weights cost one look-up per plane:
               a = Σ s x,  b = Σ s (-1)^g x   give   Σ_{g=0} s x = (a + b) / 2,   Σ_{g=1} s x = (a - b) / 2
           and row scales are multiplied once per block. With a column scale per group there are two tables. Levels of
           the integer formats are looked up plane by plane.
  matrix   tokens by rows. A tile of weights is dequantized to the type of x in registers, and multiplied on tensor
           cores (float32 inputs: in plain float32).

Salient columns count as zeros in the main loop of both. Their weights, with the second signs, follow in a loop of
their own over the columns that `tail` lists, where each weight looks for its own bits and scales.

Parameters shared by the kernels: n rows, m columns, `blocks` of K columns, codes as words of WORD bits; PLANES (GROUPS
of a binary weight, bits of an INTEGER one), SLOTS and RESIDUALS as in BinaryCodes, COLUMNS 0, 1 or 2 column scales,
SMALL for int8 row scales, MEANS, TAIL salient columns at a time (0: there are none).
"""

import triton
import triton.language as tl

from sab.kernels.gpu_tuning import tuned

MOST_SPLITS = 16
MOST_SPLIT_TOKENS = 32  # beyond that there are programs enough, and partial sums would take room

DECODE = [
    triton.Config({"ROWS": rows, "UNITS": units, "SPLITS": splits}, num_warps=warps)
    for rows, units, warps in ((32, 2, 2), (64, 2, 2), (64, 4, 4))
    for splits in (2, 4, 8, MOST_SPLITS)
] + [triton.Config({"ROWS": 32, "UNITS": 4, "SPLITS": 1}, num_warps=4)]
FEW = [
    triton.Config({"ROWS": 64, "TOKENS": tokens, "SPLITS": splits}, num_warps=4, num_stages=2)
    for tokens in (16, MOST_SPLIT_TOKENS)
    for splits in (1, 2, 4, 8)
]
MANY = [
    triton.Config({"ROWS": rows, "TOKENS": tokens, "SPLITS": 1}, num_warps=warps, num_stages=2)
    for rows, tokens, warps in ((64, 64, 4), (128, 64, 8), (64, 128, 8), (128, 128, 8))
]


@triton.jit
def _plane(codes, plane, unit, rows, n, blocks, units, K: tl.constexpr, UNIT: tl.constexpr, WORD: tl.constexpr,
           PLANES: tl.constexpr, UNITS: tl.constexpr):  # fmt: skip
    """Words [UNITS * UNIT / WORD, rows] of one bit plane, from unit `unit` on."""
    WORDS: tl.constexpr = UNIT // WORD
    UNITS_OF_BLOCK: tl.constexpr = K // UNIT
    WORDS_OF_PLANE: tl.constexpr = K // WORD
    word = tl.arange(0, UNITS * WORDS)
    here = unit + word // WORDS
    inside = (here // UNITS_OF_BLOCK) * (PLANES * WORDS_OF_PLANE) + plane * WORDS_OF_PLANE
    inside += (here % UNITS_OF_BLOCK) * WORDS + word % WORDS
    place = rows.to(tl.int64)[None, :] * (blocks * (PLANES * WORDS_OF_PLANE)) + inside[:, None]
    return tl.load(codes + place, mask=(here < units)[:, None] & (rows < n)[None, :], other=0).to(tl.int32)


@triton.jit
def _spread(words, COUNT: tl.constexpr, WIDTH: tl.constexpr, PER: tl.constexpr, ROWS: tl.constexpr):
    """The PER fields of WIDTH bits of each of COUNT words [COUNT, ROWS], int32 [COUNT * PER, ROWS]."""
    shift = tl.arange(0, PER) * WIDTH
    fields = (words[:, None, :] >> shift[None, :, None]) & ((1 << WIDTH) - 1)
    return tl.reshape(fields, (COUNT * PER, ROWS))


@triton.jit
def _scale(scales, step, slot, block, rows, inside, n, blocks, SMALL: tl.constexpr):
    """Row parameters of a slot for broadcastable `block` and `rows`, float32; 0 where not `inside`."""
    value = tl.load(scales + (slot * blocks + block) * n + rows, mask=inside, other=0).to(tl.float32)
    if SMALL:
        value *= tl.load(step + rows, mask=rows < n, other=0).to(tl.float32)
    return value


@triton.jit
def _ordinary(salient, column, m):
    """Which columns exist and are not salient."""
    byte = tl.load(salient + column // 8, mask=column < m, other=255).to(tl.int32)
    return ((byte >> (column % 8)) & 1) == 0


@triton.jit
def _zero(zeros, block, rows, inside, n, blocks, BITS: tl.constexpr):
    """Zeros of the integer formats from their bit planes, float32."""
    place = block * n + rows
    value = tl.zeros_like(place)
    for bit in tl.static_range(BITS):
        byte = tl.load(zeros + bit * ((blocks * n + 7) // 8) + place // 8, mask=inside, other=0).to(tl.int32)
        value += ((byte >> (place % 8)) & 1) << bit
    return value.to(tl.float32)


@triton.jit
def _table(x, scale, column, cell, m, salient, CELLS: tl.constexpr, SCALED: tl.constexpr, BINARY: tl.constexpr):
    """The 16 signed sums of each cell's four inputs [cells, 16], bit set = +, and the plain sum [cells], of `x` times
    `scale`; `column` is where the first cell begins, columns that are salient or not there count as 0."""
    total = tl.zeros_like(cell).to(tl.float32)
    corner = tl.arange(0, 4)
    table = tl.zeros_like(total)[:, None, None]
    for half in tl.static_range(2):
        signed = tl.zeros_like(corner).to(tl.float32)[None, :]
        for part in tl.static_range(2):
            at = column + 4 * cell + (2 * half + part)
            inside = at < m
            if BINARY:
                inside = _ordinary(salient, at, m)
            value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
            if SCALED:
                value *= tl.load(scale + at, mask=inside, other=0).to(tl.float32)
            total += value
            signed = signed + tl.where((corner >> part & 1)[None, :] == 1, value[:, None], -value[:, None])
        table = table + (signed[:, None, :] if half == 0 else signed[:, :, None])
    table = tl.reshape(table, (CELLS, 16))
    return table, total


@triton.jit
def _looked_up(table, words, UNITS: tl.constexpr, UNIT: tl.constexpr, WORD: tl.constexpr, ROWS: tl.constexpr):
    """Σ ±x over each unit [UNITS, ROWS] for the bits of `words`."""
    nibble = _spread(words, UNITS * (UNIT // WORD), 4, WORD // 4, ROWS)
    return tl.sum(tl.reshape(tl.gather(table, nibble, 1), (UNITS, UNIT // 4, ROWS)), 1)


@triton.jit
def _tail_weights(c, rows, tail, count, codes, second, salient_scale, second_scale, mean, step, column_scale,
                  second_column, n, m, blocks, K: tl.constexpr, WORD: tl.constexpr, PLANES: tl.constexpr,
                  RESIDUALS: tl.constexpr, SMALL: tl.constexpr, MEANS: tl.constexpr,
                  COLUMNS: tl.constexpr):  # fmt: skip
    """Columns [c] of the salient ones and their weights [c, rows], float32; 0 beyond the last."""
    here = c < count
    column = tl.load(tail + c, mask=here, other=0)
    inside = here[:, None] & (rows < n)[None, :]
    block, place = column // K, column % K
    words = block * (PLANES * (K // WORD)) + place // WORD
    address = rows.to(tl.int64)[None, :] * (blocks * (PLANES * (K // WORD))) + words[:, None]
    shift = (place % WORD)[:, None]
    first = (tl.load(codes + address, mask=inside, other=0).to(tl.int32) >> shift) & 1
    packed = second + rows.to(tl.int64)[None, :] * ((count + 7) // 8) + (c // 8)[:, None]
    again = (tl.load(packed, mask=inside, other=0).to(tl.int32) >> (c % 8)[:, None]) & 1
    block, across = block[:, None], rows[None, :]
    one = _scale(salient_scale, step, PLANES, block, across, inside, n, blocks, SMALL)
    two = _scale(second_scale, step, 0, block, across, inside, n, blocks, SMALL)
    centre = tl.zeros_like(one)
    if MEANS:
        centre = _scale(mean, step, PLANES, block, across, inside, n, blocks, False)
    if PLANES == 2:
        group = ((tl.load(codes + address + K // WORD, mask=inside, other=0).to(tl.int32) >> shift) & 1) == 1
        if RESIDUALS == 2:
            one = tl.where(group, _scale(salient_scale, step, 3, block, across, inside, n, blocks, SMALL), one)
            two = tl.where(group, _scale(second_scale, step, 1, block, across, inside, n, blocks, SMALL), two)
            if MEANS:
                centre = tl.where(group, _scale(mean, step, 3, block, across, inside, n, blocks, False), centre)
        else:  # there is no slot for an unsplit salient weight with the group bit
            one, centre = tl.where(group, 0.0, one), tl.where(group, 0.0, centre)
        if COLUMNS == 2:
            low = tl.load(column_scale + column, mask=here, other=0).to(tl.float32)
            high = tl.load(column_scale + m + column, mask=here, other=0).to(tl.float32)
            one *= tl.where(group, high[:, None], low[:, None])
            low = tl.load(second_column + c, mask=here, other=0).to(tl.float32)
            if RESIDUALS == 2:
                high = tl.load(second_column + count + c, mask=here, other=0).to(tl.float32)
                two *= tl.where(group, high[:, None], low[:, None])
            else:
                two *= low[:, None]
    value = tl.where(first == 1, one, -one) + tl.where(again == 1, two, -two)
    if COLUMNS == 1:
        value *= tl.load(column_scale + column, mask=here, other=0).to(tl.float32)[:, None]
    return column, value + centre


@triton.jit
def _add_product(total, values, weight, EMULATED: tl.constexpr):
    """`total` + `values` times `weight` in their type. The interpreter (EMULATED) knows no bfloat16 product: there the
    rounded values are multiplied as float32."""
    weight = weight.to(values.dtype)
    if EMULATED:
        values, weight = values.to(tl.float32), weight.to(tl.float32)
    return tl.dot(values, weight, total, input_precision="ieee")


@triton.jit
def _finish(total, partial, counter, place, mask, size, y, bias, rows, n, BIAS: tl.constexpr, SPLITS: tl.constexpr):
    """Stores `total` plus bias at `place`, once the sums of all splits are there; `size` entries to a split."""
    if SPLITS > 1:
        tl.store(partial + tl.program_id(2).to(tl.int64) * size + place, total, mask=mask)
        tl.debug_barrier()  # every thread's sums, before this program counts as arrived
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros_like(total)
            for split in range(SPLITS):  # not from the L1 cache, which knows nothing of the other programs
                total += tl.load(partial + split * size + place, mask=mask, other=0, cache_modifier=".cg")
            tl.store(counter, 0)
            if BIAS:
                total += tl.load(bias + rows, mask=rows < n, other=0).to(tl.float32)
            tl.store(y + place, total.to(y.dtype.element_ty), mask=mask)
    else:
        if BIAS:
            total += tl.load(bias + rows, mask=rows < n, other=0).to(tl.float32)
        tl.store(y + place, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _decode(x, y, bias, partial, counters, codes, row_scale, second_scale, mean, step, zero, column_scale,
            second_column, salient, tail, second, tokens, bucket, n, m, blocks, count, K: tl.constexpr,
            UNIT: tl.constexpr, WORD: tl.constexpr, PLANES: tl.constexpr, RESIDUALS: tl.constexpr, SMALL: tl.constexpr,
            MEANS: tl.constexpr, COLUMNS: tl.constexpr, INTEGER: tl.constexpr, BIAS: tl.constexpr, TAIL: tl.constexpr,
            EMULATED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """y [tokens, n] = x [tokens, m] Wᵀ + bias; a program takes ROWS rows of one token, UNITS units at a time.

    `bucket` is only the key under which the best configuration is remembered.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    x += token * m
    cell = tl.arange(0, UNITS * UNIT // 4)
    units = blocks * (K // UNIT)
    total = tl.zeros((UNITS, ROWS), tl.float32)
    share = (units + UNITS * SPLITS - 1) // (UNITS * SPLITS) * UNITS
    for first in range(split * share, tl.minimum(units, (split + 1) * share), UNITS):
        unit = first + tl.arange(0, UNITS)
        block = (unit // (K // UNIT))[:, None]
        inside = (unit < units)[:, None] & (rows < n)[None, :]
        across = rows[None, :]
        table, sums = _table(x, column_scale, first * UNIT, cell, m, salient, UNITS * UNIT // 4, COLUMNS > 0,
                             not INTEGER)  # fmt: skip
        one = _plane(codes, 0, first, rows, n, blocks, units, K, UNIT, WORD, PLANES, UNITS)
        scale = _scale(row_scale, step, 0, block, across, inside, n, blocks, SMALL)
        plain = tl.sum(tl.reshape(sums, (UNITS, UNIT // 4)), 1)[:, None]  # Σ x
        if INTEGER:
            part = _looked_up(table, one, UNITS, UNIT, WORD, ROWS) * 0.5
            for bit in tl.static_range(1, PLANES):
                more = _plane(codes, bit, first, rows, n, blocks, units, K, UNIT, WORD, PLANES, UNITS)
                part += _looked_up(table, more, UNITS, UNIT, WORD, ROWS) * (0.5 * (1 << bit))
            middle = 0.5 * ((1 << PLANES) - 1)
            total += scale * (part + (middle - _zero(zero, block, across, inside, n, blocks, PLANES)) * plain)
        elif PLANES == 1:
            total += scale * _looked_up(table, one, UNITS, UNIT, WORD, ROWS)
            if MEANS:
                total += plain * _scale(mean, step, 0, block, across, inside, n, blocks, False)
        else:
            group = _plane(codes, 1, first, rows, n, blocks, units, K, UNIT, WORD, PLANES, UNITS)
            above = _scale(row_scale, step, 1, block, across, inside, n, blocks, SMALL)
            low = _looked_up(table, one, UNITS, UNIT, WORD, ROWS)
            low += _looked_up(table, one ^ group, UNITS, UNIT, WORD, ROWS)
            if COLUMNS == 2:
                table, _sums = _table(x, column_scale + m, first * UNIT, cell, m, salient, UNITS * UNIT // 4, True,
                                      True)  # fmt: skip
            high = _looked_up(table, one, UNITS, UNIT, WORD, ROWS)
            high -= _looked_up(table, one ^ group, UNITS, UNIT, WORD, ROWS)
            total += 0.5 * (scale * low + above * high)
            if MEANS:
                upper = _looked_up(table, group, UNITS, UNIT, WORD, ROWS)
                low = (plain - upper) * _scale(mean, step, 0, block, across, inside, n, blocks, False)
                total += 0.5 * (low + (plain + upper) * _scale(mean, step, 1, block, across, inside, n, blocks, False))
    result = tl.sum(total, 0)
    if TAIL:
        for start in range(split * TAIL, count, SPLITS * TAIL):
            c = start + tl.arange(0, TAIL)
            column, weight = _tail_weights(c, rows, tail, count, codes, second, row_scale, second_scale, mean, step,
                                           column_scale, second_column, n, m, blocks, K, WORD, PLANES, RESIDUALS,
                                           SMALL, MEANS, COLUMNS)  # fmt: skip
            result += tl.sum(weight * tl.load(x + column, mask=c < count, other=0).to(tl.float32)[:, None], 0)
    counter = counters + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    _finish(result, partial, counter, token * n + rows, rows < n, tokens * n, y, bias, rows, n, BIAS, SPLITS)


@triton.jit
def _matrix(x, y, bias, partial, counters, codes, row_scale, second_scale, mean, step, zero, column_scale,
            second_column, salient, tail, second, tokens, bucket, n, m, blocks, count, K: tl.constexpr,
            UNIT: tl.constexpr, WORD: tl.constexpr, PLANES: tl.constexpr, RESIDUALS: tl.constexpr, SMALL: tl.constexpr,
            MEANS: tl.constexpr, COLUMNS: tl.constexpr, INTEGER: tl.constexpr, BIAS: tl.constexpr, TAIL: tl.constexpr,
            EMULATED: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr):  # fmt: skip
    """As `_decode`, for many tokens: a program takes ROWS rows and TOKENS tokens, a unit at a time."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inputs = x + token.to(tl.int64)[:, None] * m
    here = (token < tokens)[:, None]
    across = rows[None, :]
    inside = across < n
    units = blocks * (K // UNIT)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    share = (units + SPLITS - 1) // SPLITS
    split = tl.program_id(2)
    for unit in range(split * share, tl.minimum(units, (split + 1) * share)):
        block = unit // (K // UNIT)
        column = unit * UNIT + tl.arange(0, UNIT)
        chosen = column < m
        one = _plane(codes, 0, unit, rows, n, blocks, units, K, UNIT, WORD, PLANES, 1)
        scale = _scale(row_scale, step, 0, block, across, inside, n, blocks, SMALL)  # [1, ROWS]
        if INTEGER:
            level = _spread(one, UNIT // WORD, 1, WORD, ROWS)
            for bit in tl.static_range(1, PLANES):
                more = _plane(codes, bit, unit, rows, n, blocks, units, K, UNIT, WORD, PLANES, 1)
                level += _spread(more, UNIT // WORD, 1, WORD, ROWS) << bit
            weight = scale * (level.to(tl.float32) - _zero(zero, block, across, inside, n, blocks, PLANES))
        else:
            chosen = _ordinary(salient, column, m)
            sign = _spread(one, UNIT // WORD, 1, WORD, ROWS) == 1
            weight = scale
            if COLUMNS > 0:
                low = tl.load(column_scale + column, mask=chosen, other=0).to(tl.float32)
                weight = weight * low[:, None]
            if PLANES == 2:
                words = _plane(codes, 1, unit, rows, n, blocks, units, K, UNIT, WORD, PLANES, 1)
                group = _spread(words, UNIT // WORD, 1, WORD, ROWS) == 1
                above = _scale(row_scale, step, 1, block, across, inside, n, blocks, SMALL)
                if COLUMNS == 2:
                    above = above * tl.load(column_scale + m + column, mask=chosen, other=0).to(tl.float32)[:, None]
                elif COLUMNS == 1:
                    above = above * low[:, None]
                weight = tl.where(group, above, weight)
            weight = tl.where(sign, weight, -weight)
            if MEANS:
                centre = _scale(mean, step, 0, block, across, inside, n, blocks, False)
                if PLANES == 2:
                    above = _scale(mean, step, 1, block, across, inside, n, blocks, False)
                    centre = tl.where(group, above, centre)
                weight += centre
        if COLUMNS == 0:  # what float16 does not hold must not meet the zeros of the columns left out
            weight = tl.where(chosen[:, None], weight, 0.0)
        values = tl.load(inputs + column[None, :], mask=here & chosen[None, :], other=0)
        total = _add_product(total, values, weight, EMULATED)
    if TAIL:
        for start in range(split * TAIL, count, SPLITS * TAIL):
            c = start + tl.arange(0, TAIL)
            column, weight = _tail_weights(c, rows, tail, count, codes, second, row_scale, second_scale, mean, step,
                                           column_scale, second_column, n, m, blocks, K, WORD, PLANES, RESIDUALS,
                                           SMALL, MEANS, COLUMNS)  # fmt: skip
            values = tl.load(inputs + column[None, :], mask=here & (c < count)[None, :], other=0)
            total = _add_product(total, values, weight, EMULATED)
    counter = counters + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    place = token.to(tl.int64)[:, None] * n + across
    _finish(total, partial, counter, place, here & inside, tokens * n, y, bias, across, n, BIAS, SPLITS)


KEY = ["n", "m", "bucket", "PLANES", "COLUMNS", "MEANS", "RESIDUALS"]
decode = tuned(DECODE, KEY)(_decode)
few = tuned(FEW, KEY)(_matrix)
many = tuned(MANY, KEY)(_matrix)
