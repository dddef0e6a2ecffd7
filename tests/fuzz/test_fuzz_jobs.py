"""Long jobs: killed, out of disk or on damaged files, they end with the bytes of an undisturbed run."""

import broken_jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import assert_right, read_corpus, short


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return broken_jobs.prepare(tmp_path_factory.mktemp("jobs") / "ground")


@given(data=st.data())
@short(25)
def test_broken_jobs_end_with_the_same_bytes(ground, data):
    case = data.draw(broken_jobs.cases(ground))
    assert_right(broken_jobs.outcome_of(case, ground), case)


@pytest.mark.parametrize("case", read_corpus("jobs"))
def test_jobs_that_were_once_handled_wrongly(ground, case):
    assert_right(broken_jobs.outcome_of(case, ground), case)
