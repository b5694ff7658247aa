"""The methods paragraph of the group level, ready for a paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bids_app.report.detected import Detected
from bids_app.report.methods import CLOSING, REFERENCES, tell_tool, with_references
from bids_app.report.training_methods import MORE_REFERENCES

GROUP_REFERENCES: Final = REFERENCES.with_name("group_references.toml")


@dataclass(frozen=True)
class Procedure:
    """What the paragraph depends on.

    Parameters
    ----------
    versions : dict
        Distribution → version; what is missing is left out.
    detectors : sequence of str
        ``ocsvm``, ``zscore``, ``pseudonormal``.
    training : sequence of str
        Whom each training set holds, as words: ``"real (35 controls, all with real PET)"``.
    synthetic : bool
        Some of the controls have synthetic PET.
    grids : sequence of str
        Of the images.
    folds : str
        How many; empty if unknown.
    numbers : dict
        Settings and parameters of the detectors by name: ``nu``, ``cluster_extent`` …
    evaluated, tested, free : bool
        Lesions are known; detectors were tested against one another; there is a free-response
        curve.
    """

    versions: Mapping[str, str]
    detectors: Sequence[str] = ()
    training: Sequence[str] = ()
    synthetic: bool = False
    grids: Sequence[str] = ()
    folds: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)
    evaluated: bool = False
    tested: bool = False
    free: bool = False

    def tell(self, *names: str) -> str:
        """Give the first number that is known by one of these names; empty if none is."""
        return next((self.numbers[name] for name in names if self.numbers.get(name)), "")


def procedure_of(
    detected: Detected, versions: Mapping[str, str], settings: Mapping[str, str]
) -> Procedure:
    """Read from tables, cards and settings what was done."""
    cards = list(detected.cards.values())
    parameters = {
        key.rpartition(".")[2]: value for card in cards for key, value in card.parameters.items()
    }
    return Procedure(
        versions=versions,
        detectors=tuple(dict.fromkeys(one.detector for one in detected.detectors)),
        training=[
            f"{card.training_set} ({card.real} controls with real PET, {card.synthetic} with "
            "synthetic PET)"
            for card in cards
        ],
        synthetic=any(card.synthetic for card in cards),
        grids=list(dict.fromkeys(card.grid for card in cards if card.grid)),
        folds=next((card.folds for card in cards if card.folds), ""),
        numbers={**settings, **parameters},
        evaluated=bool(detected.curve),
        tested=any(one.p is not None for one in detected.comparisons),
        free=bool(detected.responses),
    )


def boilerplate(procedure: Procedure) -> str:
    """Write the methods paragraph and the references it cites, as plain text.

    Examples
    --------
    >>> text = boilerplate(Procedure(versions={"mri2pet": "0.1.0"}))
    >>> text.startswith("Anomalies of FDG PET were mapped with mri2pet 0.1.0")
    True
    """
    detectors = {"ocsvm": _ocsvm, "zscore": _zscore, "pseudonormal": _pseudonormal}
    told = [write(procedure) for name, write in detectors.items() if name in procedure.detectors]
    paragraphs = [_opening(procedure), *told, _clusters(procedure)]
    if procedure.evaluated:
        paragraphs.append(_evaluation(procedure))
    body = "\n\n".join([*paragraphs, CLOSING])
    return with_references(body, REFERENCES, MORE_REFERENCES, GROUP_REFERENCES)


def _opening(procedure: Procedure) -> str:
    versions = procedure.versions
    grid = f" ({'; '.join(procedure.grids)})" * bool(procedure.grids)
    sets = f" The training sets were: {'; '.join(procedure.training)}." * bool(procedure.training)
    synthetic = (
        " Synthetic PET was predicted from T1-weighted images (Zotova et al., 2021) and was used "
        "for training only: no synthetic image was scored as a healthy person's."
    )
    folds = f"{procedure.folds} folds" if procedure.folds else "folds"
    return (
        f"Anomalies of FDG PET were mapped with {tell_tool(versions, 'mri2pet', 'mri2pet')}, a "
        "BIDS App (Gorgolewski et al., 2017) after the method of Zotova and colleagues (Zotova et "
        f"al., 2021). Steps were run by {tell_tool(versions, 'nipype', 'nipype')} (Gorgolewski et "
        "al., 2011); images were read and written with "
        f"{tell_tool(versions, 'nibabel', 'nibabel')} (Brett et al., 2024). PET lay in the space "
        f"of the template{grid} and was scaled to 0..1.{sets}{synthetic * procedure.synthetic} "
        f"Controls were divided into {folds}. Detectors were trained in each fold without the "
        "controls it leaves out; these were scored by that fold alone, and the map of a patient "
        "is the mean over folds."
    )


def _ocsvm(procedure: Procedure) -> str:
    versions = procedure.versions
    nu, patch = procedure.tell("nu"), procedure.tell("patch")
    told = f" and nu {nu}" * bool(nu)
    size = f" of {patch}×{patch} voxels" * bool(patch)
    return (
        "OC-SVM: a siamese convolutional autoencoder (Alaverdyan et al., 2020), written in "
        f"{tell_tool(versions, 'PyTorch', 'torch')} (Paszke et al., 2019), was trained on pairs of "
        f"axial patches{size} from the same place in two controls, to reconstruct both and to "
        "make their latents alike. At every voxel a one-class support vector machine "
        f"(Schölkopf et al., 2001) with a radial basis function kernel{told} was fitted to the "
        "latents of the controls, with the stopping rule of LIBSVM (Chang and Lin, 2011) in a "
        f"solver compiled by {tell_tool(versions, 'numba', 'numba')} (Lam et al., 2015). The score "
        "is minus the decision function: above 0 lies outside the boundary of the controls that "
        "the machine was trained on, where much of the brain of a held-out control lies, too."
    )


def _zscore(procedure: Procedure) -> str:
    fwhm = procedure.tell("zscore_fwhm", "fwhm")
    smooth = f", smoothed by a Gaussian of {fwhm} mm FWHM," if fwhm else ", smoothed,"
    return (
        f"z score: the PET{smooth} was compared with that of controls voxel by voxel by the t for "
        "a single case (Crawford and Howell, 1998); less uptake scores higher."
    )


def _pseudonormal(_: Procedure) -> str:
    return (
        "Pseudo-normal: the difference between the synthetic PET that a generator predicts from "
        "a participant's own T1-weighted image (Zotova et al., 2021) and the real PET was compared "
        "with the same difference in controls by the t for a single case (Crawford and Howell, "
        "1998); less uptake than predicted scores higher."
    )


def _clusters(procedure: Procedure) -> str:
    extent = procedure.tell("cluster_extent", "extent")
    smallest = procedure.tell("min_cluster_size", "minimum_volume")
    most = procedure.tell("clusters", "most")
    share = f"a share of {extent}" if extent else "a fixed share"
    least = f" of at least {smallest} mm³" * bool(smallest)
    kept = f" The first {most} of a patient were kept." * bool(most)
    return (
        f"Each map was cut at the score that {share} of its brain exceeds, never below 0. "
        f"Clusters of 26-connected voxels{least} were ranked by the sum of their scores.{kept} "
        "Beside each stands how many clusters of at least that sum held-out controls have on "
        "average. Processing used "
        f"{tell_tool(procedure.versions, 'SciPy', 'scipy')} (Virtanen et al., 2020)."
    )


def _evaluation(procedure: Procedure) -> str:
    tests = (
        " Detectors were compared by McNemar's exact test (McNemar, 1947), two-tailed, adjusted "
        "over all pairs by the method of Holm (Holm, 1979)."
    )
    free = (
        " Free-response curves (Chakraborty, 1989) give sensitivity against the mean number of "
        "clusters in held-out controls."
    )
    return (
        "A lesion counted as found when a kept cluster shared a voxel with its mask, a patient "
        "when one of the lesions was found. Sensitivity is given with Wilson's 95 % interval "
        f"(Wilson, 1927).{tests * procedure.tested}{free * procedure.free}"
    )
