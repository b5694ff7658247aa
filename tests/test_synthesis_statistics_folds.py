import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.errors import UnusableDataError, UsageError
from bids_app.synthesis.statistics import split

cohorts = st.sets(st.text("abc019", min_size=1, max_size=4), min_size=2, max_size=40)


def assign_folds(subjects, folds, seed=3):
    return split(subjects, folds, np.random.default_rng(seed))


@given(cohorts, st.data())
def test_every_subject_validates_once(cohort, data):
    folds = data.draw(st.integers(2, len(cohort)))
    sets = assign_folds(cohort, folds)
    assert len(sets) == folds
    everyone = [subject for one in sets for subject in one]
    assert sorted(everyone) == sorted(cohort)
    sizes = [len(one) for one in sets]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= 1
    assert all(list(one) == sorted(one) for one in sets)


@given(cohorts, st.randoms(use_true_random=False), st.integers(0, 99))
def test_neither_order_nor_repetition_matters(cohort, random, seed):
    shuffled = [*cohort, *list(cohort)[:3]]  # some have two visits
    random.shuffle(shuffled)
    assert assign_folds(shuffled, 2, seed) == assign_folds(sorted(cohort), 2, seed)


def test_the_folds_of_the_paper():
    cohort = [f"{n:02}" for n in range(35)]
    sets = assign_folds(cohort, 4)
    assert [len(one) for one in sets] == [9, 9, 9, 8]
    assert [len(set(cohort) - set(one)) for one in sets] == [26, 26, 26, 27]


def test_chance_decides_and_can_be_repeated():
    cohort = [f"{n:02}" for n in range(35)]
    assert assign_folds(cohort, 4, 1) == assign_folds(cohort, 4, 1)
    assert assign_folds(cohort, 4, 1) != assign_folds(cohort, 4, 2)
    assert assign_folds(cohort, 4, 1)[0] != tuple(cohort[:9])


def test_everyone_is_as_likely_in_the_first_fold():
    random, cohort = np.random.default_rng(0), list("abcde")
    counts = dict.fromkeys(cohort, 0)
    for _ in range(2000):
        for subject in split(cohort, 5, random)[0]:
            counts[subject] += 1
    assert all(400 - 100 < count < 400 + 100 for count in counts.values())  # 5 sigma are 90


@pytest.mark.parametrize("folds", [1, 0, -2])
def test_fewer_than_two_folds(folds):
    with pytest.raises(UsageError, match=f"--folds {folds}"):
        assign_folds(["a", "b", "c"], folds)


@pytest.mark.parametrize("cohort", [[], ["a", "b", "c"], ["a", "b", "c", "a", "b"]])
def test_fewer_subjects_than_folds(cohort):
    with pytest.raises(UnusableDataError, match=f"{len(set(cohort))} subject.*--folds 4"):
        assign_folds(cohort, 4)
