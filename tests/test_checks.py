"""Checks of single arguments: whatever is given, the answer is a number in range or a ValueError with the name."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusedmlp import BackendUnavailableError, Network
from fusedmlp.checks import check_choice, check_count, check_flag, check_number

ANYTHING = st.one_of(
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.decimals(),
    st.fractions(),
    st.booleans(),
    st.none(),
    st.lists(st.floats(), max_size=2),
    st.integers(300, 6000).map(lambda digits: 10**digits),
    st.sampled_from(["i1", "u8", "f2", "f8", "g", "c16", "?"]).flatmap(
        lambda dtype: st.sampled_from([np.ones(2, dtype)[0], np.ones((), dtype), np.ones(1, dtype), np.ones(3, dtype)])
    ),
)


@given(ANYTHING)
@example(10**400)
@example(-(10**5000))
@example(np.longdouble("1e4000") if np.finfo(np.longdouble).max > 1e308 else 0)
def test_whatever_is_given(value):
    for check in (check_number, check_count):
        message = ""
        try:
            number = check("alpha", value, 0)
        except ValueError as error:
            message = str(error)
        else:
            assert type(number) is (float if check is check_number else int)
            assert number >= 0
            assert number == float(value)
        assert not message or message.startswith("alpha: expected a ")
        assert len(message) < 250


@pytest.mark.parametrize(
    "value", [0.5, Fraction(1, 2), np.float32(0.5), np.float16(0.5), np.array(0.5), np.longdouble("0.5")]
)
def test_numbers_of_every_kind(value):
    assert check_number("x", value, 0, 1) == 0.5


@pytest.mark.parametrize(
    "value",
    ["0.5", b"1", Decimal("0.5"), True, np.True_, np.array(True), 0.5 + 0j, np.complex64(0.5), np.array(0.5 + 0j),
     np.array([0.5]), [0.5], None, math.nan, math.inf, 10**400, 0, 1, np.array("0.5")],
)  # fmt: skip
def test_what_is_no_number_between_0_and_1(value):
    with pytest.raises(ValueError, match=r"^x: expected a number in \(0, 1\); got "):
        check_number("x", value, 0, 1)


def test_ends_of_the_interval():
    assert check_number("x", 0, 0, 1, include_low=True) == 0
    assert check_number("x", np.int8(1), 0, 1, include_high=True) == 1
    with pytest.raises(ValueError, match=r"x: expected a number in \[0, 1\]; got -0.1"):
        check_number("x", -0.1, 0, 1, include_low=True, include_high=True)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_counts(value):
    assert check_count("n", value) == 3


@pytest.mark.parametrize("value", [0, -1, 3.0, "3", True, np.True_, np.array([3]), None, Fraction(3), 3 + 0j])
def test_what_is_no_count(value):
    with pytest.raises(ValueError, match="^n: expected a whole number >= 1; got "):
        check_count("n", value)


def test_a_count_fits_64_bits():
    assert check_count("n", 2**63 - 1) == 2**63 - 1
    for value in (2**63, 10**5000, np.uint64(2**63)):
        with pytest.raises(ValueError, match="^n: expected a whole number from 1 to 9223372036854775807; got "):
            check_count("n", value)


def test_flags_and_choices():
    assert check_flag("f", np.True_) is True
    assert check_choice("c", np.str_("a"), ["a", "b"]) == "a"
    for value in (1, "True", None, np.array([True])):
        with pytest.raises(ValueError, match="f: expected True or False; got"):
            check_flag("f", value)
    for value in ("A", 1, None, ["a"], np.array(["a"]), 10**5000):
        with pytest.raises(ValueError, match="c: expected one of a, b; got"):
            check_choice("c", value, ["a", "b"])


@pytest.mark.parametrize(
    "arguments",
    [{"alpha": 10**400}, {"learning_rate": 10**400}, {"tolerance": 10**400}, {"epochs": 10**400}, {"alpha": "0.1"},
     {"batch_size": 10**5000}, {"patience": True}, {"validation_fraction": 10**400}],
)  # fmt: skip
def test_arguments_of_fit_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected a "):
        Network([1, 1], backend="numpy").fit(np.ones((1, 2)), np.ones((1, 2)), **{"epochs": 1} | arguments)


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(BackendUnavailableError("cupy", "no GPU")))
    assert (str(error), error.reason) == ("backend 'cupy' is unavailable: no GPU", "no GPU")
