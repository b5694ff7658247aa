"""Settings of a run: the only place for the defaults of the command line."""

from dataclasses import dataclass
from pathlib import Path

LEVELS = ("participant", "train", "group")  # in the order of a study
FULL_RESOLUTION = 1.0  # mm; Zotova et al. (2021), section 3.1
SLOPPY_RESOLUTION = 4.0  # mm; for tests and quick trials
SCORE_FWHM = 8.0  # mm; our choice, as for the z score: docs/results/detection.md
# Settings that only one or two levels use, separated by spaces; all others apply to every level
USED_BY = {
    "participant": "tracer_label run_label bids_filter_file bids_database_dir validate skull_strip "
    "pet_frames generator stage match_histogram uncertainty novelty",
    "participant train": "device smoothing_fwhm overlap",
    "train": "models condition init epochs batch_size width patches lpips_weights",
    "train group": "control_query folds ratings",
    "participant group": "clean_workdir derivatives",
    "group": "patient_query training_set synthetic_controls detectors detector "
    "direction score_smoothing channels covariates nu clusters expected_false min_cluster_size "
    "cluster_extent atlas",
}
LPIPS_VARIABLE = "MRI2PET_LPIPS_WEIGHTS"  # environment variable in place of --lpips-weights


@dataclass(frozen=True)
class Settings:
    """Settings of a run of ``mri2pet``, named like the flags.

    ``None`` stands for a value that is determined when the run starts, from the machine or the
    dataset.
    """

    bids_dir: Path
    output_dir: Path
    level: str

    # Selection
    participant_label: tuple[str, ...] = ()
    exclude_participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    tracer_label: tuple[str, ...] = ()
    run_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    validate: bool = True
    derivatives: tuple[tuple[str, Path], ...] = ()

    # Participant
    template: str = "MNI152NLin2009aSym"
    bounding_box: tuple[float, float, float, float, float, float] = (
        -78,
        -112,
        -50,
        78,
        76,
        85,
    )  # mm, RAS+: Zotova et al. (2021), section 3.1
    resolution: float | None = None  # mm; see grid_resolution
    skull_strip: str = "auto"
    assume_orientation: str = ""  # axis code for images whose headers have none; "": refuse them
    pet_frames: tuple[int, ...] = ()  # indices from 0; () means all
    generator: str = "default"
    smoothing_fwhm: float = 1.5  # mm; Zotova et al. (2021), section 3.2
    stage: str = "all"
    paper: bool = False  # follow Zotova et al. (2021) where the defaults differ
    # Synthetic PET, beyond the paper
    overlap: bool = True  # removes the bands between triplets: docs/default-generator.md
    match_histogram: bool = False
    uncertainty: bool = False
    novelty: bool = False

    # Controls and patients
    ratings: Path | None = None  # table of exclusions, as saved by participants.html
    control_query: str = "group == 'control'"
    patient_query: str = "group == 'patient'"

    # Train; None: as in the paper, per row of Table 1 (synthesis/models.py)
    models: tuple[str, ...] = ()  # () means all six, and the tissue model
    condition: str = ""  # "tissue": networks take a tissue model's prediction and correct it
    init: str = ""  # generator to start from; "": new weights
    folds: int = 4  # Zotova et al. (2021), section 3.2
    epochs: int | None = None
    batch_size: int | None = None
    width: int | None = None
    patches: str = "brain"
    lpips_weights: Path | None = None

    # Group; Zotova et al. (2021), sections 2.2 and 3.3, or our choice
    training_set: tuple[str, ...] = ("real",)
    synthetic_controls: str = "t1w-only"
    detectors: tuple[str, ...] = ()  # () means DEFAULT_DETECTORS, as far as they are applicable
    detector: Path | None = None
    direction: str | None = None  # see direction_of_scores
    score_smoothing: float | None = None  # mm; see fwhm_of_scores
    channels: str | None = None  # of patches; None means pet, or those of the given detector
    covariates: tuple[str, ...] = ()  # columns of participants.tsv
    nu: float = 0.03
    clusters: int = 10
    expected_false: float | None = None  # mean clusters of held-out controls above the last kept
    min_cluster_size: float = 82.0  # mm³
    cluster_extent: float = 0.02  # share of the brain above the threshold; our choice
    atlas: tuple[Path, Path] | None = None  # label image in the template's space, table of names

    # Resources
    nprocs: int | None = None
    omp_nthreads: int | None = None
    mem_gb: float | None = None
    device: str = "auto"
    use_plugin: Path | None = None
    work_dir: Path | None = None
    clean_workdir: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False

    # Run
    sloppy: bool = False
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    random_seed: int = 0
    verbose: int = 0

    @property
    def triplets_overlap(self) -> bool:
        """Whether triplets of slices overlap: unless --no-overlap or --paper is given."""
        return self.overlap and not self.paper

    @property
    def direction_of_scores(self) -> str:
        """Direction of abnormality: as given, otherwise hypo, or both as in the paper."""
        if self.direction is not None:
            return self.direction
        return "both" if self.paper else "hypo"

    @property
    def fwhm_of_scores(self) -> float:
        """FWHM in mm for smoothing one-class SVM maps; by default 8, or 0 with ``--paper``."""
        if self.score_smoothing is not None:
            return self.score_smoothing
        return 0.0 if self.paper else SCORE_FWHM

    @property
    def grid_resolution(self) -> float:
        """Voxel size of the outputs in mm: as given, otherwise 1, or 4 for a sloppy run."""
        if self.resolution is not None:
            return self.resolution
        return SLOPPY_RESOLUTION if self.sloppy else FULL_RESOLUTION
