"""Saved models: a damaged file is named, or the model computes what it computed before."""

import damaged_checkpoints
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import assert_right, read_corpus, short


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return damaged_checkpoints.prepare(tmp_path_factory.mktemp("checkpoints") / "ground")


@given(data=st.data())
@short(80)
def test_damaged_files_are_named(ground, data):
    case = data.draw(damaged_checkpoints.cases(ground))
    assert_right(damaged_checkpoints.outcome_of(case, ground), case)


@pytest.mark.parametrize("case", read_corpus("checkpoints"))
def test_checkpoints_that_were_once_handled_wrongly(ground, case):
    assert_right(damaged_checkpoints.outcome_of(case, ground), case)
