"""Maps of a part of an output: against Captum and a loop, whatever is read and however."""

from __future__ import annotations

import pytest
import torch
from against_captum import check, check_heat_map, check_precision, krypton
from hypothesis import given
from hypothesis import strategies as st
from readings import read_cases

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_attributions_of_what_is_read(rank: int, data: st.DataObject) -> None:
    case = data.draw(read_cases(rank))
    with krypton(data.draw, case.network) as explainer:
        check(case, explainer)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_outcomes_of_what_is_read(rank: int, data: st.DataObject) -> None:
    check_heat_map(data.draw, data.draw(read_cases(rank)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_what_is_read_in_float32(rank: int, data: st.DataObject) -> None:
    """The compiled kernels compute the demanded cells of what a window reaches."""
    check_precision(data.draw, data.draw(read_cases(rank)), torch.float32, 1e-4, 1e-6)
