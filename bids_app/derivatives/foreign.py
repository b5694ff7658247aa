"""What other apps have made of raw images: found by name, read, never written.

Names and folders are those of ``io_spec.json`` in sMRIPrep and PETPrep, and of ``t1-linear`` and
``pet-linear`` in Clinica. The anatomy of a
participant with several sessions lies at the level of the participant, one for all of them; what
was averaged over runs names no run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from bids_app.arguments import CLINICA, IN_TEMPLATE, MNI, same_run
from bids_app.derivatives.description import DESCRIPTION
from bids_app.derivatives.paths import sidecar_path
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import Json, read_json
from bids_app.visit import Derived, Scan

IMAGES = (".nii", ".nii.gz")
TRANSFORMS = {"anat": (".h5",), "pet": (".txt",)}  # composites; rigid ones
ACQUIRED = ("acq", "ce", "trc", "rec", "run")  # what a name may repeat of its raw image
ANY = ("res", "suvr", "T1w", "pet")  # beyond; old versions of Clinica repeat the raw suffix
SUBJECT = re.compile(r"(?:^|[:/])sub-([0-9A-Za-z+]+)/")  # in a path or BIDS URI
Wanted = Mapping[str, tuple[str | None, ...]]  # entity → labels; None: it is not named
IN_T1W: Wanted = {"space": (None, "T1w")}
SPACES = (
    *(f"MNI152NLin2009{variant}{kind}" for variant in "abc" for kind in ("Sym", "Asym")),
    *("MNI152NLin6Asym", "MNI152NLin6Sym", "MNI152Lin", "MNI152", "MNI"),
)  # close enough to one another for results in any of them
IN_MNI: Wanted = {"space": SPACES, "desc": (None, "preproc", "Crop")}
CAPS = "subjects"  # the folder of participants in a dataset of Clinica
IN_CAPS = {"anat": "t1_linear", "pet": "pet_linear"}


def read_app(dataset: str, root: Path) -> str:
    """See that a folder holds derivatives, and say what made them, with its version.

    Parameters
    ----------
    dataset : str
        Its name in ``--derivatives``.
    root : Path
        The folder.

    Raises
    ------
    MissingInputError
        If there is no such folder.
    UnusableDataError
        If it is none of derivatives.
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
            f"{root}: holds no {DESCRIPTION}, so it is no dataset of derivatives; give the folder "
            f"that does{hint}, in {flag}"
        )
    maker = _maker(path)
    if not maker:
        raise UnusableDataError(
            f"{path}: names no app that made the dataset (GeneratedBy), so it is none of "
            f"derivatives; give the output folder of that app in {flag}"
        )
    return maker


def _maker(description: Path) -> str:
    """Read what made a dataset, with its version; empty where its description does not tell."""
    told = read_json(description)
    makers = told.get("GeneratedBy", [told.get("PipelineDescription")])  # fMRIPrep before 20.2
    first = makers[0] if isinstance(makers, list) and makers else None
    if not isinstance(first, dict) or not first.get("Name"):
        return ""
    return f"{first['Name']} {first.get('Version') or ''}".strip()


def _read_app_in_mni(dataset: str, root: Path, description: Path) -> str:
    """See that there are participants, which need not be described; say what made their images."""
    where = root / CAPS if dataset == CLINICA else root
    if not any(where.glob("sub-*")):
        raise UnusableDataError(
            f"{where}: holds no folder of a participant (sub-X); correct --derivatives "
            f"{dataset}=PATH"
        )
    known = {CLINICA: "Clinica", MNI: "the dataset mni"}[dataset]
    return (_maker(description) if description.is_file() else "") or known


def _entities(path: Path) -> tuple[dict[str, str], str, str]:
    """Read what a name is made of: labels by short key, suffix, extension."""
    stem, dot, extension = path.name.partition(".")
    *pairs, suffix = stem.split("_")
    parted = (pair.partition("-") for pair in pairs)
    return {key: label for key, _, label in parted}, suffix, dot + extension


def _fits(entities: Mapping[str, str], scan: Scan, wanted: Wanted) -> bool:
    """Whether a name says what is wanted, and nothing that its raw image does not say."""
    if any(entities.get(key) not in labels for key, labels in wanted.items()):
        return False
    for key, label in entities.items():
        own = scan.entity(key)
        if key in ACQUIRED and (own is None or not (own == label or same_run(own, label))):
            return False
        if key not in (*ACQUIRED, *ANY, *wanted, "sub", "ses"):
            return False
    return True


def _folders(root: Path, scan: Scan, datatype: str) -> Iterator[tuple[Path, str | None]]:
    """Give where derivatives of a raw image may lie: with its session, else with none."""
    top = root / f"sub-{scan.subject}"
    if scan.session is not None:
        yield top / f"ses-{scan.session}" / datatype, scan.session
    yield top / datatype, None


def _find(
    root: Path,
    scan: Scan,
    datatype: str,
    suffix: str,
    wanted: Wanted,
    *,
    extensions: tuple[str, ...] = IMAGES,
) -> Path | None:
    """Find the file whose name says most of its raw image, among those that say nothing else.

    Raises
    ------
    UnusableDataError
        If the name of such a file is that of another participant or session.
    """
    for folder, session in _folders(root, scan, datatype):
        fitting = []
        for path in sorted(folder.glob(f"*_{suffix}.*")):
            entities, ending, extension = _entities(path)
            if ending == suffix and extension in extensions and _fits(entities, scan, wanted):
                if (entities.get("sub"), entities.get("ses")) != (scan.subject, session):
                    raise UnusableDataError(
                        f"{path}: its name is that of another participant or session than its "
                        "folder; move it to where it belongs"
                    )
                fitting.append((-len(entities), path.name, path))
        if fitting:
            return min(fitting)[-1]
    return None


def _find_transform(root: Path, scan: Scan, datatype: str, start: str, end: str) -> Path | None:
    wanted = {"from": (start,), "to": (end,), "mode": ("image",), "desc": (None, "coreg")}
    return _find(root, scan, datatype, "xfm", wanted, extensions=TRANSFORMS[datatype])


def _read_sidecar(path: Path, scan: Scan) -> Json:
    """Read the sidecar of an image, if there is one, and see whose raw images it was made from."""
    sidecar = sidecar_path(path)
    told = read_json(sidecar) if sidecar.is_file() else {}
    for key in ("Sources", "RawSources"):
        listed = told.get(key)
        named = SUBJECT.findall("\n".join(map(str, listed))) if isinstance(listed, list) else []
        if named and scan.subject not in named:
            raise UnusableDataError(
                f"{path}: was made from images of sub-{named[0]}, as {key} of its sidecar says, "
                f"not of sub-{scan.subject}; run the app that made it again"
            )
    return told


def _templates(root: Path, scan: Scan) -> tuple[str, ...]:
    """Name the templates that there are transforms of a T1w to."""
    found = {
        _entities(path)[0].get("to", "")
        for folder, _ in _folders(root, scan, "anat")
        for path in folder.glob("*_from-T1w_to-*_xfm.h5")
    }
    return tuple(sorted(found))


def _place(dataset: str, root: Path, datatype: str) -> tuple[Path, str]:
    """Give the folder of participants, and the name of that of a datatype."""
    return (root / CAPS, IN_CAPS[datatype]) if dataset == CLINICA else (root, datatype)


def find_derived_t1w(
    dataset: str, root: Path, app: str, t1w: Scan, template: str
) -> Derived | None:
    """Find the preprocessed T1w of a raw one, its brain mask, and its transforms.

    Parameters
    ----------
    dataset, root, app : str, Path, str
        The dataset: its name, where it is, what made it.
    t1w : Scan
        The raw image.
    template : str
        Name of the run's template. Transforms to others are not taken.

    Returns
    -------
    Derived or None
        None where T1w or brain mask is missing; in MNI space, a T1w alone will do.

    Raises
    ------
    ReadWriteError
        If its sidecar cannot be read.
    UnusableDataError
        If it is another participant's, or its sidecar is no JSON.
    """
    if dataset in IN_TEMPLATE:
        top, folder = _place(dataset, root, "anat")
        image = _find(top, t1w, folder, "T1w", IN_MNI)
        if image is None:
            return None
        mask = _find(top, t1w, folder, "mask", {**IN_MNI, "desc": ("brain",)})
        stripped = _read_sidecar(image, t1w).get("SkullStripped") is True
        return Derived(dataset, root, app, image, mask, skull_stripped=stripped, in_template=True)
    image = _find(root, t1w, "anat", "T1w", {**IN_T1W, "desc": ("preproc",)})
    mask = _find(root, t1w, "anat", "mask", {**IN_T1W, "desc": ("brain",)})
    if image is None or mask is None:
        return None
    told = _read_sidecar(image, t1w)
    forward = _find_transform(root, t1w, "anat", "T1w", template)
    back = _find_transform(root, t1w, "anat", template, "T1w")
    both = forward is not None and back is not None
    return Derived(
        dataset,
        root,
        app,
        image,
        mask,
        forward if both else None,
        back if both else None,
        skull_stripped=told.get("SkullStripped") is True,
        templates=_templates(root, t1w),
    )


def find_derived_pet(dataset: str, root: Path, app: str, pet: Scan) -> tuple[Derived, Json] | None:
    """Find the preprocessed PET of a raw one: in T1w space, else with a rigid transform to it.

    Of datasets in MNI space, the one there.

    Parameters
    ----------
    dataset, root, app : str, Path, str
        As :func:`find_derived_t1w`.
    pet : Scan
        The raw image.

    Returns
    -------
    Derived, dict
        The PET, and its sidecar; None where there is none.

    Raises
    ------
    ReadWriteError, UnusableDataError
        As :func:`find_derived_t1w`.
    """
    if dataset in IN_TEMPLATE:
        top, folder = _place(dataset, root, "pet")
        image = _find(top, pet, folder, "pet", IN_MNI)
        found = None if image is None else Derived(dataset, root, app, image, in_template=True)
        return None if found is None else (found, _read_sidecar(found.image, pet))
    wanted: Wanted = {"space": ("T1w",), "desc": ("preproc",)}
    image, forward = _find(root, pet, "pet", "pet", wanted), None
    if image is None:
        image = _find(root, pet, "pet", "pet", {**wanted, "space": (None,)})
        ends = ((start, end) for start in ("petref", "pet") for end in ("T1w", "anat"))
        rigid = (_find_transform(root, pet, "pet", start, end) for start, end in ends)
        forward = next((path for path in rigid if path is not None), None)
        if image is None or forward is None:
            return None
    return Derived(dataset, root, app, image, forward=forward), _read_sidecar(image, pet)
