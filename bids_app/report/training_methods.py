"""The methods paragraph of the train level, ready for a paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.cards import (
    UNKNOWN,
    Spec,
    by_configuration,
    enumerate_words,
    grids_of,
    spec_of,
)
from bids_app.report.methods import CLOSING, REFERENCES, tell_tool, with_references
from bids_app.report.paper import full_name_of
from bids_app.report.trained import Trained

MORE_REFERENCES: Final = REFERENCES.with_name("training_references.toml")


@dataclass(frozen=True)
class Procedure:
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


def procedure_of(trained: Trained, versions: Mapping[str, str], fwhm: float | None) -> Procedure:
    """Read from tables and cards what was done."""
    return Procedure(
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


def boilerplate(procedure: Procedure) -> str:
    """Write the methods paragraph and the references it cites, as plain text.

    Examples
    --------
    >>> text = boilerplate(Procedure(versions={"mri2pet": "0.1.0"}, specs={}))
    >>> text.startswith("Generators of synthetic FDG PET were trained with mri2pet 0.1.0")
    True
    """
    parts = (_opening, _models, _losses, _optimization) if procedure.specs else (_opening,)
    paragraphs = [part(procedure) for part in (*parts, _validation, _measures)]
    body = "\n\n".join([*paragraphs, CLOSING])
    return with_references(body, REFERENCES, MORE_REFERENCES)


def _tell(procedure: Procedure, key: str) -> str:
    """Tell a number of the specs."""
    return by_configuration(procedure.specs, lambda spec: spec.tell(key))


def _opening(procedure: Procedure) -> str:
    versions = procedure.versions
    grid = f" ({'; '.join(procedure.grids)})" * bool(procedure.grids)
    who = f"{procedure.controls} controls" if procedure.controls else "controls"
    return (
        "Generators of synthetic FDG PET were trained with "
        f"{tell_tool(versions, 'mri2pet', 'mri2pet')}, a BIDS App (Gorgolewski et al., 2017) after "
        "the method of Zotova and colleagues (Zotova et al., 2021), in "
        f"{tell_tool(versions, 'PyTorch', 'torch')} (Paszke et al., 2019). Steps were run by "
        f"{tell_tool(versions, 'nipype', 'nipype')} (Gorgolewski et al., 2011); images were read "
        f"and written with {tell_tool(versions, 'nibabel', 'nibabel')} (Brett et al., 2024). Pairs "
        f"of T1-weighted (T1w) image and FDG PET of {who} were used in the space of the template"
        f"{grid}, scaled to 0..1, and 0 outside of the brain."
    )


def _models(procedure: Procedure) -> str:
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


def _losses(procedure: Procedure) -> str:
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


def _optimization(procedure: Procedure) -> str:
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


def _validation(procedure: Procedure) -> str:
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


def _measures(procedure: Procedure) -> str:
    lpips = (
        ", learned perceptual image patch similarity (LPIPS, AlexNet, version 0.1; Zhang et al., "
        "2018)" * procedure.lpips
    )
    tests = (
        " Rows of the table were compared by two-tailed Wilcoxon signed-rank tests (Wilcoxon, "
        "1945) over controls, adjusted over all pairs by the method of Holm (Holm, 1979), in "
        f"{tell_tool(procedure.versions, 'SciPy', 'scipy')} (Virtanen et al., 2020)."
    )
    return (
        f"Synthetic and real PET were compared by SSIM, peak signal-to-noise ratio{lpips} and mean "
        "absolute error, in the whole volume and inside the brain; means and standard deviations "
        "are over controls, those with several visits counting once. Two baselines were scored "
        "alike: the mean PET of each fold's training controls, and the T1w image itself."
        f"{tests * procedure.tested}"
    )
