"""Voxelwise one-class support vector machines, which score how much people differ from controls."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from bids_app.detection import smo
from bids_app.detection.smo import Floats, Integers, Machines, Singles

AT_ONCE = 256  # voxels per task of a thread; our choice
DIMENSIONS = 3  # voxels, samples, features
FEWEST = 2  # samples; with fewer, there is nothing to optimise
Answer = TypeVar("Answer")


class VoxelwiseOneClassSVM:
    """Independent RBF one-class SVMs, one per voxel, equivalent to ``sklearn.svm.OneClassSVM``.

    Decision values are within 1e-5 of scikit-learn's if that uses the same tolerance or a finer
    one; at its default of 1e-3, its own values vary by 5e-4 with rounding.

    Parameters
    ----------
    nu : float
        Upper bound on the share of training samples outside the boundary, above 0 and up to 1.
        The default is our choice.
    gamma : "scale" or float
        Parameter of the kernel exp(-gamma * squared distance). "scale" is 1 / (features * variance
        of all entries) in each voxel, and 1 if nothing varies.
    tol : float
        Tolerance of the stopping criterion, in units of the score; scikit-learn's default is 1e-3.
        Ours, 1e-5, takes a tenth more time, and makes results equal across machines up to this
        tolerance.
    threads : int, optional
        Number of threads that share the voxels, which does not affect results. By default, the
        number of CPUs available to this process.

    Attributes
    ----------
    n_support_ : ndarray, (voxels,)
        Number of support vectors per voxel.
    support_ : ndarray, (total,)
        Indices of the support vectors among the training samples, voxel by voxel; not available
        after :meth:`from_support`.
    support_vectors_ : ndarray, (total, features)
        Support vectors in the same order, float32.
    dual_coef_ : ndarray, (total,)
        Coefficients of the support vectors, above 0 and up to 1; their sum in each voxel is
        nu * samples.
    gamma_, offset_ : ndarray, (voxels,)
        Gamma of the kernel; score on the boundary.

    Examples
    --------
    >>> latents = np.random.default_rng(0).normal(size=(5, 20, 3)).astype(np.float32)
    >>> detector = VoxelwiseOneClassSVM(nu=0.2, threads=1).fit(latents)
    >>> near, far = detector.decision_function(latents[:, :2] + [[0], [9]]).T
    >>> bool((near > far).all())
    True
    """

    n_support_: Integers
    support_: NDArray[np.int32]
    support_vectors_: Singles
    dual_coef_: Floats
    gamma_: Floats
    offset_: Floats

    def __init__(
        self,
        *,
        nu: float = 0.03,
        gamma: float | str = "scale",
        tol: float = 1e-5,
        threads: int | None = None,
    ) -> None:
        self.nu = nu
        self.gamma = gamma
        self.tol = tol
        self.threads = threads

    @classmethod
    def from_support(
        cls,
        support_vectors: NDArray[np.floating],
        dual_coef: NDArray[np.floating],
        n_support: NDArray[np.integer],
        *,
        gamma: NDArray[np.floating],
        offset: NDArray[np.floating],
        threads: int | None = None,
    ) -> Self:
        """Create a fitted estimator from the stored attributes of another.

        Parameters
        ----------
        support_vectors, dual_coef : ndarray, (total, features) and (total,)
            ``support_vectors_`` and ``dual_coef_``, of any precision.
        n_support, gamma, offset : ndarray, (voxels,)
            ``n_support_``, ``gamma_`` and ``offset_``.
        threads : int, optional
            Number of threads, as for the class.

        Raises
        ------
        ValueError
            If a support vector is not finite, or if sizes do not match.
        """
        estimator = cls(threads=threads)
        estimator.n_support_ = np.asarray(n_support, np.int64)
        estimator.support_vectors_ = _finite(support_vectors)
        estimator.dual_coef_ = np.asarray(dual_coef, np.float64)
        estimator.gamma_ = np.asarray(gamma, np.float64)
        estimator.offset_ = np.asarray(offset, np.float64)
        total = int(estimator.n_support_.sum())
        if not len(estimator.support_vectors_) == len(estimator.dual_coef_) == total:
            raise ValueError(f"voxels need {total} support vectors and as many coefficients")
        if not len(estimator.n_support_) == len(estimator.gamma_) == len(estimator.offset_):
            raise ValueError("voxels need a number of support vectors, a gamma and an offset each")
        return estimator

    def fit(self, latents: ArrayLike) -> Self:
        """Fit the boundary of each voxel.

        Parameters
        ----------
        latents : array-like, (voxels, samples, features)
            Latents of the controls; converted to float32. The support vectors are copied.

        Returns
        -------
        VoxelwiseOneClassSVM
            Fitted estimator (self).

        Raises
        ------
        ValueError
            If a setting is out of range, the array does not have three dimensions, there are fewer
            than two samples or no features, or a value is masked, complex or not finite.
        """
        self._check_settings()
        latents = _array(latents)
        voxels, samples, features = latents.shape
        if samples < FEWEST:
            raise ValueError(f"a boundary needs at least {FEWEST} samples, not {samples}")

        def solve(part: slice) -> tuple[Floats, Floats, Floats]:
            piece = _finite(latents[part])
            if isinstance(self.gamma, str):
                gammas = smo.scale(piece)
            else:
                gammas = np.full(len(piece), self.gamma, np.float64)
            return gammas, *smo.fit(piece, gammas, float(self.nu), float(self.tol))

        parts = zip(*self._share(solve, voxels), strict=True)
        self.gamma_, alphas, self.offset_ = (np.concatenate(pieces) for pieces in parts)
        supporting = alphas > 0
        self.n_support_ = supporting.sum(axis=1)
        self.support_ = np.nonzero(supporting)[1].astype(np.int32)
        self.support_vectors_ = np.empty((len(self.support_), features), np.float32)
        self.dual_coef_ = alphas[supporting]
        starts = self._starts()

        def copy_support(part: slice) -> None:
            entries = slice(starts[part.start], starts[part.stop])
            self.support_vectors_[entries] = latents[part][supporting[part]]

        self._share(copy_support, voxels)
        return self

    def score_samples(self, latents: ArrayLike) -> Floats:
        """Compute the similarity of samples to the controls.

        Parameters
        ----------
        latents : array-like, (voxels, samples, features)
            Latents of the voxels used in :meth:`fit`, in the same order.

        Returns
        -------
        ndarray, (voxels, samples)
            Weighted sum of the kernels with the support vectors; 0 or more.

        Raises
        ------
        ValueError
            If the estimator is not fitted, the number of voxels or features differs from that in
            :meth:`fit`, or a value is masked, complex or not finite.
        """
        if not hasattr(self, "offset_"):
            raise ValueError("this one-class SVM must be fitted before it can score")
        latents = _array(latents)
        voxels, _, features = latents.shape
        learned = len(self.offset_), self.support_vectors_.shape[1]
        if (voxels, features) != learned:
            raise ValueError(
                f"{voxels} voxels with {features} features do not fit the {learned[0]} with "
                f"{learned[1]} of the training"
            )
        starts = self._starts()

        def score(part: slice) -> Floats:
            bounds = starts[part.start : part.stop + 1]
            machines = Machines(self.support_vectors_, self.dual_coef_, bounds, self.gamma_[part])
            return smo.score(machines, _finite(latents[part]))

        return np.concatenate(self._share(score, voxels))

    def decision_function(self, latents: ArrayLike) -> Floats:
        """Return :meth:`score_samples` minus ``offset_``: below 0 outside the boundary."""
        return self.score_samples(latents) - self.offset_[:, np.newaxis]

    def _check_settings(self) -> None:
        if not 0 < self.nu <= 1:
            raise ValueError(f"nu must be above 0 and at most 1, not {self.nu}")
        if not 0 < self.tol < math.inf:
            raise ValueError(f"tol must be finite and above 0, not {self.tol}")
        number = 1.0 if self.gamma == "scale" else self.gamma
        if isinstance(number, str) or not 0 < number < math.inf:
            raise ValueError(f"gamma must be 'scale' or a number above 0, not {self.gamma}")

    def _starts(self) -> Integers:
        """Return the offset of each voxel in ``support_vectors_``, and the end of the last one."""
        return np.append(0, np.cumsum(self.n_support_))

    def _share(self, work: Callable[[slice], Answer], voxels: int) -> list[Answer]:
        """Process pieces of the voxels in threads; results are in order."""
        threads = len(os.sched_getaffinity(0)) if self.threads is None else self.threads
        if threads < 1:
            raise ValueError(f"at least 1 thread is needed, not {threads}")
        return share(work, voxels, threads)


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def share(work: Callable[[slice], Answer], voxels: int, threads: int) -> list[Answer]:
    """Process pieces of voxels in threads, with single-threaded BLAS in each; results are in order.

    Parameters
    ----------
    work : callable
        Function of a piece, given as a slice; called with an empty slice if there are no voxels.
    voxels : int
        Number of voxels.
    threads : int
        Number of threads, which does not affect results.
    """
    parts = [slice(k, min(k + AT_ONCE, voxels)) for k in range(0, max(voxels, 1), AT_ONCE)]
    with _libraries().limit(limits=1, user_api="blas"):
        if threads == 1:
            return [work(part) for part in parts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, parts))


def _array(latents: ArrayLike) -> NDArray[np.floating]:
    """Convert latents to an array, without copying or reading one that is memory-mapped."""
    if np.ma.is_masked(latents):
        raise ValueError("some of the values are masked")
    array = np.asarray(latents)
    if array.ndim != DIMENSIONS or array.shape[2] == 0:
        raise ValueError(f"latents must be (voxels, samples, features), not {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"latents must be real numbers, not {array.dtype}")
    return array


def _finite(values: NDArray[np.floating]) -> Singles:
    singles = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(singles).all():
        raise ValueError("some of the values are not finite: NaN, or infinite as float32")
    return singles
