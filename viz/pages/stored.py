"""What a binarized weight is made of in storage: its bits, and the numbers they are multiplied with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sab.binarizers import LinearCodes
    from sab.binarizers.codes import BinaryCodes

Term = tuple[str, str | float]


def stored_form(codes: LinearCodes, row: int, column: int) -> list[Term]:
    """Names and values of what is stored for one weight; the stored weight follows from them by the formula of the
    codes' class. Bits are texts, scales and means numbers."""
    from sab.binarizers.codes import IntegerCodes, KeptCodes

    if isinstance(codes, IntegerCodes):
        block = column // codes.block_size
        return [
            ("code", f"{int(codes.levels[row, column])} of 0–{2**codes.bits - 1}"),
            ("scale", float(codes.scale[block, row])),
            ("zero at", str(int(codes.zero[block, row]))),
        ]
    if isinstance(codes, KeptCodes):
        if bool(codes.kept[row, column]):
            return [
                ("kept", f"8-bit value {int(codes.levels[row, column])}"),
                ("scale", float(codes.kept_scale[row])),
                ("zero at", str(int(codes.kept_zero[row]))),
            ]
        return [
            ("sign bit", _sign(bool(codes.first[row, column]))),
            ("scale", float(codes.row_scale[row])),
            ("row mean", float(codes.row_mean[row])),
        ]
    return _binary_form(codes, row, column)


def _binary_form(codes: BinaryCodes, row: int, column: int) -> list[Term]:
    block, slot = column // codes.block_size, int(codes.slots()[row, column])
    upper = bool(codes.group[row, column]) if codes.group is not None else False
    mean = 0.0 if codes.row_mean is None else float(codes.row_mean[slot, block, row])
    scale = float(codes.row_scales()[0][slot, block, row])
    if codes.column_scale is not None:
        scale *= float(codes.column_scale[int(upper) if len(codes.column_scale) == 2 else 0, column])
    positive = bool(codes.first[row, column])
    two = bool(codes.salient[column])
    terms: list[Term] = [("sign bits" if two else "sign bit", _sign(positive)), ("scale", scale)]
    if two:
        second = bool(codes.second[row, int(codes.salient[:column].sum())])
        terms[0] = ("sign bits", f"{_sign(positive)} {_sign(second)}")
        rest = float(codes.dense()[row, column]) - mean - (scale if positive else -scale)
        terms.append(("second scale", abs(rest)))
    if codes.group is not None:
        terms.append(("group", "large" if upper else "small"))
    if codes.row_mean is not None:
        terms.append(("row mean", mean))
    return terms


def _sign(positive: bool) -> str:
    return "+1" if positive else "−1"
