"""The methods paragraph: what was done, with which tool and version, ready for a paper.

The methods paragraph of the train level, ready for a paper.

The methods paragraph of the group level, ready for a paper.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bids_app.report.anomalies import Detected
from bids_app.report.cards import (
    UNKNOWN,
    Spec,
    TrainedModel,
    by_configuration,
    enumerate_words,
    grids_of,
    spec_of,
)
from bids_app.report.results import RealPet, Results, as_number, describe_extensions, folds_of
from bids_app.report.table1 import full_name_of

REFERENCES: Final = Path(__file__).parents[1] / "data" / "report" / "references.toml"
OWN_TEMPLATE: Final = "MNI152NLin2009aSym"  # the one that comes with nilearn
CLOSING: Final = (
    "This text was written by mri2pet and may be used freely; check it against what was done."
)


@dataclass(frozen=True)
class Procedure:
    """What the paragraph depends on.

    Parameters
    ----------
    versions : dict
        Distribution → version, as ``importlib.metadata`` names them; what is missing is left out.
    template : str
        Its name.
    resolution : str
        As file names spell it, in mm: ``"1"``, ``"1p5"``.
    skull_stripped : bool
        The input came without skull, so that no brain extraction was done.
    percentile : float
        Of the brain's intensities, the one that became 1.
    pet : bool
        There is a real PET.
    frames_averaged : bool
        A real PET had several frames.
    generator : dict
        ``Generator`` of a synthetic PET's sidecar; empty if none was made.
    fwhm : float or None
        By which the synthetic PET was smoothed, in mm.
    compared : bool
        The synthetic PET was measured against a real one.
    overlap, matched : bool
        Overlapping triplets were averaged; intensities were matched to the training controls'.
    folds : int
        Generators of folds whose predictions were compared; 0 if none were.
    novelty : bool
        The T1w was compared with those of the training controls.
    """

    versions: Mapping[str, str]
    template: str = OWN_TEMPLATE
    resolution: str = "1"
    skull_stripped: bool = False
    percentile: float = 99.9
    pet: bool = False
    frames_averaged: bool = False
    generator: Mapping[str, object] = field(default_factory=dict)
    fwhm: float | None = None
    compared: bool = False
    overlap: bool = False
    matched: bool = False
    folds: int = 0
    novelty: bool = False


def procedure_of(visits: Sequence[Results], versions: Mapping[str, str]) -> Procedure:
    """Read from the sidecars what was done."""
    space = next((visit.space for visit in visits if visit.space), f"{OWN_TEMPLATE}_res-1")
    moved = [visit.t1w_in_template for visit in visits if visit.t1w_in_template]
    pets = [pet for visit in visits for pet in visit.pets]
    synthetic = [visit.synthetic for visit in visits if visit.synthetic]
    first = synthetic[0].metadata if synthetic else {}
    generator = first.get("Generator")
    scaling = moved[0].metadata.get("IntensityScaling") if moved else None
    percentile = as_number(scaling.get("Percentile")) if isinstance(scaling, dict) else None
    return Procedure(
        versions=versions,
        template=space.partition("_res-")[0],
        resolution=space.partition("_res-")[2],
        skull_stripped=any(visit.t1w.metadata.get("SkullStripped") is True for visit in visits),
        percentile=99.9 if percentile is None else percentile,
        pet=bool(pets),
        frames_averaged=any(map(_had_frames, pets)),
        generator=generator if isinstance(generator, dict) else {},
        fwhm=as_number(first.get("SmoothingFWHM")),
        compared=any(bool(one.metadata.get("Measures")) for one in synthetic),
        overlap=first.get("OverlappingTripletsAveraged") is True,
        matched=bool(first.get("HistogramMatchedTo")),
        folds=max((len(folds_of(visit)) for visit in visits), default=0),
        novelty=any(bool(one.metadata.get("Novelty")) for one in synthetic),
    )


def boilerplate(procedure: Procedure) -> str:
    """Write the methods paragraph and the references it cites, as plain text.

    Examples
    --------
    >>> text = boilerplate(Procedure(versions={"mri2pet": "0.1.0"}))
    >>> text.startswith("Results were obtained with mri2pet 0.1.0")
    True
    """
    paragraphs = [_opening(procedure), _anatomy(procedure)]
    if procedure.pet:
        paragraphs.append(_pet(procedure))
    if procedure.generator:
        paragraphs.append(_synthesis(procedure))
    paragraphs.append(CLOSING)
    body = "\n\n".join(paragraphs)
    return with_references(body, REFERENCES)


def _had_frames(pet: RealPet) -> bool:
    frames = pet.get("FramesUsed")
    return isinstance(frames, list) and len(frames) > 1


def with_references(body: str, *listings: Path) -> str:
    """Add the references that a text cites.

    Parameters
    ----------
    body : str
        A reference is cited where its key stands.
    listings : Path
        TOML files: key → reference.
    """
    listed = [item for path in listings for item in _read(path).items()]
    cited = sorted(text for key, text in listed if key in body)
    return f"{body}\n\nReferences\n\n" + "\n".join(f"- {text}" for text in cited) + "\n"


def _read(path: Path) -> dict[str, str]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def cite_tool(versions: Mapping[str, str], name: str, distribution: str) -> str:
    """Name a tool with its version, if that is known."""
    return f"{name} {versions.get(distribution, '')}".strip()


def _tool(procedure: Procedure, name: str, distribution: str) -> str:
    return cite_tool(procedure.versions, name, distribution)


def _opening(procedure: Procedure) -> str:
    standards = "Gorgolewski et al., 2016" + "; Norgaard et al., 2022" * procedure.pet
    return (
        f"Results were obtained with {_tool(procedure, 'mri2pet', 'mri2pet')}, a BIDS App "
        f"(Gorgolewski et al., 2017) after the method of Zotova and colleagues (Zotova et al., "
        f"2021). Its input follows the Brain Imaging Data Structure ({standards}). Steps were run "
        f"by {_tool(procedure, 'nipype', 'nipype')} (Gorgolewski et al., 2011); images were read "
        f"and written with {_tool(procedure, 'nibabel', 'nibabel')} (Brett et al., 2024)."
    )


def _anatomy(procedure: Procedure) -> str:
    ants = f"ANTs ({_tool(procedure, 'antspyx', 'antspyx')})"
    brain = (
        "The T1-weighted (T1w) image came without skull, and its own extent was taken as the brain"
        if procedure.skull_stripped
        else "The brain was extracted from the T1-weighted (T1w) image with "
        f"{_tool(procedure, 'deepbet', 'deepbet')} (Fisch et al., 2024)"
    )
    source = (
        "Fonov et al., 2009), as distributed with "
        f"{_tool(procedure, 'nilearn', 'nilearn')} (Abraham et al., 2014)"
        if procedure.template == OWN_TEMPLATE
        else "TemplateFlow; Ciric et al., 2022)"
    )
    size = procedure.resolution.replace("p", ".")
    return (
        f"{brain}. Intensity non-uniformity was corrected with N4 (Tustison et al., 2010) and the "
        f"brain was registered to the template {procedure.template} ({source} by rigid, affine and "
        f"symmetric diffeomorphic (SyN) registration (Avants et al., 2008), both in {ants}. The "
        f"image was resampled to {size} mm isotropic voxels, divided by the "
        f"{procedure.percentile:g}th percentile of its brain, clipped to 0..1, and set to 0 "
        "outside of the brain. Registrations were judged by normalized mutual information "
        "(Studholme et al., 1999) before and after, by the Dice overlap of the brain masks, by "
        "correlation with the template deep in the brain, and by a search of all directions."
    )


def _pet(procedure: Procedure) -> str:
    frames = "Frames of the FDG PET were averaged, each weighted by its duration. "
    return frames * procedure.frames_averaged + (
        "The FDG PET was registered rigidly to the T1w image of the same participant by mutual "
        "information, from more than one start. It was carried into the space of the template "
        "along the transforms of the T1w image, resampled once, and scaled as the T1w image was."
    )


def _beyond(procedure: Procedure) -> str:
    return describe_extensions(
        overlap=procedure.overlap, matched=procedure.matched,
        folds=procedure.folds, novelty=procedure.novelty,
    )  # fmt: skip


def _synthesis(procedure: Procedure) -> str:
    told = procedure.generator
    name = " ".join(str(told[key]) for key in ("Name", "Version") if told.get(key))
    source = str(told.get("TrainedOn", "unknown images")).rstrip(".")
    smoothed = (
        ""
        if procedure.fwhm is None
        else (f" The predicted image was smoothed by a Gaussian of {procedure.fwhm:g} mm FWHM.")
    )
    compared = (
        " Synthetic and real PET were compared by peak signal-to-noise ratio and structural "
        "similarity (Wang et al., 2004), in the whole volume and inside the brain."
    )
    return (
        "A synthetic FDG PET was predicted from the T1w image in the space of the template by the "
        f"generator {name} (SHA-256 {told.get('SHA256', 'unknown')}), a convolutional network "
        "as Zhu et al., 2017, describe it, trained adversarially (Zotova et al., 2021), in "
        f"{_tool(procedure, 'PyTorch', 'torch')} (Paszke et al., 2019). It was trained on: "
        f"{source}.{smoothed}{_beyond(procedure)}"
        f"{compared * procedure.compared} A synthetic PET is no measurement of metabolism."
    )


MORE_REFERENCES: Final = REFERENCES.with_name("training_references.toml")


@dataclass(frozen=True)
class TrainingProcedure:
    """What the paragraph depends on.

    Parameters
    ----------
    versions : dict
        Distribution → version; what is missing is left out.
    specs : dict
        Name of a model → its spec.
    controls : int
        Participants that were scored.
    folds : sequence of int
        How many each fold left out.
    grids : sequence of str
        Of the images.
    fwhm : float or None
        By which synthetic PET was smoothed, in mm.
    lpips, tested : bool
        LPIPS was measured; rows were tested against one another.
    """

    versions: Mapping[str, str]
    specs: Mapping[str, Spec]
    controls: int = 0
    folds: Sequence[int] = ()
    grids: Sequence[str] = ()
    fwhm: float | None = None
    lpips: bool = False
    tested: bool = False


def training_procedure(
    trained: TrainedModel, versions: Mapping[str, str], fwhm: float | None
) -> TrainingProcedure:
    """Read from tables and cards what was done."""
    return TrainingProcedure(
        versions=versions,
        specs={
            full_name_of(model): spec_of(trained.cards.get(model, {})) for model in trained.models
        },
        controls=len(trained.participants),
        folds=tuple(trained.folds.values()),
        grids=grids_of(trained),
        fwhm=fwhm,
        lpips=any(row.means["lpips"] is not None for row in trained.rows),
        tested=any(one.p is not None for one in trained.comparisons),
    )


def training_boilerplate(procedure: TrainingProcedure) -> str:
    """Write the methods paragraph and the references it cites, as plain text.

    Examples
    --------
    >>> text = boilerplate(Procedure(versions={"mri2pet": "0.1.0"}, specs={}))
    >>> text.startswith("Generators of synthetic FDG PET were trained with mri2pet 0.1.0")
    True
    """
    parts = (
        (_training_opening, _models, _losses, _optimization)
        if procedure.specs
        else (_training_opening,)
    )
    paragraphs = [part(procedure) for part in (*parts, _validation, _measures)]
    body = "\n\n".join([*paragraphs, CLOSING])
    return with_references(body, REFERENCES, MORE_REFERENCES)


def _tell(procedure: TrainingProcedure, key: str) -> str:
    """Tell a number of the specs."""
    return by_configuration(procedure.specs, lambda spec: spec.tell(key))


def _training_opening(procedure: TrainingProcedure) -> str:
    versions = procedure.versions
    grid = f" ({'; '.join(procedure.grids)})" * bool(procedure.grids)
    who = f"{procedure.controls} controls" if procedure.controls else "controls"
    return (
        "Generators of synthetic FDG PET were trained with "
        f"{cite_tool(versions, 'mri2pet', 'mri2pet')}, a BIDS App (Gorgolewski et al., 2017) after "
        "the method of Zotova and colleagues (Zotova et al., 2021), in "
        f"{cite_tool(versions, 'PyTorch', 'torch')} (Paszke et al., 2019). Steps were run by "
        f"{cite_tool(versions, 'nipype', 'nipype')} (Gorgolewski et al., 2011); images were read "
        f"and written with {cite_tool(versions, 'nibabel', 'nibabel')} (Brett et al., 2024). Pairs "
        f"of T1-weighted (T1w) image and FDG PET of {who} were used in the space of the template"
        f"{grid}, scaled to 0..1, and 0 outside of the brain."
    )


def _models(procedure: TrainingProcedure) -> str:
    specs = procedure.specs
    told = [f"The models were: {', '.join(specs)}."]
    kinds = {spec.tiles for spec in specs.values()}
    if "semi3d" in kinds:
        told.append("Semi-3D models see three adjacent transverse slices, one to a channel.")
    told += dict.fromkeys(_cubes(spec) for spec in specs.values() if spec.tiles == "patch3d")
    told.append(
        "Generators are residual networks (He et al., 2016; Zhu et al., 2017) of "
        f"{_tell(procedure, 'n_blocks')} residual blocks, with "
        f"{_tell(procedure, 'width')} feature maps after the first "
        "convolution; discriminators are PatchGANs (Isola et al., 2017)."
    )
    return " ".join(told)


def _cubes(spec: Spec) -> str:
    drawn = spec.numbers.get("tiles_per_volume", 0)
    some = f", {drawn:g} of them drawn anew from each brain in every epoch" * bool(drawn)
    size, stride = (UNKNOWN if n is None else f"{n:g}" for n in (spec.size, spec.stride))
    return (
        f"3D-patch models see cubes with edges of {size} voxels, at a stride of {stride}{some}; "
        "only the centres of the cubes that they predict are kept."
    )


def _losses(procedure: TrainingProcedure) -> str:
    weights = "; ".join(f"{name}: {spec.losses()}" for name, spec in procedure.specs.items())
    return (
        "Let t be a T1w image, y its PET, x = G(t) the synthetic PET of the generator G, and D a "
        "discriminator. By least squares (Mao et al., 2017), discriminators minimize "
        "E[D(x)²] + E[(D(y) − 1)²], and generators E[(D(x) − 1)²] (equation 1 of Zotova et al., "
        "2021). Models with MSE loss add E[(x − y)²] (equation 2). Cycle-GAN models also have a "
        "generator F from PET to T1w with a discriminator of its own, and add "
        "E[|F(G(t)) − t|] + E[|G(F(y)) − y|] (equation 3; Zhu et al., 2017); their MSE loss counts "
        f"in both directions. These terms were weighted as follows. {weights}. The weights are "
        "those of mri2pet: Zotova and colleagues give none."
    )


def _optimization(procedure: TrainingProcedure) -> str:
    def schedule(spec: Spec) -> str:
        whole, constant = (spec.numbers.get(key) for key in ("epochs", "constant_epochs"))
        falls = whole is not None and constant is not None and constant < whole
        fall = f", constant for {constant:g} and then falling linearly to 0" if falls else ""
        return f"at most {spec.tell('epochs')} epochs{fall}"

    beta1, beta2, batch, rate, pool = (
        _tell(procedure, key)
        for key in ("beta1", "beta2", "batch_size", "learning_rate", "pool_size")
    )
    return (
        f"Networks were trained with Adam (Kingma and Ba, 2015; β₁ {beta1}, β₂ {beta2}) in batches "
        f"of {batch}, at a learning rate of {rate} for "
        f"{by_configuration(procedure.specs, schedule)}. Discriminators were shown earlier "
        f"synthetic images, too, from a pool of {pool} (Zhu et al., 2017)."
    )


def _validation(procedure: TrainingProcedure) -> str:
    folds = ""
    if procedure.folds:
        sizes = enumerate_words([str(size) for size in procedure.folds])
        folds = f" of {len(procedure.folds)} folds, which left out {sizes} controls"
    fwhm = procedure.fwhm
    smoothed = (
        "" if fwhm is None else f" Synthetic PET was smoothed by a Gaussian of {fwhm:g} mm FWHM."
    )
    patience = ""
    if any("patience" in spec.numbers for spec in procedure.specs.values()):
        epochs = _tell(procedure, "patience")
        patience = f"; training stopped early after {epochs} epochs without a gain"
    return (
        f"Models were cross-validated over participants in a scheme{folds}: nobody was scored by a "
        "network that had been trained on their images. Of each fold the epoch was kept whose "
        "synthetic PET had the highest structural similarity (SSIM; Wang et al., 2004) to the real "
        f"PET of those left out{patience}. The same people were then scored, so that the scores "
        "are a little optimistic. Final generators were trained on all controls; they "
        f"were not scored.{smoothed}"
    )


def _measures(procedure: TrainingProcedure) -> str:
    lpips = (
        ", learned perceptual image patch similarity (LPIPS, AlexNet, version 0.1; Zhang et al., "
        "2018)" * procedure.lpips
    )
    tests = (
        " Rows of the table were compared by two-tailed Wilcoxon signed-rank tests (Wilcoxon, "
        "1945) over controls, adjusted over all pairs by the method of Holm (Holm, 1979), in "
        f"{cite_tool(procedure.versions, 'SciPy', 'scipy')} (Virtanen et al., 2020)."
    )
    return (
        f"Synthetic and real PET were compared by SSIM, peak signal-to-noise ratio{lpips} and mean "
        "absolute error, in the whole volume and inside the brain; means and standard deviations "
        "are over controls, those with several visits counting once. Two baselines were scored "
        "alike: the mean PET of each fold's training controls, and the T1w image itself."
        f"{tests * procedure.tested}"
    )


GROUP_REFERENCES: Final = REFERENCES.with_name("group_references.toml")


@dataclass(frozen=True)
class GroupProcedure:
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


def group_procedure(
    detected: Detected, versions: Mapping[str, str], settings: Mapping[str, str]
) -> GroupProcedure:
    """Read from tables, cards and settings what was done."""
    cards = list(detected.cards.values())
    parameters = {
        key.rpartition(".")[2]: value for card in cards for key, value in card.parameters.items()
    }
    return GroupProcedure(
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


def group_boilerplate(procedure: GroupProcedure) -> str:
    """Write the methods paragraph and the references it cites, as plain text.

    Examples
    --------
    >>> text = boilerplate(Procedure(versions={"mri2pet": "0.1.0"}))
    >>> text.startswith("Anomalies of FDG PET were mapped with mri2pet 0.1.0")
    True
    """
    detectors = {"ocsvm": _ocsvm, "zscore": _zscore, "pseudonormal": _pseudonormal}
    told = [write(procedure) for name, write in detectors.items() if name in procedure.detectors]
    paragraphs = [_group_opening(procedure), *told, _clusters(procedure)]
    if procedure.evaluated:
        paragraphs.append(_evaluation(procedure))
    body = "\n\n".join([*paragraphs, CLOSING])
    return with_references(body, REFERENCES, MORE_REFERENCES, GROUP_REFERENCES)


def _group_opening(procedure: GroupProcedure) -> str:
    versions = procedure.versions
    grid = f" ({'; '.join(procedure.grids)})" * bool(procedure.grids)
    sets = f" The training sets were: {'; '.join(procedure.training)}." * bool(procedure.training)
    synthetic = (
        " Synthetic PET was predicted from T1-weighted images (Zotova et al., 2021) and was used "
        "for training only: no synthetic image was scored as a healthy person's."
    )
    folds = f"{procedure.folds} folds" if procedure.folds else "folds"
    return (
        f"Anomalies of FDG PET were mapped with {cite_tool(versions, 'mri2pet', 'mri2pet')}, a "
        "BIDS App (Gorgolewski et al., 2017) after the method of Zotova and colleagues (Zotova et "
        f"al., 2021). Steps were run by {cite_tool(versions, 'nipype', 'nipype')} (Gorgolewski et "
        "al., 2011); images were read and written with "
        f"{cite_tool(versions, 'nibabel', 'nibabel')} (Brett et al., 2024). PET lay in the space "
        f"of the template{grid} and was scaled to 0..1.{sets}{synthetic * procedure.synthetic} "
        f"Controls were divided into {folds}. Detectors were trained in each fold without the "
        "controls it leaves out; these were scored by that fold alone, and the map of a patient "
        "is the mean over folds."
    )


def _ocsvm(procedure: GroupProcedure) -> str:
    versions = procedure.versions
    nu, patch = procedure.tell("nu"), procedure.tell("patch")
    told = f" and nu {nu}" * bool(nu)
    size = f" of {patch}×{patch} voxels" * bool(patch)
    return (
        "OC-SVM: a siamese convolutional autoencoder (Alaverdyan et al., 2020), written in "
        f"{cite_tool(versions, 'PyTorch', 'torch')} (Paszke et al., 2019), was trained on pairs of "
        f"axial patches{size} from the same place in two controls, to reconstruct both and to "
        "make their latents alike. At every voxel a one-class support vector machine "
        f"(Schölkopf et al., 2001) with a radial basis function kernel{told} was fitted to the "
        "latents of the controls, with the stopping rule of LIBSVM (Chang and Lin, 2011) in a "
        f"solver compiled by {cite_tool(versions, 'numba', 'numba')} (Lam et al., 2015). The score "
        "is minus the decision function: above 0 lies outside the boundary of the controls that "
        "the machine was trained on, where much of the brain of a held-out control lies, too."
    )


def _zscore(procedure: GroupProcedure) -> str:
    fwhm = procedure.tell("zscore_fwhm", "fwhm")
    smooth = f", smoothed by a Gaussian of {fwhm} mm FWHM," if fwhm else ", smoothed,"
    return (
        f"z score: the PET{smooth} was compared with that of controls voxel by voxel by the t for "
        "a single case (Crawford and Howell, 1998); less uptake scores higher."
    )


def _pseudonormal(_: GroupProcedure) -> str:
    return (
        "Pseudo-normal: the difference between the synthetic PET that a generator predicts from "
        "a participant's own T1-weighted image (Zotova et al., 2021) and the real PET was compared "
        "with the same difference in controls by the t for a single case (Crawford and Howell, "
        "1998); less uptake than predicted scores higher."
    )


def _clusters(procedure: GroupProcedure) -> str:
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
        f"{cite_tool(procedure.versions, 'SciPy', 'scipy')} (Virtanen et al., 2020)."
    )


def _evaluation(procedure: GroupProcedure) -> str:
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
