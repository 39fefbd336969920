"""Every mistake of the notes that can be computed: as printed it fails, as corrected it holds."""

from __future__ import annotations

import pytest
from mistakes_first_note import FIRST_NOTE
from mistakes_second_note import SECOND_NOTE
from notes_math import ShapeMismatchError
from notes_mistakes import Mistake, failure

CASES = [*FIRST_NOTE, *SECOND_NOTE]


@pytest.mark.parametrize("mistake", CASES, ids=lambda mistake: mistake.id)
def test_printed_fails_and_corrected_holds(mistake: Mistake):
    assert mistake.printed
    assert all(mistake.failures()), f"{mistake.formula}: a printed form is right: {mistake.failures()}"
    assert failure(mistake.corrected, mistake.truth) == ""


def test_ids_are_numbered_without_gaps():
    for note, cases in ((1, FIRST_NOTE), (2, SECOND_NOTE)):
        ids = list(dict.fromkeys(case.id for case in cases))
        assert ids == [f"M{note}.{number}" for number in range(1, len(ids) + 1)]


def test_a_right_formula_is_not_called_a_mistake():
    """What `failure` says of each kind of formula, so that the test above can fail."""

    def impossible() -> float:
        raise ShapeMismatchError

    assert failure(lambda: 2.0, lambda: 2.0) == ""
    assert failure(lambda: 2.0, lambda: 3.0) == "value"
    assert failure(lambda: [2.0], lambda: 2.0) == "shape"
    assert failure(impossible, lambda: 2.0) == "shape"
    with pytest.raises(AssertionError, match="neither right nor clearly wrong"):
        failure(lambda: 1.00001, lambda: 1.0)
