"""Data files: every row is read as it stands in the file, or named as bad."""

import pytest
import row_files
from hypothesis import given
from hypothesis import strategies as st
from outcomes import assert_right, read_corpus, short


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return row_files.prepare(tmp_path_factory.mktemp("rows") / "ground")


@given(data=st.data())
@short(300)
def test_rows_are_read_or_named(ground, data):
    case = data.draw(row_files.cases(ground))
    assert_right(row_files.outcome_of(case, ground), case)


@pytest.mark.parametrize("case", read_corpus("rows"))
def test_rows_that_were_once_handled_wrongly(ground, case):
    assert_right(row_files.outcome_of(case, ground), case)
