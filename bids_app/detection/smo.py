"""One-class support vector machines with an RBF kernel, solved one voxel after another.

The dual problem of Schölkopf et al. (2001), Neural Computation 13:1443-1471, as libsvm poses it
(Chang & Lin, 2011, ACM TIST 2:27, section 2.4): given the kernel Q of n samples, minimise a'Qa / 2
over coefficients 0 <= a <= 1 whose sum is nu * n. Pairs of coefficients are moved, chosen by second
order (Fan, Chen & Lin, 2005, JMLR 6:1889-1918, WSS 2), until no pair violates the conditions of an
optimum by the tolerance. Unlike libsvm's, the start has all coefficients equal, as nearly all
samples of a flat kernel support it; the whole kernel is computed at once, by a matrix product; and
nothing is shrunk: with hundreds of samples at most, a pass over all takes less than the
bookkeeping.

Compiled with numba; the interpreter's lock is released, so that plain threads can share voxels.
"""

from collections.abc import Callable
from functools import wraps
from math import factorial
from typing import NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Singles: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FLATTEST = 1e-12  # curvature between two equal samples: libsvm's TAU
STEPS = 10_000_000  # at most: libsvm's
ROUNDING = 1e-12  # of coefficients
LARGE = 1e300  # instead of infinity, which fast arithmetic does not know
LOWEST = -104.0  # float32 has nothing but 0 for exp of less
SQUARINGS = 5  # exp(x) = exp(x / 2**5) ** 2**5
SERIES = tuple(1 / factorial(order) for order in range(8, -1, -1))  # of exp, highest order first
FAST = {"reassoc", "contract", "nnan", "nsz"}  # what is finite may be added in any order


class Machines(NamedTuple):
    """Solved problems of some voxels, as far as scores need them.

    Parameters
    ----------
    support : ndarray, (total, features)
        Support vectors of one voxel after another.
    coefficients : ndarray, (total,)
        Their coefficients; of all other samples these are 0.
    starts : ndarray, (voxels + 1,)
        Where in ``support`` each voxel's begin, and where the last one's end.
    gammas : ndarray, (voxels,)
        Of each voxel's kernel.
    """

    support: Singles
    coefficients: Floats
    starts: Integers
    gammas: Floats


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compile at the first call, and keep the machine code on disk where there is a place for it.

    A container may have no folder to write in, and a home may be full.
    """
    alone = njit(nogil=True)(function)
    try:
        kept = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no place
        return alone

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return kept(*args, **kwargs)
        except OSError:
            return alone(*args, **kwargs)

    return call


@compiled
def scale(samples: Singles) -> Floats:
    """Give 1 / (features * variance of all entries) of each voxel: scikit-learn's "scale".

    Parameters
    ----------
    samples : ndarray, (voxels, n, features)
        Finite.

    Returns
    -------
    ndarray, (voxels,)
        1 where nothing varies.
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
        Finite.
    gammas : ndarray, (voxels,)
        Of each voxel's kernel.
    nu, tolerance : float
        Of the problem, and of the stopping rule.

    Returns
    -------
    ndarray, (voxels, n), and ndarray, (voxels,)
        Coefficients of the samples, and libsvm's rho.
    """
    voxels, n, features = samples.shape
    alphas, offsets = np.empty((voxels, n)), np.empty(voxels)
    points, kernel = np.empty((n, features), np.float32), np.empty((n, n), np.float32)
    middle, squares = np.empty(features), np.empty(n, np.float32)
    gradient, room = np.empty(n), np.empty((2, n))
    for voxel in range(voxels):
        _find_middle(samples[voxel], middle)
        _centre(samples[voxel], middle, points)
        np.dot(points, points.T, kernel)
        for place in range(n):
            squares[place] = kernel[place, place]
        for place in range(n):
            _kernel_row(kernel[place], squares[place], squares, -gammas[voxel])
        alpha = alphas[voxel]
        alpha[:] = nu
        gradient[:] = 0
        for place in range(n):
            _add(gradient, nu, kernel[place])
        _solve(kernel, alpha, gradient, room, tolerance)
        offsets[voxel] = _offset(alpha, gradient)
    return alphas, offsets


@compiled
def score(machines: Machines, samples: Singles) -> Floats:
    """Sum the kernels between samples and support vectors, weighted by the coefficients.

    Parameters
    ----------
    machines : Machines
        Of the same voxels.
    samples : ndarray, (voxels, samples, features)
        Finite.

    Returns
    -------
    ndarray, (voxels, samples)
        0 or more; 0 far from all support vectors.
    """
    voxels, n, features = samples.shape
    scores = np.zeros((voxels, n))
    points, middle = np.empty((n, features), np.float32), np.empty(features)
    squares = np.empty(n, np.float32)
    for voxel in range(voxels):
        first, last = machines.starts[voxel], machines.starts[voxel + 1]
        if first == last:
            continue
        support = np.empty((last - first, features), np.float32)
        kernel = np.empty((last - first, n), np.float32)
        _find_middle(machines.support[first:last], middle)
        _centre(machines.support[first:last], middle, support)
        _centre(samples[voxel], middle, points)
        np.dot(support, points.T, kernel)
        _square(points, squares)
        for which in range(last - first):
            own = _length(support[which])
            _kernel_row(kernel[which], own, squares, -machines.gammas[voxel])
            _add(scores[voxel], machines.coefficients[first + which], kernel[which])
    return scores


@njit
def _find_middle(samples: Singles, middle: Floats) -> None:
    """Average samples: distances between them lose no digits to an offset that all share."""
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
    """Pass twice, in float64, so that an offset takes no digits away."""
    mean, squares = 0.0, 0.0
    for place in range(values.size):
        mean += values[place]
    mean /= values.size
    for place in range(values.size):
        squares += (values[place] - mean) ** 2
    return squares / values.size


@njit(fastmath=FAST)
def _kernel_row(products: Singles, own: float, squares: Singles, factor: float) -> None:
    """Turn scalar products with one sample into exp(factor * squared distance), in place.

    By its series, so that the compiler takes several values at once: to what float32 holds where
    the result is above 1e-8, and to 1e-15 below.
    """
    for place in range(products.size):
        distance = max(own + squares[place] - 2 * products[place], 0.0)
        x = max(factor * distance, LOWEST) / 2**SQUARINGS
        result = 0.0
        for coefficient in SERIES:
            result = result * x + coefficient
        for _ in range(SQUARINGS):
            result *= result
        products[place] = result


@njit(fastmath=FAST)
def _add(values: Floats, factor: float, row: Singles) -> None:
    for place in range(values.size):
        values[place] += factor * row[place]


@njit(fastmath=FAST)
def _solve(
    kernel: Singles, alpha: Floats, gradient: Floats, room: Floats, tolerance: float
) -> None:
    """Move pairs of coefficients until no pair violates the conditions by the tolerance.

    ``gradient`` is kernel @ alpha, and is kept so; ``room``, (2, n), is to compute in.
    """
    upwards, gains = room[0], room[1]
    rising, falling, raised, lowered = 0, 0, 0.0, 0.0
    for _ in range(STEPS):
        up, down = kernel[rising], kernel[falling]
        rise, fall = -LARGE, -LARGE
        for place in range(alpha.size):
            slope = gradient[place] + up[place] * raised + down[place] * lowered
            gradient[place] = slope
            upwards[place] = -slope if alpha[place] < 1 else -LARGE
            rise = max(rise, upwards[place])
            fall = max(fall, slope if alpha[place] > 0 else -LARGE)
        if rise + fall < tolerance:
            return
        rising = _find(upwards, rise)
        up = kernel[rising]
        falling = _find(gains, _weigh(alpha, gradient, gains, up, rise))
        step = (gradient[falling] - gradient[rising]) / max(2.0 - 2.0 * up[falling], FLATTEST)
        raised, lowered = _move(alpha, rising, falling, step)


@njit(fastmath=FAST)
def _weigh(alpha: Floats, gradient: Floats, gains: Floats, up: Singles, rise: float) -> float:
    """Tell what lowering each coefficient would gain, and the largest of that."""
    best = -1.0
    for place in range(alpha.size):
        slope = max(rise + gradient[place], 0.0)
        gain = slope * slope / max(2.0 - 2.0 * up[place], FLATTEST)
        gain = gain if alpha[place] > 0 else -1.0
        gains[place] = gain
        best = max(best, gain)
    return best


@njit
def _find(values: Floats, wanted: float) -> int:
    """Give the first place of a value."""
    for place in range(values.size):
        if values[place] == wanted:
            return place
    return 0


@njit
def _move(alpha: Floats, rising: int, falling: int, step: float) -> tuple[float, float]:
    """Raise one coefficient and lower another by a step, within 0 to 1; tell by how much."""
    before_up, before_down = alpha[rising], alpha[falling]
    if step >= min(1 - before_up, before_down):
        if 1 - before_up < before_down:
            alpha[rising], alpha[falling] = 1.0, before_up + before_down - 1
        else:
            alpha[rising], alpha[falling] = before_up + before_down, 0.0
    else:
        alpha[rising], alpha[falling] = before_up + step, before_down - step
    for place in (rising, falling):  # what rounding keeps from a bound would count as between them
        if alpha[place] < ROUNDING:
            alpha[place] = 0.0
        elif alpha[place] > 1 - ROUNDING:
            alpha[place] = 1.0
    return alpha[rising] - before_up, alpha[falling] - before_down


@njit
def _offset(alpha: Floats, gradient: Floats) -> float:
    """Give rho: the gradient where 0 < alpha < 1, or else the middle of where it may be."""
    free, total, least, most = 0, 0.0, -np.inf, np.inf
    for place in range(alpha.size):
        if alpha[place] >= 1:
            least = max(least, gradient[place])
        elif alpha[place] <= 0:
            most = min(most, gradient[place])
        else:
            free += 1
            total += gradient[place]
    if free:
        return total / free
    return least if most == np.inf else (least + most) / 2  # nu is 1: libsvm gives infinity
