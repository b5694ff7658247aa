"""One-class support vector machines with an RBF kernel, solved one voxel after another.

The dual problem is that of Schölkopf et al. (2001), Neural Computation 13:1443-1471, in the form
used by libsvm (Chang & Lin, 2011, ACM TIST 2:27, section 2.4): given the kernel Q of n samples,
minimise a'Qa / 2 over coefficients 0 <= a <= 1 whose sum is nu * n. Pairs of coefficients, selected
with second-order information (Fan, Chen & Lin, 2005, JMLR 6:1889-1918, WSS 2), are updated until no
pair violates the optimality conditions by more than the tolerance. Unlike in libsvm, coefficients
start near the solution, which halves the number of steps; the whole kernel is computed at once, by
a matrix product; and there is no shrinking: with hundreds of samples at most, a pass over all of
them takes less time than the bookkeeping.

The code is compiled with numba and releases the GIL, so that ordinary threads can share voxels.
"""

from collections.abc import Callable
from functools import wraps
from math import factorial, log
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Singles: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FLATTEST = 1e-12  # minimum curvature, for two equal samples: libsvm's TAU
STEPS = 10_000_000  # at most, as in libsvm
DRIFT = 100  # steps per sample; after more, rounding may make pairs oscillate; our choice, by trial
ROUNDING = 1e-12  # of coefficients
LARGE = 1e30  # in place of infinity, which fast math does not support
LANES = 32  # float32 values per vectorised step with AVX2; a remainder would be processed singly
DIGITS = 1e-5  # share of the initial violation below which float32 is not accurate enough
LOWEST = np.float32(-87)  # exp of anything lower is not a normal number in float32
LOG2_E = np.float32(1 / log(2))
LN2_HIGH = np.float32(0.693359375)  # 9 bits of ln 2, so that its multiples are exact in float32
LN2_LOW = np.float32(log(2) - 0.693359375)
SERIES = tuple(np.float32(1 / factorial(order)) for order in range(7, -1, -1))  # of exp, reversed
EXPONENT_BIAS, EXPONENT_SHIFT = np.int32(127), np.int32(23)  # of float32
FAST = {"reassoc", "contract", "nnan", "nsz"}  # finite values may be added in any order


class Machines(NamedTuple):
    """Solved problems of some voxels, as needed for scoring.

    Parameters
    ----------
    support : ndarray, (total, features)
        Support vectors, voxel by voxel.
    coefficients : ndarray, (total,)
        Coefficients of the support vectors; those of all other samples are 0.
    starts : ndarray, (voxels + 1,)
        Offset of each voxel in ``support``, and the end of the last one.
    gammas : ndarray, (voxels,)
        Gamma of the kernel of each voxel.
    """

    support: Singles
    coefficients: Floats
    starts: Integers
    gammas: Floats


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compile a function at its first call, and cache the machine code on disk if possible.

    A container may have no writable folder, and a home directory may be full.
    """
    alone = njit(nogil=True)(function)
    try:
        cached = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no cache directory
        return alone

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return cached(*args, **kwargs)
        except OSError:
            return alone(*args, **kwargs)

    return call


def _choose_by(comparison: str) -> Callable[[np.float32, np.float32], np.float32]:
    """Create a function that selects one of two floats, neither NaN, for use in compiled functions.

    The min and max of numba handle NaN, which keeps LLVM from vectorising them.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001 - numba calls it
        first = builder.fcmp_ordered(comparison, *values, flags=("nnan", "nsz"))
        return builder.select(first, *values, flags=("nnan", "nsz"))

    def choose(context: Any, kind: Any, other: Any) -> Any:  # noqa: ARG001 - numba calls it
        return kind(kind, kind), generate

    return cast("Callable[[np.float32, np.float32], np.float32]", intrinsic(choose))


_smaller, _larger = _choose_by("<"), _choose_by(">")


@compiled
def scale(samples: Singles) -> Floats:
    """Return 1 / (features * variance of all entries) for each voxel: scikit-learn's "scale".

    Parameters
    ----------
    samples : ndarray, (voxels, n, features)
        Finite values.

    Returns
    -------
    ndarray, (voxels,)
        Gamma of each voxel; 1 if nothing varies.
    """
    gammas = np.ones(len(samples))
    for voxel in range(len(samples)):
        variance = _variance(samples[voxel].ravel())
        if variance > 0:
            gammas[voxel] = 1 / (samples.shape[2] * variance)
    return gammas


@compiled
def fit(samples: Singles, gammas: Floats, nu: float, tolerance: float) -> tuple[Floats, Floats]:
    """Solve the problems of all voxels.

    Parameters
    ----------
    samples : ndarray, (voxels, n, features)
        Finite values.
    gammas : ndarray, (voxels,)
        Gamma of the kernel of each voxel.
    nu, tolerance : float
        Parameter nu, and tolerance of the stopping criterion.

    Returns
    -------
    ndarray, (voxels, n), and ndarray, (voxels,)
        Coefficients of the samples, and libsvm's rho.
    """
    voxels, n, features = samples.shape
    alphas, offsets = np.empty((voxels, n)), np.empty(voxels)
    width = -(-n // LANES) * LANES
    points, products = np.empty((n, features), np.float32), np.empty((n, n), np.float32)
    middle, squares = np.empty(features), np.empty(n, np.float32)
    kernel, room = np.zeros((n, width), np.float32), np.zeros((4, width), np.float32)
    gradient = np.empty(n)
    for voxel in range(voxels):
        _find_middle(samples[voxel], middle)
        _centre(samples[voxel], middle, points)
        np.dot(points, points.T, products)
        for place in range(n):
            squares[place] = products[place, place]
        for place in range(n):
            _kernel_row(products[place], squares[place], squares, -gammas[voxel], kernel[place])
        _start(kernel, nu, gradient, alphas[voxel])
        offsets[voxel] = _solve(kernel, alphas[voxel], gradient, room, tolerance)
    return alphas, offsets


@compiled
def score(machines: Machines, samples: Singles) -> Floats:
    """Sum the kernels between samples and support vectors, weighted by the coefficients.

    Parameters
    ----------
    machines : Machines
        Solved problems of the same voxels.
    samples : ndarray, (voxels, samples, features)
        Finite values.

    Returns
    -------
    ndarray, (voxels, samples)
        Scores, 0 or more; 0 far from all support vectors.
    """
    voxels, n, features = samples.shape
    scores = np.zeros((voxels, n))
    points, middle = np.empty((n, features), np.float32), np.empty(features)
    squares, similarities = np.empty(n, np.float32), np.empty(n, np.float32)
    for voxel in range(voxels):
        first, last = machines.starts[voxel], machines.starts[voxel + 1]
        if first == last:
            continue
        support = np.empty((last - first, features), np.float32)
        products = np.empty((last - first, n), np.float32)
        _find_middle(machines.support[first:last], middle)
        _centre(machines.support[first:last], middle, support)
        _centre(samples[voxel], middle, points)
        np.dot(support, points.T, products)
        _square(points, squares)
        for row in range(last - first):
            squared = _length(support[row])
            _kernel_row(products[row], squared, squares, -machines.gammas[voxel], similarities)
            _add(scores[voxel], machines.coefficients[first + row], similarities)
    return scores


@njit
def _find_middle(samples: Singles, middle: Floats) -> None:
    """Average samples, so that distances lose no precision to an offset common to all."""
    middle[:] = 0
    for row in range(samples.shape[0]):
        for column in range(samples.shape[1]):
            middle[column] += samples[row, column]
    middle /= samples.shape[0]


@njit
def _centre(samples: Singles, middle: Floats, into: Singles) -> None:
    for row in range(samples.shape[0]):
        for column in range(samples.shape[1]):
            into[row, column] = samples[row, column] - middle[column]


@njit(fastmath=FAST)
def _length(values: Singles) -> float:
    total = np.float32(0)
    for place in range(values.size):
        total += values[place] * values[place]
    return float(total)


@njit
def _square(points: Singles, squares: Singles) -> None:
    for row in range(points.shape[0]):
        squares[row] = _length(points[row])


@njit(fastmath=FAST)
def _variance(values: Singles) -> float:
    """Compute the variance in two passes, in float64, so that an offset costs no precision."""
    mean, squares = 0.0, 0.0
    for place in range(values.size):
        mean += values[place]
    mean /= values.size
    for place in range(values.size):
        squares += (values[place] - mean) ** 2
    return squares / values.size


@njit(fastmath=FAST)
def _kernel_row(
    products: Singles, square: float, squares: Singles, factor: float, into: Singles
) -> None:
    """Convert dot products with one sample to exp(factor * squared distance), factor below 0.

    With k the nearest integer to x / ln 2, exp(x) is 2**k, of which the bits are known, times a
    power series in x - k ln 2. The compiler can vectorise this, in contrast to a call of ``exp``.
    The relative error of exp is below 3e-7.
    """
    zero, half, two = np.float32(0), np.float32(0.5), np.float32(2)
    narrow_square, narrow_factor = np.float32(square), np.float32(factor)
    for place in range(products.size):
        distance = _larger(narrow_square + squares[place] - two * products[place], zero)
        x = _larger(narrow_factor * distance, LOWEST)
        exponent = np.int32(x * LOG2_E - half)  # rounds towards 0, which is up
        rest = x - np.float32(exponent) * LN2_HIGH - np.float32(exponent) * LN2_LOW
        result = zero
        for coefficient in SERIES:
            result = result * rest + coefficient
        bits = np.int32((exponent + EXPONENT_BIAS) << EXPONENT_SHIFT)
        into[place] = result * bits.view(np.float32)


@njit
def _compute_gradient(kernel: Singles, alpha: Floats, gradient: Floats) -> None:
    gradient[:] = 0
    for place in range(alpha.size):
        if alpha[place] > 0:
            _add(gradient, alpha[place], kernel[place])


@njit
def _start(kernel: Singles, nu: float, gradient: Floats, alpha: Floats) -> None:
    """Set coefficients near the solution, which takes half as many updates as from equal ones.

    From equal coefficients, a Newton step is taken for a kernel that is constant off its diagonal,
    and its result is made feasible (Michelot, 1986, J Optim Theory Appl 50:195-200). If a
    coefficient exceeds 1, all start equal.
    """
    n = alpha.size
    alpha[:] = nu
    _compute_gradient(kernel, alpha, gradient)
    mean = gradient.mean()
    curvature = max((n - mean / nu) / (n - 1), DIGITS)  # 1 - mean kernel of two samples
    for place in range(n):
        alpha[place] += (mean - gradient[place]) / curvature
    _project(alpha, nu * n)
    if alpha.max() > 1:
        alpha[:] = nu


@njit
def _project(values: Floats, total: float) -> None:
    """Project values of this sum to the nearest of 0 or more with the same sum."""
    positive, before = 0, -1
    while positive != before:
        before, positive, excess = positive, 0, -total
        for value in values:
            if value > 0:
                positive += 1
                excess += value
        for place in range(values.size):
            if values[place] > 0:
                values[place] = max(values[place] - excess / positive, 0.0)
            else:
                values[place] = 0.0


@njit(fastmath=FAST)
def _add(values: Floats, factor: float, row: Singles) -> None:
    for place in range(values.size):
        values[place] += factor * row[place]


@njit
def _solve(
    kernel: Singles, alpha: Floats, gradient: Floats, room: Singles, tolerance: float
) -> float:
    """Update pairs of coefficients until none violates the optimality conditions; return rho.

    Steps are computed in float32, which vectorises twice as many values, on the gradient minus rho:
    only differences matter, and the relevant values are near 0, where float32 is most precise. The
    gradient is recomputed in float64, and with it rho, until it leaves no pair to update; rho of
    the coefficients before the last steps would be far off.

    ``kernel`` is (n, width), 0 beyond its n columns; ``room``, (4, width), is workspace.
    """
    slopes, full, empty = room[0], room[1], room[2]
    full[:], empty[:] = LARGE, LARGE  # padding beyond the n samples cannot move
    for place in range(alpha.size):
        _mark_bounds(alpha, place, full, empty)
    remaining = STEPS
    while True:
        _compute_gradient(kernel, alpha, gradient)
        rho = _offset(alpha, gradient)
        for place in range(alpha.size):
            slopes[place] = gradient[place] - rho
        steps = _descend(kernel, alpha, room, tolerance, min(remaining, DRIFT * alpha.size))
        remaining -= steps
        if steps == 0:
            return rho


@njit
def _descend(kernel: Singles, alpha: Floats, room: Singles, tolerance: float, limit: int) -> int:
    """Update pairs while float32 is accurate enough to select them; return the number of steps.

    ``slopes`` are kept equal to kernel @ alpha up to a constant. ``full`` and ``empty`` are LARGE
    where a coefficient cannot rise or fall, respectively, and 0 elsewhere.
    """
    slopes, full, empty, gains = room[0], room[1], room[2], room[3]
    rising = falling = np.int32(0)
    raised = lowered = np.float32(0)
    least = tolerance
    for step in range(limit):
        _add_two(slopes, kernel[rising], raised, kernel[falling], lowered)
        rise, fall = _find_ends(slopes, full, empty)
        if step == 0:
            least = max(tolerance, float(fall - rise) * DIGITS)
        if fall - rise < least:
            return step
        rising = _find(slopes, full, rise)
        up = kernel[rising]
        best = _compute_gains(slopes, empty, rise, up, gains)
        falling = _find(gains, empty, best)
        slope = float(slopes[falling]) - float(slopes[rising])
        raised, lowered = _move_pair(
            alpha, rising, falling, slope / max(2.0 - 2.0 * up[falling], FLATTEST)
        )
        _mark_bounds(alpha, rising, full, empty)
        _mark_bounds(alpha, falling, full, empty)
    return limit


@njit
def _mark_bounds(alpha: Floats, place: int | np.int32, full: Singles, empty: Singles) -> None:
    """Record whether a coefficient can rise and fall."""
    full[place] = LARGE if alpha[place] >= 1 else 0
    empty[place] = LARGE if alpha[place] <= 0 else 0


@njit(fastmath=FAST)
def _add_two(
    values: Singles,
    first: Singles,
    first_factor: np.float32,
    second: Singles,
    second_factor: np.float32,
) -> None:
    for place in range(values.size):
        values[place] += first[place] * first_factor + second[place] * second_factor


@njit(fastmath=FAST)
def _find_ends(slopes: Singles, full: Singles, empty: Singles) -> tuple[np.float32, np.float32]:
    """Return the lowest slope among coefficients that can rise, and the highest that can fall."""
    rise, fall = np.float32(LARGE), np.float32(-LARGE)
    for place in range(slopes.size):
        rise = _smaller(rise, slopes[place] + full[place])
        fall = _larger(fall, slopes[place] - empty[place])
    return rise, fall


@njit(fastmath=FAST)
def _compute_gains(
    slopes: Singles, empty: Singles, rise: np.float32, up: Singles, gains: Singles
) -> np.float32:
    """Compute the gain from lowering each coefficient, and return the largest."""
    zero, two, flattest = np.float32(0), np.float32(2), np.float32(FLATTEST)
    best = zero
    for place in range(slopes.size):
        slope = _larger(slopes[place] - empty[place] - rise, zero)
        gains[place] = slope * slope / _larger(two - two * up[place], flattest)
        best = _larger(best, gains[place])
    return best


@njit
def _find(values: Singles, barred: Singles, target: np.float32) -> np.int32:
    """Return the first index whose value, if not barred, equals the target."""
    nowhere = np.int32(values.size)
    first = nowhere
    for place in range(values.size):
        first = min(first, np.int32(place) if values[place] + barred[place] == target else nowhere)
    return first


@njit
def _move_pair(
    alpha: Floats, rising: np.int32, falling: np.int32, step: float
) -> tuple[np.float32, np.float32]:
    """Raise one coefficient and lower another by a step, within [0, 1]; return the changes."""
    before_up, before_down = alpha[rising], alpha[falling]
    if step >= min(1 - before_up, before_down):
        if 1 - before_up < before_down:
            alpha[rising], alpha[falling] = 1.0, before_up + before_down - 1
        else:
            alpha[rising], alpha[falling] = before_up + before_down, 0.0
    else:
        alpha[rising], alpha[falling] = before_up + step, before_down - step
    for place in (rising, falling):  # values off a bound by rounding would count as free
        if alpha[place] < ROUNDING:
            alpha[place] = 0.0
        elif alpha[place] > 1 - ROUNDING:
            alpha[place] = 1.0
    return np.float32(alpha[rising] - before_up), np.float32(alpha[falling] - before_down)


@njit
def _offset(alpha: Floats, gradient: Floats) -> float:
    """Return rho: the mean gradient over 0 < alpha < 1, or else the midpoint of its range."""
    free, total, low, high = 0, 0.0, -np.inf, np.inf
    for place in range(alpha.size):
        if alpha[place] >= 1:
            low = max(low, gradient[place])
        elif alpha[place] <= 0:
            high = min(high, gradient[place])
        else:
            free += 1
            total += gradient[place]
    if free:
        return total / free
    return low if high == np.inf else (low + high) / 2  # nu is 1: libsvm gives infinity
