"""Items: each is embedded and scored rightly, or an error names it."""

import odd_items
import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import assert_right, read_corpus, short


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return odd_items.prepare(tmp_path_factory.mktemp("items") / "ground")


@given(data=st.data())
@short(150)
def test_items_are_read_or_named(ground, data):
    case = data.draw(odd_items.cases(ground))
    assert_right(odd_items.outcome_of(case, ground), case)


@pytest.mark.parametrize("case", read_corpus("items"))
def test_items_that_were_once_handled_wrongly(ground, case):
    assert_right(odd_items.outcome_of(case, ground), case)
