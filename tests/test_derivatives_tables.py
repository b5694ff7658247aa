import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_app.derivatives.tables import describe_unknown_columns, select
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError, UsageError
from bids_app.files import write_json, write_tsv

TABLE = """\
participant_id\tgroup\tage\tsite
sub-01\tcontrol\t30\t01
sub-02\tpatient\t9\t02
sub-03\tn/a\t100\t01
sub-04\tcontrol\tn/a\tn/a
"""


@pytest.fixture
def out(tmp_path):
    (tmp_path / "participants.tsv").write_text(TABLE)
    return tmp_path


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("group == 'control'", "01 04"),
        ('group == "patient"', "02"),
        ("group in ['control', 'patient']", "01 02 04"),
        ("age > 20", "01 03"),  # as text, "9" would be larger and "100" smaller
        ("9 <= age < 100", "01 02"),
        ("not age > 20", "02"),
        ("age == 30", "01"),
        ("-age < -50", "03"),
        ("age > 20 and group == 'control'", "01"),
        ("(age > 20) & (group == 'control') | (age < 10)", "01 02"),
        ("site == '01'", "01 03"),  # a leading zero makes it a label
        ("participant_id == 'sub-02'", "02"),
        (" group == 'control' ", "01 04"),
    ],
)
def test_queries_by_hand(out, query, chosen):
    assert select(out, query) == set(chosen.split())


@pytest.mark.parametrize(
    "query", ["group != 'patient'", "group not in ['patient']", "not group == 'patient'"]
)
def test_of_whom_nothing_is_known_nothing_is_guessed(out, query):
    assert select(out, query) == {"01", "04"}  # 03 is in no group


groups = st.lists(st.sampled_from(["control", "patient", "other", "n/a"]), min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups)
def test_a_group_is_who_is_in_it(tmp_path, some):
    rows = [{"participant_id": f"sub-{n}", "group": group} for n, group in enumerate(some)]
    write_tsv(tmp_path / "participants.tsv", ["participant_id", "group"], rows)
    for name in ("control", "patient"):
        members = {str(n) for n, group in enumerate(some) if group == name}
        if members:
            assert select(tmp_path, f"group == '{name}'") == members
        else:
            with pytest.raises(UnusableDataError):
                select(tmp_path, f"group == '{name}'")


def test_labels_without_sub_are_kept_as_they_stand(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n01\t3\n02\t4\n")
    assert select(tmp_path, "participant_id == '01'") == {"01"}
    assert select(tmp_path, "age > 3") == {"02"}


def test_a_row_may_lack_cells_and_have_spaces(tmp_path):
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tgroup \nsub-01\t control\nsub-02\nsub-03\t\n"
    )
    assert select(tmp_path, "group == 'control'") == {"01"}


def test_numbers_as_they_are_written(tmp_path):
    cells = ["3", "-2.5", "+1", "1e2", "0", "0.5", "7."]
    rows = [{"participant_id": f"sub-{n}", "x": cell} for n, cell in enumerate(cells)]
    write_tsv(tmp_path / "participants.tsv", ["participant_id", "x"], rows)
    assert select(tmp_path, "x < 1") == {"1", "4", "5"}
    assert select(tmp_path, "x == 100") == {"3"}


# Messages of the participant level about the raw table

REMARK = "/raw/participants.tsv: column group has several values for sub-02; n/a is used"


@pytest.fixture
def remarked(out):
    write_json(out / "participants.json", {"participant_id": {"Remarks": [REMARK, 3]}})
    return out


def test_the_reason_reaches_whoever_asks(remarked):
    with pytest.raises(UsageError, match=r"no column grp; columns are .*several values for sub-02"):
        select(remarked, "grp == 'control'")
    with pytest.raises(UnusableDataError, match="several values for sub-02; n/a is used"):
        select(remarked, "group == 'Control'")
    rows = [{"participant_id": "sub-01"}]
    write_tsv(remarked / "participants.tsv", ["participant_id", "group"], rows)
    with pytest.raises(UnusableDataError, match=r"n/a throughout.*several values for sub-02"):
        select(remarked, "group == 'control'")


def test_of_whom_nothing_is_known_is_told(remarked):
    control, patient, old = "group == 'control'", "group == 'patient'", "age > 50"
    assert describe_unknown_columns(remarked, [control, patient]) == [
        f"sub-03: not used, n/a in participants.tsv under group ({REMARK})"
    ]
    assert describe_unknown_columns(remarked, [control, old]) == []  # each query matches someone
    assert describe_unknown_columns(remarked, [f"{old} and site == '01'"]) == [
        f"sub-04: not used, n/a in participants.tsv under age, site ({REMARK})"
    ]


def test_values_that_differ_by_case_are_told_of(out):
    rows = [
        {"participant_id": f"sub-0{n}", "group": group, "age": n}
        for n, group in enumerate(["control", "Control", "control", "patient", "CONTROL"])
    ]
    write_tsv(out / "participants.tsv", ["participant_id", "group", "age"], rows)
    queries = ["group == 'control' and age < 9", "group == 'patient'"]
    tail = "in participants.tsv, elsewhere 'control'; queries distinguish upper and lower case"
    assert sorted(describe_unknown_columns(out, queries)) == [
        f"sub-01: group is 'Control' {tail}",
        f"sub-04: group is 'CONTROL' {tail}",
    ]
    assert describe_unknown_columns(out, ["age < 9"]) == []


def test_whom_no_query_selects_is_told(out):
    groups = ["control", "controls", "patient", "FCD", "n/a"]
    rows = [{"participant_id": f"sub-0{n}", "group": group} for n, group in enumerate(groups)]
    write_tsv(out / "participants.tsv", ["participant_id", "group"], rows)
    queries = ["group == 'control'", "group == 'patient'"]
    assert describe_unknown_columns(out, queries, {"00", "02"}) == [
        "sub-04: not used, n/a in participants.tsv under group",
        "sub-01, sub-03: not used, selected by no query (group holds 'controls', 'FCD')",
    ]
    assert describe_unknown_columns(out, queries, {"00", "01", "02", "03"}) == [
        "sub-04: not used, n/a in participants.tsv under group"
    ]


@pytest.mark.parametrize("text", ["[]", "{", '{"participant_id": 3}', '{"participant_id": {}}'])
def test_a_damaged_explanation_says_nothing(out, text):
    (out / "participants.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        select(out, "grp == 'control'")
    assert str(caught.value).endswith(
        "columns are participant_id, group, age, site; add it to the participants.tsv of the BIDS "
        "dataset and run the participant level again, or name another column"
    )


# Invalid queries


def test_no_table(tmp_path):
    with pytest.raises(MissingInputError, match=r"participants\.tsv: no such file"):
        select(tmp_path, "group == 'control'")


@pytest.mark.parametrize("text", ["", "group\ncontrol\n", "participant_id\tgroup\n"])
def test_a_table_without_participants(tmp_path, text):
    (tmp_path / "participants.tsv").write_text(text)
    with pytest.raises(UnusableDataError, match="participant_id"):
        select(tmp_path, "group == 'control'")


def test_a_participant_who_stands_in_it_twice(tmp_path):
    table = "participant_id\tgroup\nsub-01\tcontrol\nsub-02\tcontrol\nsub-01\tpatient\n"
    (tmp_path / "participants.tsv").write_text(table)
    with pytest.raises(UnusableDataError, match="sub-01 occurs twice"):
        select(tmp_path, "group == 'control'")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReadWriteError):
        select(tmp_path, "group == 'control'")


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("group == 'Control'", "group holds 'control', 'patient'"),
        ("age > 1000", "age holds 30, 9, 100"),
        ("age == '30'", "age holds 30, 9, 100"),
        ("site == 1", "site holds '01', '02'"),
        ("age > 20 and group == 'patient'", "age holds .*; group holds "),
    ],
)
def test_nobody_matches(out, query, values):
    with pytest.raises(UnusableDataError, match=rf"participants\.tsv: no participant .*; {values}"):
        select(out, query)


def test_long_columns_are_cut_short_and_empty_ones_told(tmp_path):
    rows = [{"participant_id": f"sub-{n}", "age": str(n)} for n in range(1, 30)]
    write_tsv(tmp_path / "participants.tsv", ["participant_id", "age", "group"], rows)
    with pytest.raises(UnusableDataError, match="age holds 1, 2, 3, 4, 5, 6, 7, 8, …"):
        select(tmp_path, "age > 99")
    with pytest.raises(UnusableDataError, match="group is n/a throughout"):
        select(tmp_path, "group == 'control'")


def test_a_column_that_is_not_there(out):
    told = (
        r"has no column grp; columns are participant_id, group, age.*; add it to the participants"
    )
    with pytest.raises(UsageError, match=told):
        select(out, "grp == 'control'")


@pytest.mark.parametrize(
    "query",
    [
        *("", "group = 'control'", "group ==", "(age > 3", "age > 3)", "`group` == 'control'"),
        *("group", "age", "True", "1 == 1", "not group", "age | 3", "[group] == 'control'"),
        *(
            "age > 'x'",
            "group > 3",
            "age is 3",
            "age > 3; age",
            "a\0",
            "(" * 500 + "age" + ")" * 500,
        ),
    ],
)
def test_malformed_queries(out, query):
    with pytest.raises(UsageError, match="query"):
        select(out, query)


@pytest.mark.parametrize(
    "query",
    [
        *("group == @x", "@select(1)", "group == 'a__b'", "().__class__", "group.__class__"),
        *("group.to_csv('ran')", "group.map(print)", "open('ran', 'w')", "age ** 9 ** 9 ** 9 > 1"),
        *("group == '`' or group.to_csv('ran') or '`'", "[g for g in group]", "age[0] > 1"),
        *("(lambda: 1)() == age", "f'{group}' == group", "(x := age) > 1", "age if age else group"),
    ],
)
def test_no_code_is_run(out, query, monkeypatch):
    monkeypatch.chdir(out)
    with pytest.raises(UsageError, match="query"):
        select(out, query)
    assert [path.name for path in out.iterdir()] == ["participants.tsv"]
