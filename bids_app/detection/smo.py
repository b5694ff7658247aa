"""One-class support vector machines with an RBF kernel, solved one voxel after another.

The dual problem of Schölkopf et al. (2001), Neural Computation 13:1443-1471, as libsvm poses it
(Chang & Lin, 2011, ACM TIST 2:27, section 2.4): given the kernel Q of n samples, minimise a'Qa / 2
over coefficients 0 <= a <= 1 whose sum is nu * n. Two solutions within the tolerance of the
stopping rule can differ by more than 1e-4, so this takes libsvm's own steps: its first point, its
pairs (second order: Fan, Chen & Lin, 2005, JMLR 6:1889-1918, WSS 2), its shrinking (Chang & Lin,
section 5.1), its rounding of Q to float32, and its order of additions, hence no fast arithmetic
but in the kernel.

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
SHRINK_EVERY = 1000  # steps at most between two attempts to shrink: libsvm's
STEPS = 10_000_000  # at most: libsvm's
LOWEST = -104.0  # float32 has nothing but 0 for exp of less
SQUARINGS = 8  # exp(x) = exp(x / 2**8) ** 2**8
SERIES = tuple(1 / factorial(order) for order in range(10, -1, -1))  # of exp, highest order first


class DualProblem(NamedTuple):
    """One voxel's problem, as far as it is solved. Shrinking moves samples to other places.

    Parameters
    ----------
    samples : ndarray, (n, features)
        Any unit.
    gamma : float
        Of the kernel exp(-gamma * squared distance).
    kernel : ndarray, (n, n)
        Rows that were never asked for hold nothing yet.
    known : ndarray of bool, (n,)
        Which rows of the kernel are there.
    alpha : ndarray, (n,)
        Coefficients, 0 to 1.
    gradient : ndarray, (n,)
        kernel @ alpha; kept up to date for active samples only.
    full : ndarray, (n,)
        What the coefficients that are 1 contribute to the gradient.
    origin : ndarray, (n,)
        The place that each sample had at first.
    """

    samples: Floats
    gamma: float
    kernel: Singles
    known: NDArray[np.bool_]
    alpha: Floats
    gradient: Floats
    full: Floats
    origin: Integers


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
    points, kernel = np.empty((n, features)), np.empty((n, n), np.float32)
    known, origin = np.empty(n, np.bool_), np.empty(n, np.int64)
    alpha, gradient, full = np.empty(n), np.empty(n), np.empty(n)
    for voxel in range(voxels):
        _copy(samples[voxel], points)
        problem = DualProblem(points, gammas[voxel], kernel, known, alpha, gradient, full, origin)
        _begin(problem, nu)
        _solve(problem, tolerance)
        offsets[voxel] = _offset(problem)
        for place in range(n):
            alphas[voxel, origin[place]] = alpha[place]
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
    points, kernel = np.empty((n, features)), np.empty(n)
    for voxel in range(voxels):
        _copy(samples[voxel], points)
        for which in range(machines.starts[voxel], machines.starts[voxel + 1]):
            for sample in range(n):
                kernel[sample] = _squared_distance(machines.support[which], points[sample])
            _exponentiate(kernel, -machines.gammas[voxel])
            for sample in range(n):
                scores[voxel, sample] += machines.coefficients[which] * kernel[sample]
    return scores


@njit
def _copy(values: Singles, into: Floats) -> None:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            into[row, column] = values[row, column]


@njit(fastmath={"reassoc", "contract"})
def _variance(values: Singles) -> float:
    """Pass twice, in float64, so that an offset takes no digits away."""
    mean, squares = 0.0, 0.0
    for place in range(values.size):
        mean += values[place]
    mean /= values.size
    for place in range(values.size):
        squares += (values[place] - mean) ** 2
    return squares / values.size


@njit(fastmath={"reassoc", "contract"})
def _squared_distance(one: Floats, other: Floats) -> float:
    """Sum squared differences: scalar products would keep few digits where an offset is large."""
    total = 0.0
    for feature in range(one.size):
        difference = one[feature] - other[feature]
        total += difference * difference
    return total


@njit(fastmath={"contract"})
def _exponentiate(values: Floats, factor: float) -> None:
    """Replace values by exp(factor * value), where factor * value <= 0.

    By its series, so that the compiler takes several values at once. The relative error is below
    1e-13, and below 1e-9 where the result is less than 1e-20.
    """
    for place in range(values.size):
        x = max(factor * values[place], LOWEST) / 2**SQUARINGS
        result = 0.0
        for coefficient in SERIES:
            result = result * x + coefficient
        for _ in range(SQUARINGS):
            result *= result
        values[place] = result


@njit
def _row(problem: DualProblem, place: int) -> Singles:
    """Give the kernel between one sample and all."""
    if not problem.known[place]:
        _compute_row(problem, place)
    return problem.kernel[place]


@njit
def _compute_row(problem: DualProblem, place: int) -> None:
    """Compute a row of the kernel, but for what other rows tell of it."""
    samples, kernel, known = problem.samples, problem.kernel, problem.known
    row = np.zeros(known.size)
    for other in range(known.size):
        if not known[other]:
            row[other] = _squared_distance(samples[place], samples[other])
    _exponentiate(row, -problem.gamma)
    for other in range(known.size):
        kernel[place, other] = kernel[other, place] if known[other] else row[other]
    known[place] = True


@njit
def _begin(problem: DualProblem, nu: float) -> None:
    """Fill the first coefficients up to 1, until their sum is nu * n; compute the gradient."""
    remaining = 0.0
    for place in range(problem.alpha.size):
        remaining += nu
        problem.origin[place] = place
        problem.known[place] = False
        problem.gradient[place] = 0
        problem.full[place] = 0
    for place in range(problem.alpha.size):
        problem.alpha[place] = min(1.0, remaining)
        remaining -= problem.alpha[place]
        if problem.alpha[place] > 0:
            _add(problem.gradient, problem.alpha[place], _row(problem, place), 0)
            _book(problem, place, 0.0)


@njit
def _add(values: Floats, factor: float, row: Singles, first: int) -> None:
    for place in range(first, values.size):
        values[place] += factor * row[place]


@njit
def _solve(problem: DualProblem, tolerance: float) -> None:
    """Move pairs of coefficients until no pair violates the conditions by the tolerance.

    Every so often, samples are set aside whose coefficients seem settled. They come back when the
    solution is near for the first time, and before it is believed.
    """
    n = problem.alpha.size
    active, countdown, near = n, min(n, SHRINK_EVERY) + 1, False
    for _ in range(STEPS):
        countdown -= 1
        if countdown == 0:
            countdown = min(n, SHRINK_EVERY)
            rise, fall = _slopes(problem, active)
            if not near and rise + fall <= 10 * tolerance:
                _restore(problem, active)
                active, near = n, True
            active = _set_aside(problem, active, rise, fall)
        rising, falling = _choose(problem, active, tolerance)
        if falling < 0:
            _restore(problem, active)
            active, countdown = n, 1
            rising, falling = _choose(problem, active, tolerance)
        if falling < 0:
            return
        _move(problem, active, rising, falling)
    _restore(problem, active)


@njit
def _slopes(problem: DualProblem, active: int) -> tuple[float, float]:
    """Give the steepest ways of raising and of lowering one coefficient."""
    rise, fall = -np.inf, -np.inf
    for place in range(active):
        if problem.alpha[place] < 1:
            rise = max(rise, -problem.gradient[place])
        if problem.alpha[place] > 0:
            fall = max(fall, problem.gradient[place])
    return rise, fall


@njit
def _choose(problem: DualProblem, active: int, tolerance: float) -> tuple[int, int]:
    """Choose the coefficient to raise and the one to lower; -1, -1 at the solution."""
    alpha, gradient = problem.alpha, problem.gradient
    rise, fall = _slopes(problem, active)
    if rise + fall < tolerance:
        return -1, -1
    rising = _last(problem, active, rise)
    row = _row(problem, rising)
    falling, largest = -1, -np.inf
    for place in range(active):
        slope = rise + gradient[place]
        if alpha[place] > 0 and slope > 0:
            gain = slope * slope / max(2.0 - 2.0 * row[place], FLATTEST)
            if gain >= largest:
                falling, largest = place, gain
    return rising, falling


@njit
def _last(problem: DualProblem, active: int, rise: float) -> int:
    """Find the last coefficient to raise that is as steep as the steepest."""
    for place in range(active - 1, -1, -1):
        if problem.alpha[place] < 1 and -problem.gradient[place] == rise:
            return place
    return -1


@njit
def _move(problem: DualProblem, active: int, rising: int, falling: int) -> None:
    """Take the best step along one pair, within 0 to 1, and bring the gradient up to date."""
    alpha, gradient = problem.alpha, problem.gradient
    up, down = _row(problem, rising), _row(problem, falling)
    before_up, before_down = alpha[rising], alpha[falling]
    step = (gradient[falling] - gradient[rising]) / max(2.0 - 2.0 * up[falling], FLATTEST)
    alpha[rising], alpha[falling] = _clip(
        before_up + step, before_down - step, before_up + before_down
    )
    raised, lowered = alpha[rising] - before_up, alpha[falling] - before_down
    for place in range(active):
        gradient[place] += up[place] * raised + down[place] * lowered
    _book(problem, rising, before_up)
    _book(problem, falling, before_down)


@njit
def _clip(one: float, other: float, total: float) -> tuple[float, float]:
    """Bring a pair of coefficients, the first raised, back into 0 to 1; their sum is kept."""
    if total > 1 and one > 1:
        return 1.0, total - 1
    if total <= 1 and other < 0:
        return total, 0.0
    return one, other


@njit(inline="always")  # each call would hand on all arrays, and mostly for nothing
def _book(problem: DualProblem, place: int, before: float) -> None:
    """Keep account of what the coefficients that are 1 contribute to the gradient."""
    change = (problem.alpha[place] >= 1) - (before >= 1)
    if change != 0:
        _add(problem.full, float(change), _row(problem, place), 0)


@njit
def _set_aside(problem: DualProblem, active: int, rise: float, fall: float) -> int:
    """Move samples whose coefficients seem settled behind the others; tell how many these are."""
    for place in range(active):
        if place < active and _is_settled(problem, place, rise, fall):
            active -= 1
            while active > place and _is_settled(problem, active, rise, fall):
                active -= 1
            _swap(problem, place, active)
    return active


@njit
def _is_settled(problem: DualProblem, place: int, rise: float, fall: float) -> bool:
    """Tell whether a coefficient is at a bound, and every pair would press it further there."""
    alpha, gradient = problem.alpha[place], problem.gradient[place]
    return -gradient > rise if alpha >= 1 else alpha <= 0 and gradient > fall


@njit
def _restore(problem: DualProblem, active: int) -> None:
    """Compute the gradient of the samples that were set aside."""
    if active == problem.alpha.size:
        return
    for place in range(active, problem.alpha.size):
        problem.gradient[place] = problem.full[place]
    for place in range(active):
        if 0 < problem.alpha[place] < 1:
            _add(problem.gradient, problem.alpha[place], _row(problem, place), active)


@njit
def _swap(problem: DualProblem, one: int, other: int) -> None:
    """Let two samples change places."""
    samples, kernel, n = problem.samples, problem.kernel, problem.alpha.size
    for column in range(samples.shape[1]):
        samples[one, column], samples[other, column] = samples[other, column], samples[one, column]
    for place in range(n):
        kernel[one, place], kernel[other, place] = kernel[other, place], kernel[one, place]
    for place in range(n):
        kernel[place, one], kernel[place, other] = kernel[place, other], kernel[place, one]
    for values in (problem.alpha, problem.gradient, problem.full):
        values[one], values[other] = values[other], values[one]
    known, origin = problem.known, problem.origin
    known[one], known[other] = known[other], known[one]
    origin[one], origin[other] = origin[other], origin[one]


@njit
def _offset(problem: DualProblem) -> float:
    """Give rho: the gradient where 0 < alpha < 1, or else the middle of where it may be."""
    free, total, least, most = 0, 0.0, -np.inf, np.inf
    for place in range(problem.alpha.size):
        gradient = problem.gradient[place]
        if problem.alpha[place] >= 1:
            least = max(least, gradient)
        elif problem.alpha[place] <= 0:
            most = min(most, gradient)
        else:
            free += 1
            total += gradient
    if free:
        return total / free
    return least if most == np.inf else (least + most) / 2  # nu is 1: libsvm gives infinity
