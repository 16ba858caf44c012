"""METHOD.md's formulas as plain float64 loops: slow, obvious, and independent of the code they judge."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sign(value: float) -> float:
    return 1.0 if value >= 0 else -1.0


def billm_fit(weight: Array, mask: NDArray[np.bool_], order: int) -> Array:
    """BiLLM's closed form of one group, weight by weight; 0 outside the mask."""
    fitted = np.zeros_like(weight)
    for i in range(weight.shape[0]):
        members = [j for j in range(weight.shape[1]) if mask[i, j]]
        for _ in range(order if members else 0):
            rest = [weight[i, j] - fitted[i, j] for j in members]
            mean = sum(rest) / len(rest)
            scale = sum(abs(value - mean) for value in rest) / len(rest)
            for j, value in zip(members, rest, strict=True):
                fitted[i, j] += mean + scale * sign(value - mean)
    return fitted


def squared_error(weight: Array, parts: list[tuple[NDArray[np.bool_], int]]) -> float:
    """Squared error of `weight` when each (mask, order) is fitted by itself."""
    return float(((weight - sum(billm_fit(weight, mask, order) for mask, order in parts)) ** 2).sum())


def salient_errors(saliency: Array, limit: int) -> tuple[list[int], list[float]]:
    """Columns by falling score, and the error of an order-2 fit on both sides for 1 .. limit of them."""
    ranked = sorted(range(saliency.shape[1]), key=lambda j: -saliency[:, j].sum())
    errors = []
    for count in range(1, limit + 1):
        inside = np.zeros(saliency.shape, dtype=bool)
        inside[:, ranked[:count]] = True
        errors.append(squared_error(saliency, [(inside, 2), (~inside, 2)]))
    return ranked, errors


def break_errors(saliency: Array, eligible: NDArray[np.bool_], points: Array, order: int) -> list[float]:
    """Error of splitting the eligible weights at each point, both sides at `order`."""
    return [
        squared_error(
            saliency * eligible, [(eligible & (saliency <= point), order), (eligible & (saliency > point), order)]
        )
        for point in points
    ]


def alternating_round(
    weight: Array,
    mask: NDArray[np.bool_],
    weighting: Array,
    signs: list[Array],
    rows: list[Array],
    columns: list[Array],
) -> tuple[list[Array], list[Array]]:
    """One round of row and column updates, order after order, signs fixed; scales before the gauge."""
    n, k = weight.shape
    rows, columns = [row.copy() for row in rows], [column.copy() for column in columns]
    for o in range(len(signs)):
        residual = weight.copy()
        for other in range(len(signs)):
            if other != o:
                residual -= signs[other] * np.outer(rows[other], columns[other])
        for i in range(n):
            over = under = 0.0
            for j in range(k):
                if mask[i, j]:
                    over += weighting[i, j] ** 2 * columns[o][j] * signs[o][i, j] * residual[i, j]
                    under += weighting[i, j] ** 2 * columns[o][j] ** 2
            rows[o][i] = over / under if under > 0 else 0.0
        for j in range(k):
            over = under = 0.0
            for i in range(n):
                if mask[i, j]:
                    over += weighting[i, j] ** 2 * rows[o][i] * signs[o][i, j] * residual[i, j]
                    under += weighting[i, j] ** 2 * rows[o][i] ** 2
            columns[o][j] = over / under if under > 0 else 0.0
    return rows, columns


def gptq_levels(weight: Array, factor: Array, scale: Array, zero: Array, bits: int) -> NDArray[np.int64]:
    """GPTQ inside one block, weight by weight."""
    weight = weight.copy()
    levels = np.zeros(weight.shape, dtype=np.int64)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            step = weight[i, j] / scale[i] if scale[i] > 0 else 0.0
            levels[i, j] = min(max(round(step) + zero[i], 0), 2**bits - 1)
            error = (weight[i, j] - scale[i] * (levels[i, j] - zero[i])) / factor[j, j]
            for later in range(j + 1, weight.shape[1]):
                weight[i, later] -= error * factor[j, later]
    return levels


def round_to_nearest(weight: Array, scale: Array, zero: Array, bits: int) -> Array:
    """Dense values of rounding every weight by itself to `scale * (level - zero)`."""
    fitted = np.zeros_like(weight)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            step = weight[i, j] / scale[i] if scale[i] > 0 else 0.0
            fitted[i, j] = scale[i] * (min(max(round(step) + zero[i], 0), 2**bits - 1) - zero[i])
    return fitted


def asymmetric_grid(row: Array, bits: int) -> tuple[float, float]:
    """Step and integer zero of one row; the range holds 0."""
    low, high = min(0.0, *row), max(0.0, *row)
    step = float(np.float16((high - low) / (2**bits - 1)))
    return step, float(min(max(round(-low / step), 0), 2**bits - 1)) if step > 0 else 0.0


def pb_llm(weight: Array, factor: Array, share: float, by_hessian: bool) -> tuple[NDArray[np.bool_], Array]:
    """Kept weights and dense values of a whole linear, weight by weight, errors carried over all columns."""
    n, m = weight.shape
    saliency = np.array(
        [[(weight[i, j] / factor[j, j]) ** 2 if by_hessian else abs(weight[i, j]) for j in range(m)] for i in range(n)]
    )
    ranked = sorted(saliency.ravel(), reverse=True)
    count = int(share * n * m)
    kept = saliency > ranked[count]
    fitted = np.zeros_like(weight)
    for i in range(n):
        rest = [0.0 if kept[i, j] else weight[i, j] for j in range(m)]
        mean = float(np.float16(sum(rest) / m))
        scale = float(np.float16(sum(abs(value - mean) for value in rest) / m))
        step, zero = asymmetric_grid(weight[i], 8)
        row = weight[i].copy()
        for j in range(m):
            if kept[i, j]:
                level = min(max(round(row[j] / step) + zero, 0), 255) if step > 0 else zero
                fitted[i, j] = step * (level - zero)
            else:
                fitted[i, j] = mean + scale * sign(row[j] - mean)
            error = (row[j] - fitted[i, j]) / factor[j, j]
            for later in range(j + 1, m):
                row[later] -= error * factor[j, later]
    return kept, fitted


def arb_x_round(
    row: Array, metric: Array, means: list[Array], signs: list[Array], mu: Array, alpha: Array
) -> tuple[Array, Array, float]:
    """One round for one row: all means given the scales, then all scales given the means, and the loss after.

    `means`, `signs`: a vector over the columns per parameter, 0 outside its group. Solved by least squares on
    the root of the metric, with no normal equations.
    """
    values, vectors = np.linalg.eigh(metric)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T

    def solve(features: list[Array], target: Array, now: Array) -> Array:
        # of all minimisers the one nearest to what the parameters are now
        design = root @ np.stack(features, 1)
        return now + np.linalg.lstsq(design, root @ target - design @ now, rcond=1e-9)[0]

    mu = solve(means, row - np.stack(signs, 1) @ alpha, mu)
    alpha = solve(signs, row - np.stack(means, 1) @ mu, alpha)
    rest = row - np.stack(means, 1) @ mu - np.stack(signs, 1) @ alpha
    return mu, alpha, float(rest @ metric @ rest)


def best_later_columns(error: Array, hessian: Array) -> Array:
    """Change of the columns after a block that minimises tr(D H D^T), given the block's error [n, k].

    With D = [E, X], the gradient in X vanishes where E H_bl + X H_ll = 0; the change is -X's sign: W - X.
    """
    k = error.shape[1]
    return np.linalg.solve(hessian[k:, k:], (error @ hessian[:k, k:]).T).T
