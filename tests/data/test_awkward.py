"""Tables as people have them: what is read of each, or the line that says what stands in the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fusedmlp.data.reading import read_table
from fusedmlp.data.targets import ClassEncoder, fit_target

FOLDER = Path(__file__).parent / "awkward"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def test_there_are_many():
    assert len(EXPECTED) >= 120
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".csv", ".tsv", ".gz")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_table(name):
    expected = EXPECTED[name]
    if "error" in expected:
        with pytest.raises(ValueError, match=r".") as caught:
            read_table(FOLDER / name, **expected["options"])
        message = str(caught.value)
        assert expected["error"] in message
        assert "\n" not in message
        assert len(message) < expected.get("longest", 1000)
        return
    table = read_table(FOLDER / name, **expected["options"])
    assert list(table.schema.numeric) == expected.get("numeric", [])
    assert list(table.schema.text) == expected.get("text", [])
    assert len(table) == expected["rows"]
    first = [*table.numeric[0].tolist(), *table.text[0].tolist()]
    assert first[: len(expected.get("first", []))] == pytest.approx(expected.get("first", []))
    assert table.target[: len(expected.get("targets", []))].tolist() == expected.get("targets", [])
    missing = np.isnan(table.numeric).sum(axis=0)
    for column, count in expected.get("missing", {}).items():
        assert missing[table.schema.numeric.index(column)] == count
    for note in expected.get("notes", []):
        assert any(note in text for text in table.notes), table.notes
    if expected.get("notes") == []:
        assert table.notes == ()
    if "classes" in expected:
        encoder, _ = fit_target(table.target)
        assert isinstance(encoder, ClassEncoder) == expected["classes"]


@pytest.mark.parametrize("name", [name for name in EXPECTED if "error" not in EXPECTED[name]])
def test_it_is_read_the_same_with_the_schema(name):
    """As for predictions: by the rules that training found."""
    options = EXPECTED[name]["options"]
    table = read_table(FOLDER / name, **options)
    again = read_table(
        FOLDER / name, schema=type(table.schema).from_dict(json.loads(json.dumps(table.schema.to_dict())))
    )
    assert again.schema == table.schema
    np.testing.assert_array_equal(again.numeric, table.numeric)
    assert again.text.tolist() == table.text.tolist()
    assert again.target.tolist() == table.target.tolist()
