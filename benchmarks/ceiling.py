"""Score the best PET that could be predicted from simulated T1w: the ceiling of ``train``'s table.

    python benchmarks/ceiling.py BIDS OUT --resolution 3

``BIDS`` comes from ``mri2pet-simulate``, and ``OUT`` from ``mri2pet BIDS OUT participant`` on the
same grid. The simulator's truth contains, for each person, the uptake that people share on the
exact anatomy (``desc-expected_pet``). It is resampled with the transforms of ``OUT``, scaled as the
real PET, smoothed by whichever of 0 to 8 mm gives the highest SSIM, and compared with the real PET.
No model of the uptake that people share can be expected to exceed its scores.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bids_app import nifti
from bids_app.anatomy.registration import resample
from bids_app.derivatives.detections import t1w_to_template
from bids_app.derivatives.find import Preprocessed, find_preprocessed, times_mean_of_image
from bids_app.derivatives.paths import coverage_path
from bids_app.imaging.intensity import scale_to_unit, smooth
from bids_app.imaging.similarity import measure
from bids_app.imaging.volume import Volume, zooms_of
from bids_app.settings import Settings
from bids_app.simulation.cohort import TRUTH

WIDTHS = range(9)  # FWHM in mm


def score(visit: Preprocessed, expected: Volume) -> tuple[float, float, int]:
    """Return SSIM, PSNR in dB, both in the brain, and the width of smoothing in mm."""
    pet = visit.pets[0]
    real, brain = nifti.load(pet), nifti.load(visit.brain_mask).data > 0
    covered, factor = nifti.load(coverage_path(pet)).data > 0, times_mean_of_image(pet)
    told = []
    for fwhm in WIDTHS:
        smoothed = smooth(expected, float(fwhm), zooms_of(real.affine))
        scaled = scale_to_unit(smoothed, brain, times_mean=factor)
        found = measure(scaled, real.data, brain, covered)
        told.append((found.ssim_brain, found.psnr_brain, fwhm))
    return max(told)


def main() -> None:
    """Print the scores of each person, and their mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--participant-label", nargs="+", help="by default, everyone")
    parser.add_argument("--template", default=Settings.template)
    parser.add_argument("--resolution", type=float, default=1.0)
    given = parser.parse_args()
    scores = []
    images = given.output_dir, given.template, given.resolution
    for visit in find_preprocessed(*images, given.participant_label):
        truth = given.bids_dir / TRUTH / f"sub-{visit.subject}"
        truth = truth / f"ses-{visit.session}" if visit.session else truth
        found = sorted(truth.glob("pet/*_space-T1w_desc-expected_pet.nii.gz"))
        if not visit.pets or not found:
            continue
        with TemporaryDirectory() as folder:
            out = Path(folder) / "expected.nii.gz"
            resample(found[0], visit.t1w, [t1w_to_template(visit)], out, interpolation="linear")
            scores.append(score(visit, nifti.load(out).data))
        ssim, psnr, fwhm = scores[-1]
        print(f"sub-{visit.subject}: SSIM {ssim:.3f}, PSNR {psnr:.1f} dB, {fwhm} mm", flush=True)
    if not scores:
        parser.error(
            f"{given.output_dir}: no PET at {given.resolution:g} mm with a simulated truth"
        )
    mean, sd = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=min(1, len(scores) - 1))
    print(f"ceiling: SSIM {mean[0]:.3f} ± {sd[0]:.3f}, PSNR {mean[1]:.1f} ± {sd[1]:.1f} dB")


if __name__ == "__main__":
    main()
