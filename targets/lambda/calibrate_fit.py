"""The fit of `calibrate`: the numbers of the cost model that explain the measurements best.

Every measurement is a sum of known multiples of unknown numbers, none of which is negative: waiting,
waiting per byte, and CPU (and CPU per byte) over the share of a vCPU. So all of them are found at
once by non-negative least squares (Lawson and Hanson, 1974) on the medians, each counted by how sure
it is, with Huber's weights (1964) against those that fit nowhere.

How sure a median is: its standard error from the spread of its measurements, or of those of the
smallest size where they were more, and 3 % of it because no platform is so linear.

Only functions of a full vCPU count. A smaller share is a quota per period, and what a burst takes there
is no sum of multiples (`slicewise.cost` has the formula). Those rows only check the fit, and the report
says how far it is off there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .calibrate_rows import BOTH, Row

RELATIVE = 0.03
CLOCK_MS = 0.02  # no measurement is surer than that
HUBER = 1.345  # 95 % as efficient as least squares where nothing is wrong
ROUNDS = 20
MEDIAN_ERROR = 1.2533  # of a median, in standard errors of a mean
MAD = 1.4826  # standard deviations in a median absolute deviation
P99_COUNT = 100  # measurements below which a 99th percentile is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number of the profile: `p50` is its value, `p99` is of waits where enough were measured.

    `error` is its standard error, `residual` how far measurements that depend on it lie from the fit
    (median, as a share), `count` how many those are. `problem` says why it cannot be used.
    """

    name: str
    p50: float
    error: float
    residual: float
    count: int
    p99: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All numbers by name, and what they predict of every row, ms."""

    numbers: dict[str, Number]
    rows: tuple[Row, ...]
    predicted: tuple[float, ...]


def fit(rows: Sequence[Row], period_ms: float) -> Fit:
    """The numbers that `rows` depend on; a share of a vCPU is a quota per `period_ms`."""
    names = sorted({name for row in rows for name, _ in row.terms})
    matrix = np.array([[dict(row.terms).get(name, 0.0) for name in names] for row in rows])
    predict = matrix
    full = np.array([row.is_full for row in rows])
    matrix = matrix[full]
    medians = np.array([row.median for row in rows if row.is_full])
    own = np.array([_uncertainty(row, rows) for row in rows if row.is_full])
    sure = 1 / np.hypot(own, RELATIVE * np.abs(medians))
    is_cpu = np.array([row.clock == "cpu" for row in rows if row.is_full])
    weights = np.ones(len(medians))
    spread = np.ones(len(medians))
    for _ in range(ROUNDS):
        scaled = np.sqrt(weights) * sure / spread
        values = nnls(matrix * scaled[:, None], medians * scaled)
        # Of what was predicted where that is more, or too little would count for less than too much.
        sure = 1 / np.hypot(own, RELATIVE * np.maximum(matrix @ values, np.abs(medians)))
        off = np.abs(matrix @ values - medians) * sure
        # By clock: CPU fits closely, and beside it every misfit of waits would look like an outlier.
        for clock in (is_cpu, ~is_cpu):
            if clock.any():
                spread[clock] = max(1.0, MAD * float(np.median(off[clock])))
        weights = np.minimum(1.0, HUBER * spread / np.maximum(off, 1e-12))
    weighted = matrix * (np.sqrt(weights) * sure / spread)[:, None]
    errors = _errors(weighted, values > 0) / np.linalg.norm(weighted, axis=0)
    known = dict(zip(names, values.tolist(), strict=True))
    predicted = predict @ values + [_throttled(row, known, period_ms) for row in rows]
    numbers = {
        name: _number(name, rows, predicted, float(values[i]), float(errors[i]), predict[:, i])
        for i, name in enumerate(names)
    }
    return Fit(numbers=numbers, rows=tuple(rows), predicted=tuple(predicted.tolist()))


def _throttled(row: Row, numbers: Mapping[str, float], period_ms: float) -> float:
    """What small shares add to a row, ms."""
    added = 0.0
    for share, cpu, bursts in row.slow:
        work = sum(times * numbers[name] for name, times in row.terms if name in cpu)
        added += max(0.0, work - bursts * share * period_ms) * (1 / share - 1)
    return added


def nnls(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The x >= 0 of the smallest |matrix x - right|.

    `x` is optimal when no entry that is 0 would gain by growing (Karush, Kuhn and Tucker).
    """
    lengths = np.linalg.norm(matrix, axis=0)
    matrix = matrix / np.where(lengths > 0, lengths, 1.0)
    count = matrix.shape[1]
    free = np.zeros(count, bool)
    x = np.zeros(count)
    least = 1e-10 * max(1e-300, float(np.abs(matrix.T @ right).max(initial=0.0)))
    for _ in range(10 * count + 10):
        gain = np.where(free, -np.inf, matrix.T @ (right - matrix @ x))
        if free.all() or gain.max() <= least:
            break
        free[gain.argmax()] = True
        while free.any():
            best = np.zeros(count)
            best[free] = np.linalg.lstsq(matrix[:, free], right, rcond=None)[0]
            if best[free].min() > 0:
                x = best
                break
            # As far towards it as nothing becomes negative; what arrives at 0 stays there.
            down = free & (best <= 0)
            step = float((x[down] / np.maximum(x[down] - best[down], 1e-300)).min())
            x = np.where(free, x + step * (best - x), 0.0)
            free &= x > 1e-14
            x = np.where(free, x, 0.0)
    return x / np.where(lengths > 0, lengths, 1.0)


def _uncertainty(row: Row, rows: Sequence[Row]) -> float:
    """Of its median, ms, by chance."""
    alike = (other for other in rows if (other.what, other.clock) == (row.what, row.clock))
    most = max((other for other in alike if other.is_full), key=lambda other: len(other.ms))
    spread = MAD * max(_deviation(row), _deviation(most))
    return math.hypot(MEDIAN_ERROR * spread / math.sqrt(len(row.ms)), CLOCK_MS)


def _deviation(row: Row) -> float:
    return statistics.median(abs(ms - row.median) for ms in row.ms)


def _errors(weighted: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Standard errors of the numbers that are not 0; infinite for what the rows cannot tell apart.

    Those have a part in a direction in which nothing that was measured changes, also when the fit
    happened to leave one of them at 0.
    """
    weighted = weighted / np.linalg.norm(weighted, axis=0)
    _, singular, directions = np.linalg.svd(weighted, full_matrices=True)
    seen = int((singular > 1e-8 * singular.max(initial=1e-300)).sum())
    blind = (directions[seen:] ** 2).sum(axis=0) > 1e-9
    errors = np.where(blind, np.inf, 0.0)
    known = free & ~blind
    errors[known] = np.sqrt(np.diag(np.linalg.pinv(weighted[:, free].T @ weighted[:, free])))[
        known[free]
    ]
    return errors


def _number(
    name: str,
    rows: Sequence[Row],
    predicted: np.ndarray,
    value: float,
    error: float,
    column: np.ndarray,
) -> Number:
    """A number with what is to be said of it."""
    uses = [i for i in range(len(rows)) if column[i] and rows[i].is_full]
    # Residuals where it matters, which is where it is a fifth of the time.
    telling = [i for i in uses if column[i] * value >= 0.2 * predicted[i]] or uses
    far = [abs(predicted[i] / rows[i].median - 1) for i in telling if rows[i].median > 0]
    problem = ""
    if math.isinf(error):
        problem = "the measurements cannot tell it from others"
    elif value <= 0:
        problem = "came out as 0 or less"
    elif error > 0.5 * value:
        problem = f"too uncertain, {value:.3g} ± {error:.2g}"
    return Number(
        name=name,
        p50=value,
        error=error,
        residual=float(np.median(far)) if far else 0.0,
        count=sum(len(rows[i].ms) for i in uses),
        p99=_p99(name, rows, predicted, value),
        problem=problem,
    )


def _p99(name: str, rows: Sequence[Row], predicted: np.ndarray, value: float) -> float | None:
    """Of a wait: how far times lie from their row's median, where the wait is most of the time."""
    samples = [
        ms - row.median + value
        for row, total in zip(rows, predicted, strict=True)
        if row.is_full and row.clock == "wall" and not row.what.endswith(BOTH)
        if (name, 1.0) in row.terms and value > total / 2
        for ms in row.ms
    ]
    if len(samples) < P99_COUNT:
        return None
    return max(value, float(np.quantile(samples, 0.99)))
