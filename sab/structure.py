"""Which columns of a block are salient, and where its magnitudes are split (METHOD 5).

The published search works on the saliency `s = w² / U_jj²` with BiLLM's closed-form fits, whatever method
fits the weights afterwards:
  1. columns ranked by `sum_i s_ij`; the number c of salient ones is the candidate 1..max_salient with the
     lowest squared error of an order-2 fit of s on both sides;
  2. the break-point of the other columns is the best of 81 percentiles (0.10 ... 0.90) of s, salient
     columns counted as zeros, by order-1 fits on both sides;
  3. with the column-group bitmap the salient columns are split the same way, by order-2 fits.

No fit is carried out. For a set of N values with mean mu, BiLLM's fit of order 1 has alpha = mean|x - mu|
and squared error `sum x² - N (mu² + alpha²)`; order 2 takes `N (mu_2² + alpha_2²)` off once more. So a
candidate is judged by its *explained energy*, and with rows sorted once every alpha is a difference of
prefix sums: `N alpha = 2 sum_{x > mu} (x - mu)`. Cost: a sort, and per candidate a few look-ups per row
(for the salient count one prefix table per candidate, n c² additions).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sab.stack import Columns, Stack

PERCENTILES = (0.10, 0.90, 81)
TABLE_CELLS = 1 << 18  # size of a chunk of prefix tables: small enough for a CPU's cache
TABLE_CELLS_CUDA = 1 << 26
BREAK_CELLS = 1 << 15  # rows times break-points of a chunk, as small for the same reason
NONE = -1.0  # stands for a column that is filled up: below every saliency

Below = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Structure:
    """Of a stack of linears: `ordinary` and `salient` columns, `group` bool [n, k]: above the break-point (False on
    unsplit salient columns)."""

    ordinary: Columns
    salient: Columns
    group: Tensor


def search_published(
    weight: Tensor, inverse_factor: Tensor, max_salient: int, split_salient: bool, stack: Stack | None = None
) -> Structure:
    """Structure of a block `weight` [n, k] of one linear, or of each of a `stack`, with `inverse_factor` U_bb [k, k].

    At least one column stays ordinary, so a block of one column has no salient one. The host is asked once: how many
    columns of each linear are salient.
    """
    stack = stack or Stack((len(weight),))
    width = weight.shape[1]
    saliency = saliency_of(weight, inverse_factor, stack)
    ranked = stack.sums(saliency).argsort(dim=1, descending=True, stable=True)
    limit = min(max_salient, width - 1)
    salient = torch.zeros(ranked.shape, dtype=torch.bool, device=weight.device)
    counts = [0] * len(stack.rows)
    if limit > 0:
        best = best_salient_count(saliency, ranked[:, :limit], stack)
        salient.scatter_(1, ranked, torch.arange(width, device=weight.device) < best[:, None])
        counts = best.tolist()
    ordinary = Columns.of(stack, ~salient, [width - count for count in counts])
    chosen = Columns.of(stack, salient, counts)
    group = torch.zeros_like(saliency, dtype=torch.bool)
    _above(group, ordinary, saliency, 1, [rows * count for rows, count in zip(stack.rows, counts, strict=True)])
    if split_salient and limit > 0:
        _above(group, chosen, saliency, 2, [0] * len(counts))
    return Structure(ordinary, chosen, group)


def _above(group: Tensor, columns: Columns, saliency: Tensor, order: int, zeros: Sequence[int]) -> None:
    """Mark in `group` [n, k] what lies above the best break-point of its linear's `columns`."""
    values = columns.take(saliency, NONE)
    above = values > columns.stack.spread(best_break_point(values, order, columns, zeros)[:, None])
    columns.put(group, above)


def saliency_of(weight: Tensor, inverse_factor: Tensor, stack: Stack | None = None) -> Tensor:
    """`w² / U_jj²` [n, k], scaled to a largest value of 1 in each linear (the search does not depend on the scale)."""
    root = weight.abs() / inverse_factor.diagonal()
    stack = stack or Stack((len(weight),))
    largest = torch.stack([part.max() for part in stack.split(root)])[:, None]
    return (root / stack.spread(torch.where(largest > 0, largest, 1.0))).square()


def best_salient_count(saliency: Tensor, leading: Tensor, stack: Stack) -> Tensor:
    """How many of its `leading` columns [s, c] each linear of `saliency` [n, k] is to call salient: `[s]`, 1..c."""
    limit = leading.shape[1]
    cells = TABLE_CELLS_CUDA if saliency.is_cuda else TABLE_CELLS
    rows = max(1, cells // limit**2)
    each = stack.spread(leading).expand(len(saliency), -1)
    parts = zip(saliency.split(rows), each.split(rows), strict=True)
    energy = torch.cat([_energy_per_count(part, columns) for part, columns in parts])
    return stack.sums(energy).argmax(1) + 1


def _energy_per_count(saliency: Tensor, leading: Tensor) -> Tensor:
    """Energy explained by order-2 fits of the first 1, 2, ... c of a row's `leading` columns [n, c] and of the rest of
    its `saliency` [n, k]: `[n, c]` float64."""
    width, limit = saliency.shape[1], leading.shape[1]
    sizes = torch.arange(1, limit + 1, device=saliency.device)  # [c] candidates
    every = _sorted(saliency)
    whole = torch.nn.functional.pad(every, (1, 0)).double().cumsum(-1)  # [n, k+1]
    values, place = saliency.gather(1, leading).sort(dim=1)  # of the columns that are salient for some candidate
    # Number and sum in one table: values are at most 1, so a unit above their sum keeps the two apart
    # (float64: 40 bits remain for the sum). A sentinel in front, a member of no candidate, makes
    # table[..., p] stand for the p smallest values.
    unit = float(2 * width)
    padded = torch.nn.functional.pad(values, (1, 0)).double() + unit
    places = torch.nn.functional.pad(place, (1, 0), value=width).short()
    member = places[:, None, :] < sizes.short()[:, None]  # [n, c, c+1]
    table = torch.where(member, padded[:, None, :], 0.0).cumsum(-1)

    def apart(entry: Tensor) -> tuple[Tensor, Tensor]:
        number = (entry / unit).floor()
        return entry - number * unit, number

    def below_inside(bound: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(values, bound.to(values.dtype))
        return apart(table.gather(-1, at[..., None])[..., 0])

    def below_outside(bound: Tensor) -> tuple[Tensor, Tensor]:
        inside, members = below_inside(bound)
        at = torch.searchsorted(every, bound.to(every.dtype))
        return whole.gather(-1, at) - inside, at.double() - members

    inside, members = apart(table[..., -1])  # [n, c]
    energy = explained_energy(members, inside, below_inside, order=2)
    energy += explained_energy(width - members, whole[:, -1:] - inside, below_outside, order=2)
    return energy


def best_break_point(saliency: Tensor, order: int, columns: Columns, zeros: Sequence[int]) -> Tensor:
    """The scalar that splits each linear's `columns` best, [s], for their `saliency` [n, w], NONE where filled up;
    `zeros` more zeros a linear count in the percentiles only."""
    stack = columns.stack
    parts = zip(stack.split(saliency), columns.widths, zeros, strict=True)
    points = torch.stack([_percentiles(part, len(part) * width, more) for part, width, more in parts])  # [s, p]
    values = _sorted(saliency).double().clamp_min_(0.0)  # what is filled up stands in front and adds nothing
    ends = zip(stack.rows, columns.widths, strict=True)  # front [n, 1]: how much of a row is filled up
    front = torch.cat([values.new_full((rows, 1), saliency.shape[1] - width) for rows, width in ends])
    each = stack.spread(points.double()).expand(len(values), -1)
    rows = max(1, (TABLE_CELLS_CUDA if saliency.is_cuda else BREAK_CELLS) // points.shape[1])
    chunks = zip(values.split(rows), front.split(rows), each.split(rows), strict=True)
    energy = torch.cat([_energy_per_point(*chunk, order) for chunk in chunks])
    return points.gather(1, stack.sums(energy).argmax(1, keepdim=True))[:, 0]


def _energy_per_point(values: Tensor, front: Tensor, points: Tensor, order: int) -> Tensor:
    """Energy explained by fits of this order below and above each of the `points` [n, p], for rows of sorted `values`
    [n, w] with `front` [n, 1] that do not count: `[n, p]` float64."""
    prefix = torch.nn.functional.pad(values, (1, 0)).cumsum(-1)
    cut = torch.searchsorted(values, points.contiguous(), right=True)  # [n, p]
    at_cut, whole = prefix.gather(-1, cut), prefix[:, -1:]
    number = cut.double()  # a float where it is reckoned with: mixed with integers, arithmetic is not vectorised

    def below_low(bound: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(values, bound).minimum(cut)
        return prefix.gather(-1, at), at.double().sub_(front).clamp_min_(0.0)

    def below_high(bound: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(values, bound).maximum(cut)
        return prefix.gather(-1, at) - at_cut, at.double().sub_(number)

    energy = explained_energy(number - front, at_cut, below_low, order)
    energy += explained_energy(values.shape[1] - number, whole - at_cut, below_high, order)
    return energy


def explained_energy(size: Tensor, total: Tensor, below: Below, order: int) -> Tensor:
    """`N (mu² + alpha²)`, and of the residual again at order 2: what BiLLM's fit takes off `sum x²`.

    `size`, `total` float64 [n, c]: how many values each set holds and their sum; `below(t)`: sum and number of the
    set's values under t. An empty set explains nothing.
    """
    whole = size.clamp_min(1)
    mean = total / whole
    under, under_count = below(mean)
    upper_count = size - under_count
    # half of N alpha, the sum of what the upper values are above the mean
    upper = torch.addcmul(total - under, upper_count, mean, value=-1.0).clamp_min_(0.0)
    energy = total.square().addcmul_(upper, upper, value=4.0)  # times N, as all terms
    if order == 2:
        # residual x - mu -+ alpha: its mean, then the two bounds above which its sign is +1
        scale = upper.mul_(2.0).div_(whole)
        shift = torch.sub(size, upper_count, alpha=2.0).mul_(scale)
        energy.addcmul_(shift, shift)
        middle = mean.add_(shift.div_(whole))
        low, high = middle - scale, middle.add_(scale)
        under_low, under_low_count = below(low)
        under_high, under_high_count = below(high)
        above = torch.addcmul(under - under_low, under_count - under_low_count, low, value=-1.0)
        above += torch.addcmul(total - under_high, size - under_high_count, high, value=-1.0)
        above.clamp_min_(0.0)
        energy.addcmul_(above, above, value=4.0)
    return energy.div_(whole)


def _percentiles(saliency: Tensor, number: int, zeros: int) -> Tensor:
    """Interpolated percentiles `[p]` of the `number` largest values with `zeros` zeros in front.

    Not torch.quantile, which refuses more than 2^24 values.
    """
    values = _sorted(saliency.reshape(-1))[saliency.numel() - number :]
    low, high, points = PERCENTILES
    where = torch.linspace(low, high, points, dtype=torch.float64) * (number + zeros - 1)
    where = where.to(values.device)
    left = where.floor().long()
    share = (where - left).to(values.dtype)

    def at(index: Tensor) -> Tensor:
        found = values[(index - zeros).clamp(0, number - 1)]
        return torch.where(index < zeros, 0.0, found)

    return torch.lerp(at(left), at((left + 1).clamp_max(number + zeros - 1)), share)


def _sorted(values: Tensor) -> Tensor:
    """Ascending along the last dimension. NumPy's sort is vectorised: 20 times faster than torch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values
