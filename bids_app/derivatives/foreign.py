"""Derivatives of raw images by other apps: found by name and read, never written.

Names and folders are those of ``io_spec.json`` in sMRIPrep and PETPrep, and of ``t1-linear`` and
``pet-linear`` in Clinica. A participant with several sessions may have one anatomy for all of them,
at the level of the participant; the names of images averaged over runs have no ``run``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_app.arguments import CLINICA, IN_TEMPLATE, MNI, same_run
from bids_app.derivatives.description import DESCRIPTION
from bids_app.derivatives.paths import sidecar_path
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import Json, read_json
from bids_app.visit import Derived, Scan

IMAGES = (".nii", ".nii.gz")
COMPOSITE, RIGID = ".h5", ".txt"  # extensions of transforms
# Entities that a name may share with its raw image:
ACQUIRED = ("task", "acq", "ce", "trc", "rec", "run", "echo", "part")
ANY = ("res", "suvr", "T1w", "pet")  # also allowed; old versions of Clinica repeat the raw suffix
NOT_RAW = ("space", "desc", "res")  # entities of derivatives
SUVR = "SUVR"  # unit of images with suvr- in their names, as by Clinica, which writes no sidecar
SUBJECT = re.compile(r"(?:^|[:/])sub-([0-9A-Za-z+]+)/", re.M)  # in a path or BIDS URI
RAW = re.compile(r"(?:^|[:/])(sub-[^:/\n]+)\.nii(?:\.gz)?$", re.M)  # name of an image, likewise
Folder = tuple[Path, str | None]  # folder of derivatives, and their session
Wanted = Mapping[str, tuple[str | None, ...]]  # entity → allowed labels; None: absent
IN_T1W: Wanted = {"space": (None, "T1w")}
SPACES = (
    *(f"MNI152NLin2009{variant}{kind}" for variant in "abc" for kind in ("Sym", "Asym")),
    *("MNI152NLin6Asym", "MNI152NLin6Sym", "MNI152Lin", "MNI152", "MNI"),
)  # close enough to one another to use results in any of them; the preferred ones first
IN_MNI: Wanted = {"desc": (None, "preproc", "Crop")}
CAPS = "subjects"  # the folder of participants in a dataset of Clinica
IN_CAPS = {"anat": "t1_linear", "pet": "pet_linear"}


def read_app(dataset: str, root: Path) -> str:
    """Check that a folder contains derivatives, and return the name and version of their app.

    Parameters
    ----------
    dataset : str
        Name of the dataset in ``--derivatives``.
    root : Path
        Path of the folder.

    Raises
    ------
    MissingInputError
        If the folder does not exist.
    UnusableDataError
        If the folder does not contain derivatives.
    """
    flag = f"--derivatives {dataset}=PATH"
    if not root.is_dir():
        raise MissingInputError(f"{root}: no such folder; correct {flag}")
    path = root / DESCRIPTION
    if dataset in IN_TEMPLATE:
        return _read_app_in_mni(dataset, root, path)
    if not path.is_file():
        below = root / dataset
        hint = f", such as {below}" if (below / DESCRIPTION).is_file() else ""
        raise UnusableDataError(
            f"{root}: contains no {DESCRIPTION}, so it is not a derivative dataset; give the "
            f"folder that does{hint}, in {flag}"
        )
    maker = _maker(path)
    if not maker:
        raise UnusableDataError(
            f"{path}: does not name the app that made the dataset (GeneratedBy), so this is not a "
            f"derivative dataset; give the output folder of that app in {flag}"
        )
    return maker


def _maker(description: Path) -> str:
    """Read the app that made a dataset, with its version; empty if its description lacks it."""
    metadata = read_json(description)
    makers = metadata.get(
        "GeneratedBy", [metadata.get("PipelineDescription")]
    )  # fMRIPrep before 20.2
    first = makers[0] if isinstance(makers, list) and makers else None
    if not isinstance(first, dict) or not first.get("Name"):
        return ""
    return f"{first['Name']} {first.get('Version') or ''}".strip()


def _read_app_in_mni(dataset: str, root: Path, description: Path) -> str:
    """Check that there are participants, and return the app; a description is not required."""
    folder = root / CAPS if dataset == CLINICA else root
    if not any(folder.glob("sub-*")):
        raise UnusableDataError(
            f"{folder}: contains no participant folder (sub-X); correct --derivatives "
            f"{dataset}=PATH"
        )
    known = {CLINICA: "Clinica", MNI: "the dataset mni"}[dataset]
    return (_maker(description) if description.is_file() else "") or known


def _entities(path: Path) -> tuple[dict[str, str], str, str]:
    """Split a name into labels by short key, suffix, and extension."""
    stem, dot, extension = path.name.partition(".")
    *pairs, suffix = stem.split("_")
    parted = (pair.partition("-") for pair in pairs)
    return {key: label for key, _, label in parted}, suffix, dot + extension


def _fits(entities: Mapping[str, str], scan: Scan, wanted: Wanted) -> bool:
    """Return whether a name has the wanted entities, and no others that its raw image lacks."""
    if any(entities.get(key) not in labels for key, labels in wanted.items()):
        return False
    for key, label in entities.items():
        raw_label = scan.entity(key)
        if key in ACQUIRED and (
            raw_label is None or not (raw_label == label or same_run(raw_label, label))
        ):
            return False
        if key not in (*ACQUIRED, *ANY, *wanted, "sub", "ses"):
            return False
    return True


def _folders(root: Path, scan: Scan, datatype: str) -> list[Folder]:
    """List folders for derivatives of a raw image; all sessions may share one anatomy.

    A raw image without session is also that of the only session that the other app knows: Clinica
    names one where a dataset has none.
    """
    top = root / f"sub-{scan.subject}"
    if scan.session is None:
        sessions = [path for path in top.glob("ses-*") if path.is_dir()]
        only = [(path / datatype, path.name.removeprefix("ses-")) for path in sessions]
        return [(top / datatype, None), *(only if len(only) == 1 else [])]
    of_session = (top / f"ses-{scan.session}" / datatype, scan.session)
    return [of_session, (top / datatype, None)] if datatype == "anat" else [of_session]


def _beside(image: Path) -> list[Folder]:
    """Return the folder of files that belong to a derivative."""
    return [(image.parent, _entities(image)[0].get("ses"))]


def _find(
    folders: Sequence[Folder],
    scan: Scan,
    suffix: str,
    wanted: Wanted,
    *,
    extensions: tuple[str, ...] = IMAGES,
) -> Path | None:
    """Find the matching file whose name shares most entities with its raw image.

    Raises
    ------
    UnusableDataError
        If the name of a matching file has another participant or session than its folder.
    """
    for folder, session in folders:
        fitting = []
        for path in sorted(folder.glob(f"*_{suffix}.*")):
            entities, ending, extension = _entities(path)
            if ending == suffix and extension in extensions and _fits(entities, scan, wanted):
                if (entities.get("sub"), entities.get("ses")) != (scan.subject, session):
                    raise UnusableDataError(
                        f"{path}: its name and its folder belong to different participants or "
                        "sessions; move it to where it belongs"
                    )
                fitting.append((-len(entities), path.name, path))
        if fitting:
            return min(fitting)[-1]
    return None


def _find_transform(image: Path, scan: Scan, start: str, end: str, extension: str) -> Path | None:
    wanted = {"from": (start,), "to": (end,), "mode": ("image",), "desc": (None, "coreg")}
    return _find(_beside(image), scan, "xfm", wanted, extensions=(extension,))


def _read_sidecar(path: Path, scan: Scan) -> Json | None:
    """Read the sidecar of an image, if any, and check that its sources are of this participant.

    None if it was made from other images of the participant: names do not always tell, because
    PETPrep leaves out ``trc-``.
    """
    sidecar = sidecar_path(path)
    metadata = read_json(sidecar) if sidecar.is_file() else {}
    raw = set[str]()
    for key in ("Sources", "RawSources"):
        listed = metadata.get(key)
        sources = "\n".join(map(str, listed)) if isinstance(listed, list) else ""
        named = SUBJECT.findall(sources)
        if named and scan.subject not in named:
            raise UnusableDataError(
                f"{path}: according to {key} in its sidecar, it was made from images of "
                f"sub-{named[0]}, not of sub-{scan.subject}; run the app that made it again"
            )
        raw |= {name for name in RAW.findall(sources) if _is_raw(name, path)}
    return None if raw and scan.path.name.partition(".")[0] not in raw else metadata


def _is_raw(name: str, derivative: Path) -> bool:
    """Return whether a name, without extension, is that of a raw image of the same kind."""
    entities, suffix, _ = _entities(Path(name))
    return suffix == _entities(derivative)[1] and not any(key in entities for key in NOT_RAW)


def _templates(image: Path) -> tuple[str, ...]:
    """List the templates to which a T1w has transforms."""
    paths = image.parent.glob("*_from-T1w_to-*_xfm.h5")
    return tuple(sorted({_entities(path)[0].get("to", "") for path in paths}))


def _places(dataset: str, root: Path, scan: Scan, datatype: str) -> list[Folder]:
    """List the folders for derivatives of a raw image in a dataset."""
    if dataset == CLINICA:
        return _folders(root / CAPS, scan, IN_CAPS[datatype])
    return _folders(root, scan, datatype)


def _find_in_mni(
    folders: Sequence[Folder], scan: Scan, suffix: str, spaces: Sequence[str | None]
) -> Path | None:
    """Find an image in the first of some spaces in which there is one."""
    found = (_find(folders, scan, suffix, {**IN_MNI, "space": (space,)}) for space in spaces)
    return next((path for path in found if path is not None), None)


def _labels(image: Path, key: str) -> tuple[str | None, ...]:
    """Return the label of an entity in a name, in the form of a ``Wanted`` value."""
    return (_entities(image)[0].get(key),)


def _find_mask(image: Path, scan: Scan, space: Wanted) -> Path | None:
    """Find the brain mask beside a T1w, preferably of the same resolution."""
    wanted: Wanted = {**space, "desc": ("brain",)}
    found = _find(_beside(image), scan, "mask", {**wanted, "res": _labels(image, "res")})
    return _find(_beside(image), scan, "mask", wanted) if found is None else found


def find_derived_t1w(
    dataset: str, root: Path, app: str, t1w: Scan, template: str
) -> Derived | None:
    """Find the preprocessed version of a raw T1w, its brain mask, and its transforms.

    Parameters
    ----------
    dataset, root, app : str, Path, str
        Name and path of the dataset, and the app that made it.
    t1w : Scan
        Raw image.
    template : str
        Name of the run's template. Transforms to other templates are not used, but T1w in MNI space
        are if it is an MNI152 template.

    Returns
    -------
    Derived or None
        Derivatives; None if the T1w or its brain mask is missing, or if its sidecar says that it
        was made from other images. In MNI space, the mask is optional.

    Raises
    ------
    ReadWriteError
        If the sidecar of the T1w cannot be read.
    UnusableDataError
        If the T1w is another participant's, or its sidecar is not JSON.
    """
    in_mni = dataset in IN_TEMPLATE
    folders = _places(dataset, root, t1w, "anat")
    if in_mni:
        similar = SPACES if template in SPACES else ()
        image = _find_in_mni(folders, t1w, "T1w", (template, *similar))
    else:
        image = _find(folders, t1w, "T1w", {**IN_T1W, "desc": ("preproc",)})
    if image is None:
        return None
    mask = _find_mask(image, t1w, {"space": _labels(image, "space")} if in_mni else IN_T1W)
    if mask is None and not in_mni:
        return None
    metadata = _read_sidecar(image, t1w)
    if metadata is None:
        return None
    forward = None if in_mni else _find_transform(image, t1w, "T1w", template, COMPOSITE)
    back = None if in_mni else _find_transform(image, t1w, template, "T1w", COMPOSITE)
    both = forward is not None and back is not None
    return Derived(
        dataset,
        root,
        app,
        image,
        mask,
        forward if both else None,
        back if both else None,
        skull_stripped=metadata.get("SkullStripped") is True,
        templates=_templates(image),
        in_template=in_mni,
    )


def find_derived_pet(
    dataset: str, root: Path, app: str, pet: Scan, t1w: Derived
) -> tuple[Derived, Json] | None:
    """Find the preprocessed version of a raw PET that lies on a preprocessed T1w.

    It is the PET in T1w space, or otherwise one with a rigid transform to it; for a T1w in MNI
    space, it is the PET in the same space.

    Parameters
    ----------
    dataset, root, app : str, Path, str
        See :func:`find_derived_t1w`.
    pet : Scan
        Raw image.
    t1w : Derived
        The T1w, of this dataset or another.

    Returns
    -------
    Derived, dict
        PET, and its sidecar, to which the unit implied by the name (``suvr-``) is added if missing;
        None if there is no PET, or if its sidecar says that it was made from other images.

    Raises
    ------
    ReadWriteError, UnusableDataError
        See :func:`find_derived_t1w`.
    """
    folders, in_mni = _places(dataset, root, pet, "pet"), dataset in IN_TEMPLATE
    if in_mni != t1w.in_template:
        return None
    wanted: Wanted = {"space": ("T1w",), "desc": ("preproc",)}
    if in_mni:
        image = _find_in_mni(folders, pet, "pet", _labels(t1w.image, "space"))
    else:
        image = _find(folders, pet, "pet", wanted)
    forward = None
    if image is None and not in_mni:
        image = _find(folders, pet, "pet", {**wanted, "space": (None,)})
        ends = ((start, end) for start in ("petref", "pet") for end in ("T1w", "anat"))
        found = (image and _find_transform(image, pet, *pair, RIGID) for pair in ends)
        forward = next((path for path in found if path is not None), None)
        image = image if forward is not None else None
    if image is None or (metadata := _read_sidecar(image, pet)) is None:
        return None
    derived = Derived(dataset, root, app, image, forward=forward, in_template=in_mni)
    ratio = {"Units": SUVR} if "suvr" in _entities(image)[0] else {}
    return derived, {**ratio, **metadata}
