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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PERCENTILES = (0.10, 0.90, 81)
TABLE_CELLS = 1 << 18  # size of a chunk of prefix tables: small enough for a CPU's cache
TABLE_CELLS_CUDA = 1 << 26

Below = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Structure:
    """`salient` bool [k]; `group` bool [n, k]: above the break-point (False on unsplit salient columns)."""

    salient: Tensor
    group: Tensor


def search_published(weight: Tensor, inverse_factor: Tensor, max_salient: int, split_salient: bool) -> Structure:
    """Structure of a block `weight` [n, k], with `inverse_factor` U_bb [k, k].

    At least one column stays ordinary, so a block of one column has no salient one.
    """
    saliency = saliency_of(weight, inverse_factor)
    ranked = saliency.sum(0).argsort(descending=True, stable=True)
    count = best_salient_count(saliency, ranked, max_salient)
    salient = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    salient[ranked[:count]] = True
    group = torch.zeros_like(saliency, dtype=torch.bool)
    ordinary = saliency[:, ~salient]
    group[:, ~salient] = ordinary > best_break_point(ordinary, order=1, zeros=saliency[:, salient].numel())
    if split_salient and count:
        chosen = saliency[:, salient]
        group[:, salient] = chosen > best_break_point(chosen, order=2)
    return Structure(salient, group)


def saliency_of(weight: Tensor, inverse_factor: Tensor) -> Tensor:
    """`w² / U_jj²` [n, k], scaled to a largest value of 1 (the search does not depend on the scale)."""
    root = weight.abs() / inverse_factor.diagonal()
    largest = root.max()
    return (root / largest).square() if largest > 0 else torch.zeros_like(root)


def best_salient_count(saliency: Tensor, ranked: Tensor, limit: int) -> int:
    """Number of leading columns of `ranked` [k] to call salient, 0..limit, for `saliency` [n, k]."""
    limit = min(limit, saliency.shape[1] - 1)
    if limit < 1:
        return 0
    cells = TABLE_CELLS_CUDA if saliency.is_cuda else TABLE_CELLS
    energy = torch.zeros(limit, dtype=torch.float64, device=saliency.device)
    for chunk in saliency.split(max(1, cells // limit**2)):
        energy += _energy_per_count(chunk, ranked[:limit])
    return int(energy.argmax()) + 1


def _energy_per_count(saliency: Tensor, leading: Tensor) -> Tensor:
    """Energy explained by order-2 fits of the first 1, 2, ... c of the `leading` columns [c] and of the rest of
    `saliency` [n, k]: `[c]` float64."""
    width, limit = saliency.shape[1], len(leading)
    sizes = torch.arange(1, limit + 1, device=saliency.device)  # [c] candidates
    every = _sorted(saliency)
    whole = torch.nn.functional.pad(every, (1, 0)).double().cumsum(-1)  # [n, k+1]
    values, place = saliency[:, leading].sort(dim=1)  # of the columns that are salient for some candidate
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
        return whole.gather(-1, at) - inside, at - members

    inside, members = apart(table[..., -1])  # [n, c]
    energy = explained_energy(members, inside, below_inside, order=2)
    energy += explained_energy(width - members, whole[:, -1:] - inside, below_outside, order=2)
    return energy.sum(0)


def best_break_point(saliency: Tensor, order: int, zeros: int = 0) -> Tensor:
    """The scalar that splits `saliency` [n, k] best; `zeros` more zeros count in the percentiles only."""
    values = _sorted(saliency).double()
    points = _percentiles(saliency, zeros)  # [p]
    prefix = torch.nn.functional.pad(values, (1, 0)).cumsum(-1)
    cut = torch.searchsorted(values, points.double().expand(len(values), -1).contiguous(), right=True)  # [n, p]
    at_cut, whole = prefix.gather(-1, cut), prefix[:, -1:]

    def below_low(bound: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(values, bound).minimum(cut)
        return prefix.gather(-1, at), at

    def below_high(bound: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.searchsorted(values, bound).maximum(cut)
        return prefix.gather(-1, at) - at_cut, at - cut

    energy = explained_energy(cut, at_cut, below_low, order)
    energy += explained_energy(values.shape[1] - cut, whole - at_cut, below_high, order)
    return points[energy.sum(0).argmax()]


def explained_energy(size: Tensor, total: Tensor, below: Below, order: int) -> Tensor:
    """`N (mu² + alpha²)`, and of the residual again at order 2: what BiLLM's fit takes off `sum x²`.

    `size`, `total` [n, c]: how many values each set holds and their sum; `below(t)`: sum and number of the
    set's values under t. An empty set explains nothing.
    """
    whole = size.clamp_min(1)
    mean = total / whole
    under, under_count = below(mean)
    upper_count = size - under_count
    scale = 2.0 * ((total - under) - upper_count * mean).clamp_min(0.0) / whole
    energy = mean.square() + scale.square()
    if order == 2:
        # residual x - mu -+ alpha: its mean, then the two bounds above which its sign is +1
        shift = -scale * (2.0 * upper_count - size) / whole
        low, high = mean - scale + shift, mean + scale + shift
        under_low, under_low_count = below(low)
        under_high, under_high_count = below(high)
        above = (under - under_low) - (under_count - under_low_count) * low
        above = above + (total - under_high) - (size - under_high_count) * high
        energy = energy + shift.square() + (2.0 * above.clamp_min(0.0) / whole).square()
    return size * energy


def _percentiles(saliency: Tensor, zeros: int) -> Tensor:
    """Interpolated percentiles `[p]` of the values with `zeros` zeros in front.

    Not torch.quantile, which refuses more than 2^24 values.
    """
    values = _sorted(saliency.reshape(-1))
    low, high, number = PERCENTILES
    where = torch.linspace(low, high, number, dtype=torch.float64) * (len(values) + zeros - 1)
    where = where.to(values.device)
    left = where.floor().long()
    share = (where - left).to(values.dtype)

    def at(index: Tensor) -> Tensor:
        found = values[(index - zeros).clamp(0, len(values) - 1)]
        return torch.where(index < zeros, 0.0, found)

    return torch.lerp(at(left), at((left + 1).clamp_max(len(values) + zeros - 1)), share)


def _sorted(values: Tensor) -> Tensor:
    """Ascending along the last dimension. NumPy's sort is vectorised: 20 times faster than torch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values
