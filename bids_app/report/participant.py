"""Report of one participant, from files on disk only."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TypedDict, Unpack

from bids_app.derivatives.detections import (
    DETECTORS_FOLDER,
    SCORED,
    Anomaly,
    ScoredRun,
    find_anomalies,
    is_outdated,
    read_run,
)
from bids_app.derivatives.find import Results, digest_of, find_results, shape_of
from bids_app.derivatives.sidecars import Faults
from bids_app.derivatives.tables import read_regions
from bids_app.detection.detectors import meaning_of
from bids_app.errors import Mri2petError
from bids_app.files import object_at
from bids_app.report.anomalies import (
    NO_CONTROLS,
    OWN_PLACE,
    cells_of,
    describe_absence,
    is_rare,
    lesions_known,
    name_of,
    place_of,
    scores_of_run,
    title_of,
)
from bids_app.report.findings import findings_of, leading_first
from bids_app.report.group import NAME as GROUP
from bids_app.report.group import write_group_methods
from bids_app.report.maps import describe_unscored, draw_score_map, take_score_map
from bids_app.report.methods import participant_methods
from bids_app.report.overview import keep_overview, overview_path
from bids_app.report.page import (
    RunSummary,
    describe_demonstration,
    detector_of_run,
    enumerate_words,
    path_of,
    read_record,
    write_report,
)
from bids_app.report.panels import Panel, draw
from bids_app.report.results import (
    ImageCache,
    comparison_rows,
    coverage_rows,
    novelty_rows,
    region_rows,
    regions_path,
    registration_rows,
    warnings_of,
)
from bids_app.report.viewer import Viewer, library, view_pet


def section_of(output_dir: Path, subject: str, spaces: tuple[str, ...]) -> dict[str, object] | None:
    """Describe the anomalies of a participant.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    subject : str
        Label of the subject, without ``sub-``.
    spaces : tuple of str
        Spaces of the template, as in file names; maps in other spaces are skipped. If empty, all
        spaces are accepted.

    Returns
    -------
    dict or None
        Dictionary with ``parts``, the results of the detectors of the primary training set for each
        PET; ``others``, those of other training sets; ``control``, whether the participant is a
        control, scored by folds that left it out; ``no_controls``, why there are no expected counts
        if there are none; ``absence``, why there is no cluster; ``placed``, whether any table gives
        the places of clusters on the participant's own T1w; ``viewers``, one per PET; and
        ``niivue``, the script that they need. Maps left over from an earlier run come last, and are
        in no viewer if the last run has mapped the participant. None if there is no score map of
        the images that are there now.
    """
    found = leading_first(find_anomalies(output_dir, subject, spaces=spaces))
    anomalies = [anomaly for anomaly in found if not is_outdated(output_dir, anomaly)]
    if not anomalies:
        return None
    run, controls = read_run(output_dir), _controls(output_dir, anomalies)
    recent = [a for a in anomalies if not _describe_stale(output_dir, a, run)] or anomalies
    older = [anomaly for anomaly in anomalies if anomaly not in recent]
    viewers, parts = _viewers(output_dir, recent), list[dict[str, object]]()
    for number, anomaly in enumerate([*recent, *older], 1):
        doubts = _describe_stale(output_dir, anomaly, run)
        n_controls = None if doubts else controls.get((anomaly.training_set, anomaly.detector), 0)
        part = _part(output_dir, anomaly, f"anomaly-{number}", doubts)
        shown = anomaly.primary and anomaly in recent
        viewer = viewers[anomaly.stem]["viewer"] if shown else None
        stops = {} if viewer is None else viewer.stops.get(name_of(anomaly.detector), {})
        parts.append({**part, "stops": stops, "controls": n_controls, "primary": anomaly.primary})
    return {
        "parts": [part for part in parts if part["primary"]],
        "others": [part for part in parts if not part["primary"]],
        "control": any(anomaly.held_out for anomaly in recent),
        "placed": any(part["placed"] for part in parts),
        "no_controls": NO_CONTROLS,
        "absence": describe_absence(read_record(output_dir, GROUP)["settings"]),
        "viewers": list(viewers.values()),
        "niivue": library() if any(pet_viewer["viewer"] for pet_viewer in viewers.values()) else "",
    }


def columns_of(anomaly: Anomaly) -> tuple[str, ...]:
    """Return the headings of a table of clusters; lesions and places on the T1w only if known."""
    columns = {
        "x, y, z (mm)": True,
        OWN_PLACE: bool(anomaly.own_clusters),
        **dict.fromkeys(("Place", "Volume (cm³)", "Peak", "Mean", "Sum"), True),
        "Expected in a healthy control": True,
        "On a lesion (cm³)": lesions_known(anomaly.clusters),
    }
    return tuple(head for head, is_known in columns.items() if is_known)


def _controls(output_dir: Path, anomalies: Sequence[Anomaly]) -> dict[tuple[str, str], int]:
    """Count the held-out controls of the last run, by training set and detector."""
    scores = scores_of_run(output_dir, read_record(output_dir, GROUP), anomalies)
    return {detector: len(controls) for detector, controls in scores.items()}


def _describe_stale(output_dir: Path, anomaly: Anomaly, run: ScoredRun | None) -> list[str]:
    """Return a sentence on a map that is not from the last run of the group level."""
    if run is None or anomaly.paths["statmap"] in {output_dir / scored.path for scored in run.maps}:
        return []
    return ["This map is from an earlier run of the group level, not from the last one."]


def _describe_outdated(output_dir: Path, subject: str, spaces: tuple[str, ...]) -> list[str]:
    """Name the maps of images that have been replaced since, in at most one sentence."""
    titles = [
        f"{title_of(anomaly.training_set, anomaly.detector)} ({anomaly.name})"
        for anomaly in find_anomalies(output_dir, subject, spaces=spaces)
        if is_outdated(output_dir, anomaly)
    ]
    if not titles:
        return []
    return [
        "These anomaly maps were made from images that have been replaced since, so they are not "
        f"shown: {enumerate_words(titles)}. Run the group level again."
    ]


def _part(
    output_dir: Path, anomaly: Anomaly, name: str, doubts: Sequence[str]
) -> dict[str, object]:
    """Describe the result of one detector for one PET; ``name`` is its anchor in the page."""
    trained = f", training set {anomaly.training_set}" if anomaly.training_set else ""
    title = f"{name_of(anomaly.detector)}{trained} ({anomaly.name})"
    panel, faults = Panel(title, ""), [*doubts, *anomaly.faults]
    try:
        score_map = take_score_map(ImageCache(output_dir), output_dir, anomaly, native=False)
        panel = draw_score_map(score_map, title)
        faults += describe_unscored(score_map)
    except Mri2petError as error:
        panel = replace(panel, missing=str(error))
    places_on_t1w = {cluster.rank: place_of(cluster) for cluster in anomaly.own_clusters}
    columns = columns_of(anomaly)
    lines = list[tuple[int, list[str], bool]]()
    for cluster in anomaly.clusters:
        cells = cells_of(cluster, places_on_t1w.get(cluster.rank, ""))
        row = [cells[head] if cells[head] else "n/a" for head in columns]
        lines.append((cluster.rank, row, is_rare(cluster)))
    return {
        "name": name,
        "viewer": _name_viewer(anomaly),
        "detector": name_of(anomaly.detector),
        "title": title,
        "meaning": meaning_of(anomaly.detector, anomaly.direction),
        "lines": lines,
        "columns": columns,
        "placed": bool(places_on_t1w),
        "panel": panel,
        "faults": faults,
    }


class PetViewer(TypedDict):
    """Viewer of a PET: its element, heading, and the files that cannot be read."""

    name: str
    title: str
    viewer: Viewer | None
    faults: list[str]


def _name_viewer(anomaly: Anomaly) -> str:
    return f"viewer-{anomaly.stem}"


def _viewers(output_dir: Path, anomalies: Sequence[Anomaly]) -> dict[str, PetViewer]:
    """Create a viewer of the primary detectors' maps for each PET, by the stem of its files."""
    viewers = dict[str, PetViewer]()
    for stem in dict.fromkeys(anomaly.stem for anomaly in anomalies if anomaly.primary):
        of_pet = [anomaly for anomaly in anomalies if anomaly.primary and anomaly.stem == stem]
        viewer, faults = view_pet(output_dir, of_pet)
        viewers[stem] = {
            "name": _name_viewer(of_pet[0]),
            "title": f"All maps, slice by slice ({of_pet[0].name})",
            "viewer": viewer,
            "faults": faults,
        }
    return viewers


def write_subject_report(
    output_dir: Path, subject: str, *, template_t1w: Path, **summary: Unpack[RunSummary]
) -> Path:
    """Write ``sub-X.html``.

    Fields missing from ``summary`` are taken from the record of the last run,
    ``logs/sub-X_report.json``, to which given fields are written.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset.
    subject : str
        Label of the subject, without ``sub-``.
    template_t1w : Path
        Path of the template, on the grid of the images in its space.
    **summary
        Summary of the run; see :class:`bids_app.report.page.RunSummary`.

    Returns
    -------
    Path
        Path of the report; see :func:`bids_app.report.page.write_report`.
    """

    def gather(record: RunSummary) -> dict[str, object]:
        visits = find_results(output_dir, subject, shape_of(template_t1w))
        spaces = tuple(sorted({visit.space for visit in visits if visit.space}))
        drawings = [draw(output_dir, visit, template_t1w) for visit in visits]
        pictures = [panel for drawing in drawings for panel in drawing["pet"]]
        keep_overview(output_dir, subject, visits, pictures, record["problems"])
        return {
            "subject": subject,
            "generators": _generators(visits),
            "findings": [line for visit in visits for line in _findings(visit)],
            "spaces": list(map(_describe_space, spaces)),
            "doubts": [
                text
                for text in warnings_of(visits, record["problems"])
                if text not in record["notes"]
            ]
            + _describe_outdated(output_dir, subject, spaces),
            "registrations": registration_rows(visits),
            "coverages": coverage_rows(visits),
            "novelties": novelty_rows(visits),
            "comparisons": comparison_rows(visits),
            "regions": _regions(output_dir, subject, visits),
            **{
                section: [panel for drawing in drawings for panel in drawing[section]]
                for section in ("anatomy", "coregistration", "pet")
            },
            "patient": findings_of(output_dir, subject, spaces),
            "detection": _detection(output_dir),
            "anomalies": section_of(output_dir, subject, spaces),
            "methods": participant_methods(visits, record["versions"]) if visits else "",
        }

    shared = shared_sources(output_dir, template_t1w)
    summary = {**summary, "made_from": made_from(output_dir, subject, shared)}
    return write_report(output_dir, f"sub-{subject}", summary, "subject.html", gather)


def is_current(output_dir: Path, subject: str, shared: str, **summary: Unpack[RunSummary]) -> bool:
    """Return whether :func:`write_subject_report` would reproduce the existing report.

    This is so if the summary of the run is the same, and no file has changed in size or
    modification time.

    Parameters
    ----------
    output_dir, subject, **summary
        Parameters of that function.
    shared : str
        Digest from :func:`shared_sources`.
    """
    record = read_record(output_dir, f"sub-{subject}")
    pages = output_dir / f"sub-{subject}.html", overview_path(output_dir, subject)
    return (
        all(page.is_file() for page in pages)
        and all(
            list(record[key]) == list(summary[key])
            for key in ("notes", "problems")
            if key in summary
        )
        and not summary.keys() - {"notes", "problems"}
        and record["made_from"] == made_from(output_dir, subject, shared)
    )


def made_from(output_dir: Path, subject: str, shared: str) -> str:
    """Compute a digest of the sources of a participant's report: ``shared``, and its own files."""
    pattern = f"sub-{subject}/**/*"
    folders = output_dir.glob(pattern), (output_dir / DETECTORS_FOLDER).glob(f"*/{pattern}")
    return _digest([shared, *_states(output_dir, chain(*folders))])


def shared_sources(output_dir: Path, template_t1w: Path) -> str:
    """Compute a digest of the sources of all participants: template, detectors, controls."""
    applied = detector_of_run(read_record(output_dir, GROUP))
    paths = [
        *(output_dir / DETECTORS_FOLDER).glob("*/*"),
        *(applied.glob("*") if applied is not None else ()),
        output_dir / SCORED,
        path_of(output_dir, GROUP),
        *_control_tables(output_dir, _changed(output_dir / SCORED)).values(),
    ]
    template = digest_of(template_t1w) if template_t1w.exists() else ""
    return _digest([version("mri2pet"), template, *_states(output_dir, paths)])


def _states(output_dir: Path, paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """List files with their sizes and modification times."""
    states = ((path, path.stat()) for path in paths if path.is_file())
    return sorted(
        (os.path.relpath(path, output_dir), state.st_size, state.st_mtime_ns)
        for path, state in states
    )


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _changed(path: Path) -> int:
    """Return the modification time of a file in ns; 0 if it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


@cache  # per run of the group level
def _control_tables(output_dir: Path, _changed: int) -> dict[str, Path]:
    """Find the first table of regional uptake of each control of the last run's detectors."""
    run = read_run(output_dir)
    scored = [] if run is None else run.maps
    controls = sorted({subject.participant for subject in scored if subject.control})
    tables = {
        label: sorted(output_dir.glob(f"sub-{label}/**/pet/*_desc-regions_pet.tsv"))
        for label in controls
    }
    return {label: paths[0] for label, paths in tables.items() if paths}


def _regions(output_dir: Path, subject: str, visits: Sequence[Results]) -> list[dict[str, object]]:
    """Describe the regional uptake of each visit, against controls if the group level was run."""
    faults, paths = Faults(output_dir), {visit.name: regions_path(visit) for visit in visits}
    tables = {name: read_regions(path, faults) for name, path in paths.items() if path is not None}
    if not any(tables.values()):
        return []
    usual = _usual_ratios(output_dir, subject)
    n_controls = max(map(len, usual.values()), default=0)
    return [
        {
            "name": name,
            "lines": region_rows(rows, usual),
            "controls": n_controls,
            "real": any(row.pet == "real" for row in rows),
        }
        for name, rows in tables.items()
        if rows
    ]


def _usual_ratios(output_dir: Path, subject: str) -> dict[str, list[float]]:
    """List the ratios to the brain, by region, in real PET of the detectors' controls."""
    ratios: dict[str, list[float]] = {}
    for label, path in _control_tables(output_dir, _changed(output_dir / SCORED)).items():
        if label != subject:
            for region, ratio in _real_ratios(output_dir, path, _changed(path)):
                ratios.setdefault(region, []).append(ratio)
    return ratios


@cache  # every report compares with the same controls
def _real_ratios(output_dir: Path, path: Path, _changed: int) -> tuple[tuple[str, float], ...]:
    rows = read_regions(path, Faults(output_dir))
    return tuple(
        (row.region, row.ratio_brain)
        for row in rows
        if row.pet == "real" and row.ratio_brain is not None
    )


def _detection(output_dir: Path) -> dict[str, str]:
    """Return the command line and the methods of the last run of the group level."""
    record = read_record(output_dir, GROUP)
    return {"command": record["command"], "methods": write_group_methods(output_dir)}


def _describe_space(space: str) -> str:
    """Describe a space of the template.

    Examples
    --------
    >>> _describe_space("MNI152NLin2009aSym_res-1p5")
    'MNI152NLin2009aSym, voxels of 1.5 mm'
    """
    template, _, size = space.partition("_res-")
    return f"{template}, voxels of {size.replace('p', '.')} mm" if size else template


def _generators(visits: Sequence[Results]) -> list[dict[str, object]]:
    """List the distinct generators of the synthetic PETs, from their sidecars."""
    keys = ("Name", "Version", "SHA256", "TrainedOn", "IntendedUse")
    images = [visit.synthetic for visit in visits if visit.synthetic is not None]
    generators = [object_at(image.metadata, "Generator") for image in images]
    records = dict.fromkeys(
        tuple(str(generator.get(key, "unknown")) for key in keys) for generator in generators
    )
    return [
        {
            **dict(zip(keys, values, strict=True)),
            "demonstration": describe_demonstration(*values[3:]),
        }
        for values in records
    ]


def _findings(visit: Results) -> list[tuple[str, str, str]]:
    """List the images of a visit: modality, name, and sources."""
    lines = [("T1w", visit.name, ", ".join(visit.t1w.sources()))]
    lines += [("PET", pet.name, ", ".join(pet.in_t1w.sources())) for pet in visit.pets]
    if visit.synthetic is not None:
        lines.append(("SYNTHETIC PET", visit.name, "predicted from the T1w"))
    return lines
