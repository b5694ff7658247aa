from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.derivatives.paths import ENTITIES, derivative_path, entities_of

labels = st.text("abcXYZ019+", min_size=1, max_size=6)


@given(labels, st.none() | labels, st.dictionaries(st.sampled_from(ENTITIES[2:]), labels))
def test_entities_come_back_from_a_name(subject, session, entities):
    path = derivative_path(
        Path("out"),
        subject=subject,
        session=session,
        datatype="pet",
        suffix="pet",
        extension=".nii.gz",
        entities=entities,
    )
    expected = {"sub": subject, **entities, **({} if session is None else {"ses": session})}
    assert entities_of(path) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("sub-01.html", "README-1", "a b.json", ".hidden.json"),
        *("sub-01_copy_pet.nii.gz", "sub-01_colour-red_pet.nii.gz", "sub-_pet.nii.gz"),
        *("sub-01_sub-02_pet.nii.gz", "sub-a-b_pet.nii.gz", "sub-01_desc-synth.nii.gz"),
    ],
)
def test_what_is_no_name_of_a_result(name):
    with pytest.raises(ValueError, match="is not"):
        entities_of(Path(name))
