"""Awkward tables, and what a person would expect of each. ``python tests/data/awkward/make.py`` writes them.

Each table is a file beside this one. ``expected.json`` has, by the file's name: the options of `read_table`, and either
a part of the error's message, or the columns of numbers and of categories, the number of rows, the first row, a part of
each note, and the first targets.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

FOLDER = Path(__file__).parent
EXPECTED: dict[str, dict[str, object]] = {}


def case(name, content, encoding="utf-8", compress=False, **expected):
    """Write a table. `options` default to the target y; `content` is a string, or bytes."""
    data = content if isinstance(content, bytes) else content.encode(encoding)
    (FOLDER / name).write_bytes(gzip.compress(data, mtime=0) if compress else data)
    EXPECTED[name] = {"options": {"target": "y"}} | expected


def rows(header, line, n=12, end="\n"):
    """A header, and `line(i)` for every row."""
    return header + end + "".join(line(i) + end for i in range(n))


def names():
    """Headers: without names, with indices, repeated, with commas and line breaks."""
    plain = {"numeric": ["x"], "rows": 12, "targets": [0, 1, 0]}
    index = {"notes": ["only counts the rows"]}
    case("pandas_index.csv", rows(",x,y", lambda i: f"{i},{5 + i % 4},{i % 2}"), **plain, **index)
    case("r_row_names.csv", rows('"","x","y"', lambda i: f'"{i + 1}",{5 + i % 4},{i % 2}'), **plain, **index)
    cars = rows(",x,y", lambda i: f"Car {i},{5 + i % 4},{i % 2}")
    case("car_names.csv", cars, **plain, notes=["has no name, and a text for every row"])
    case("rownames.csv", rows("rownames,x,y", lambda i: f"{i + 1},{5 + i % 4},{i % 2}"), **plain, **index)
    case("unnamed_0.csv", rows("Unnamed: 0,x,y", lambda i: f"{i},{5 + i % 4},{i % 2}"), **plain, **index)
    case("index_name.csv", rows("index,x,y", lambda i: f"{i},{5 + i % 4},{i % 2}"), **plain, **index)
    case("id_counts.csv", rows("id,x,y", lambda i: f"{i + 1},{5 + i % 4},{i % 2}"), **plain, **index)
    case("trailing_comma.csv", rows("x,y,", lambda i: f"{5 + i % 4},{i % 2},"), **plain, notes=["without a name"])
    case("index_and_trailing.csv", rows(",x,y,", lambda i: f"{i},{5 + i % 4},{i % 2},"), **plain)
    case("two_trailing_commas.csv", rows("x,y,,", lambda i: f"{5 + i % 4},{i % 2},,"), **plain)
    case(
        "unnamed_with_values.csv",
        rows("x,,y", lambda i: f"{5 + i % 4},{i * i},{i % 2}"),
        numeric=["x", "column 2"],
        rows=12,
        first=[5, 0],
    )
    case(
        "unnamed_first_with_values.csv",
        rows(",x,y", lambda i: f"{i * i},{5 + i % 4},{i % 2}"),
        numeric=["column 1", "x"],
        rows=12,
    )
    case("height_counts.csv", rows("height,y", lambda i: f"{58 + i},{i % 2}"), numeric=["height"], rows=12)
    case("year_counts.csv", rows("x,year,y", lambda i: f"{i % 5},{i},{i % 2}"), numeric=["x", "year"], rows=12)
    case("repeated_name.csv", rows("x,x,y", lambda i: f"{i},{i},{i % 2}"), error="'x' comes twice")
    case("repeated_y.csv", rows("x,y,y", lambda i: f"{i},{i},{i % 2}"), error="'y' comes twice")
    case("duplicated_word.csv", rows("a_duplicated_0,y", lambda i: f"{i},{i % 2}"), numeric=["a_duplicated_0"], rows=12)
    case("no_header.csv", rows("5.1,3.5,0", lambda i: f"5.{i},3.{i},{i % 2}"), error="expected column names")
    case("spaces_in_names.csv", rows(" x , y ", lambda i: f" {5 + i % 4} , {i % 2} "), **plain)
    case(
        "comma_in_name.csv",
        rows('"width, cm",x,y', lambda i: f"{i},{5 + i % 4},{i % 2}"),
        options={"target": "y", "drop": ["width, cm"]},
        **plain,
    )
    case(
        "drop_list.csv",
        rows("a,b,x,y", lambda i: f"{i},{i},{5 + i % 4},{i % 2}"),
        options={"target": "y", "drop": ["a,b"]},
        **plain,
    )
    case(
        "line_break_in_name.csv", rows('"x\nof it",y', lambda i: f"{5 + i % 4},{i % 2}"), numeric=["x\nof it"], rows=12
    )
    case("byte_order_mark.csv", "\ufeff" + rows("x,y", lambda i: f"{5 + i % 4},{i % 2}"), **plain)
    case("crlf.csv", rows("x,y", lambda i: f"{5 + i % 4},{i % 2}", end="\r\n"), **plain)
    case("semicolons.csv", rows("x;y", lambda i: f"{5 + i % 4};{i % 2}"), **plain)
    case("tabs.tsv", rows("x\ty", lambda i: f"{5 + i % 4}\t{i % 2}"), **plain)
    case("pipes.csv", rows("x|y", lambda i: f"{5 + i % 4}|{i % 2}"), **plain)
    case("gzip.csv.gz", rows("x,y", lambda i: f"{5 + i % 4},{i % 2}"), compress=True, **plain)
    case("gzip_by_content.csv", rows("x,y", lambda i: f"{5 + i % 4},{i % 2}"), compress=True, **plain)
    case("not_gzip.csv.gz", rows("x,y", lambda i: f"{5 + i % 4},{i % 2}"), **plain)
    case("quotes.csv", rows('"x","y"', lambda i: f'"{5 + i % 4}","{i % 2}"'), **plain)
    case("latin_1.csv", rows("größe,y", lambda i: f"{i},{i % 2}"), encoding="latin-1", error="UTF-8")


def strays():
    """A few texts among numbers."""
    for label, text in {
        "point": ".",
        "dash": "-",
        "dashes": "--",
        "word": "missing",
        "unknown": "Unknown",
        "division": "#DIV/0!",
        "reference": "#REF!",
        "value": "#VALUE!",
        "not_applicable": "n.a.",
        "star": "*",
        "null": "(null)",
    }.items():
        case(
            f"stray_{label}.csv",
            rows("age,y", lambda i, text=text: f"{text if i in (3, 7) else 20 + i},{i % 2}", 40),
            numeric=["age"],
            rows=40,
            first=[20],
            missing={"age": 2},
            notes=[repr(text)],
        )
    for label, text in {
        "na": "NA",
        "empty": "",
        "nan": "NaN",
        "none": "None",
        "question": "?",
        "na_dots": "N/A",
    }.items():
        case(
            f"usual_{label}.csv",
            rows("age,y", lambda i, text=text: f"{text if i in (3, 7) else 20 + i},{i % 2}", 40),
            numeric=["age"],
            rows=40,
            missing={"age": 2},
            notes=[],
        )
    word = rows("age,y", lambda i: f"{'abc' if i == 7 else 20 + i},{i % 2}", 40)
    case("stray_word_refused.csv", word, error="column 'age': 39 numbers, and 'abc' in row 7")
    case(
        "stray_word_settled.csv",
        word,
        options={"target": "y", "missing": ["abc"]},
        numeric=["age"],
        rows=40,
        missing={"age": 1},
    )
    case("stray_word_numeric.csv", word, options={"target": "y", "numeric": ["age"]}, error="'abc' in row 7")
    case(
        "stray_word_categorical.csv",
        rows("age,y", lambda i: f"{'abc' if i == 7 else 20 + i % 13},{i % 2}", 40),
        options={"target": "y", "categorical": ["age"]},
        text=["age"],
        rows=40,
    )
    case(
        "stray_letter_o.csv", rows("a,y", lambda i: f"{'1O' if i == 2 else 10 + i},{i % 2}", 40), error="'1O' in row 2"
    )
    case(
        "stray_unit.csv",
        rows("a,y", lambda i: f"{'12 kg' if i == 2 else 10 + i},{i % 2}", 40),
        error="'12 kg' in row 2",
    )
    case(
        "stray_less_than.csv", rows("a,y", lambda i: f"{'<5' if i == 2 else 10 + i},{i % 2}", 40), error="'<5' in row 2"
    )
    case(
        "few_and_more.csv",
        rows("children,y", lambda i: f"{['0', '1', '2', '3+'][i % 4]},{i % 2}", 40),
        text=["children"],
        rows=40,
    )
    case("grades.csv", rows("grade,y", lambda i: f"{'ABC'[i % 3]},{i % 2}", 40), text=["grade"], rows=40)
    case("sentinel.csv", rows("a,y", lambda i: f"{-9999 if i == 5 else i},{i % 2}", 40), numeric=["a"], rows=40)
    case(
        "sentinel_settled.csv",
        rows("a,y", lambda i: f"{-9999 if i == 5 else i},{i % 2}", 40),
        options={"target": "y", "missing": ["-9999"]},
        numeric=["a"],
        rows=40,
        missing={"a": 1},
    )
    case("all_missing.csv", rows("x,empty,y", lambda i: f"{5 + i % 4},,{i % 2}"), numeric=["x", "empty"], rows=12)
    case("names_of_people.csv", rows("x,name,y", lambda i: f"{i},person {i},{i % 2}", 40), error="--drop name")
    case(
        "names_dropped.csv",
        rows("x,name,y", lambda i: f"{i},person {i},{i % 2}", 40),
        options={"target": "y", "drop": ["name"]},
        numeric=["x"],
        rows=40,
    )
    case(
        "huge_cell.csv",
        rows("x,t,y", lambda i: f"{i},{'z' * 30_000 if i == 3 else i},{i % 2}", 40),
        error="zzz...",
        longest=500,
    )


def written_numbers():
    """Decimal commas, thousands separators, percent and currency signs."""
    comma = {"notes": ["decimal comma"]}
    case(
        "decimal_comma.csv",
        rows("a;b;y", lambda i: f"5,{i};1,{i}5;{i % 2}"),
        numeric=["a", "b"],
        rows=12,
        first=[5.0, 1.05],
        **comma,
    )
    case(
        "decimal_comma_tabs.tsv",
        rows("a\ty", lambda i: f"5,{i}\t{i % 2}"),
        numeric=["a"],
        rows=12,
        first=[5.0],
        **comma,
    )
    case(
        "decimal_comma_quoted.csv",
        rows("a,y", lambda i: f'"5,{i}",{i % 2}'),
        numeric=["a"],
        rows=12,
        first=[5.0],
        **comma,
    )
    case(
        "decimal_comma_negative.csv",
        rows("a;y", lambda i: f"-{i},5;{i % 2}"),
        numeric=["a"],
        rows=12,
        first=[-0.5],
        **comma,
    )
    case(
        "decimal_comma_whole.csv",
        rows("a;y", lambda i: f"{i if i % 2 else f'{i},5'};{i % 2}"),
        numeric=["a"],
        rows=12,
        first=[0.5],
    )
    case(
        "decimal_comma_missing.csv",
        rows("a;y", lambda i: f"{'-' if i == 3 else f'{i},5'};{i % 2}", 40),
        numeric=["a"],
        rows=40,
        missing={"a": 1},
    )
    case(
        "german_thousands.csv",
        rows("a;y", lambda i: f"1.{200 + i},5;{i % 2}"),
        numeric=["a"],
        rows=12,
        first=[1200.5],
        **comma,
    )
    case(
        "german_millions.csv",
        rows("a;y", lambda i: f"1.234.{500 + i};{i % 2}"),
        numeric=["a"],
        rows=12,
        first=[1234500],
    )
    case("thousands.csv", rows("a,y", lambda i: f'"{1 + i},234",{i % 2}'), numeric=["a"], rows=12, first=[1234])
    case(
        "thousands_fraction.csv",
        rows("a,y", lambda i: f'"{1 + i},234.5",{i % 2}'),
        numeric=["a"],
        rows=12,
        first=[1234.5],
    )
    case("millions.csv", rows("a;y", lambda i: f"{1 + i},234,567;{i % 2}"), numeric=["a"], rows=12, first=[1234567])
    case("thousands_space.csv", rows("a,y", lambda i: f"1 {200 + i},{i % 2}"), numeric=["a"], rows=12, first=[1200])
    case(
        "thousands_narrow_space.csv",
        rows("a,y", lambda i: f"1\u202f{200 + i},{i % 2}"),
        numeric=["a"],
        rows=12,
        first=[1200],
    )
    case(
        "thousands_apostrophe.csv", rows("a,y", lambda i: f"1'{200 + i},{i % 2}"), numeric=["a"], rows=12, first=[1200]
    )
    unsettled = rows("a;y", lambda i: f"{1 + i},234;{i % 2}")
    case("unsettled_comma.csv", unsettled, error="--decimal")
    case(
        "unsettled_comma_decimal.csv",
        unsettled,
        options={"target": "y", "decimal": ","},
        numeric=["a"],
        rows=12,
        first=[1.234],
    )
    case(
        "unsettled_comma_thousands.csv",
        unsettled,
        options={"target": "y", "decimal": "."},
        numeric=["a"],
        rows=12,
        first=[1234],
    )
    case(
        "settled_by_another.csv",
        rows("a;b;y", lambda i: f"{1 + i},234;{i},5;{i % 2}"),
        numeric=["a", "b"],
        rows=12,
        first=[1.234, 0.5],
    )
    case("percent.csv", rows("a,y", lambda i: f"{i * 3}%,{i % 2}"), numeric=["a"], rows=12, first=[0], notes=["'0%'"])
    case("percent_space.csv", rows("a,y", lambda i: f"{i * 3}.5 %,{i % 2}"), numeric=["a"], rows=12, first=[0.5])
    case("dollars.csv", rows("a,y", lambda i: f"${i}.50,{i % 2}"), numeric=["a"], rows=12, first=[0.5])
    case(
        "dollars_thousands.csv",
        rows("a,y", lambda i: f'"${1 + i},234.50",{i % 2}'),
        numeric=["a"],
        rows=12,
        first=[1234.5],
    )
    case("negative_dollars.csv", rows("a,y", lambda i: f"-${i + 1},{i % 2}"), numeric=["a"], rows=12, first=[-1])
    case("euros.csv", rows("a;y", lambda i: f"{i},50 €;{i % 2}"), numeric=["a"], rows=12, first=[0.5])
    case("exponents.csv", rows("a,y", lambda i: f"{i}.5e-3,{i % 2}"), numeric=["a"], rows=12, first=[0.0005], notes=[])
    case("plus_signs.csv", rows("a,y", lambda i: f"+{i},{i % 2}"), numeric=["a"], rows=12, first=[0])
    case("leading_point.csv", rows("a,y", lambda i: f".{i}5,{i % 2}"), numeric=["a"], rows=12, first=[0.05], notes=[])
    case("infinite.csv", rows("a,y", lambda i: f"{'inf' if i == 3 else i},{i % 2}"), numeric=["a"], rows=12)


def codes():
    """Digits that are no numbers."""
    case(
        "zip.csv",
        rows("zip,y", lambda i: f"0{2139 + i % 3},{i % 2}"),
        text=["zip"],
        rows=12,
        first=["02139"],
        notes=["codes"],
    )
    case(
        "zip_mixed.csv", rows("zip,y", lambda i: f"{['02139', '90210', '10001'][i % 3]},{i % 2}"), text=["zip"], rows=12
    )
    case(
        "zip_numeric.csv",
        rows("zip,y", lambda i: f"0{2139 + i % 3},{i % 2}"),
        options={"target": "y", "numeric": ["zip"]},
        numeric=["zip"],
        rows=12,
        first=[2139],
    )
    case("zeros_and_fractions.csv", rows("a,y", lambda i: f"0{i}.5,{i % 2}"), numeric=["a"], rows=12, first=[0.5])
    case("single_zero.csv", rows("a,y", lambda i: f"{i % 2},{i % 2}"), numeric=["a"], rows=12)
    case(
        "classes_with_zeros.csv",
        rows("x,y", lambda i: f"{i},00{i % 3}"),
        numeric=["x"],
        rows=12,
        targets=["000", "001", "002"],
    )
    case(
        "long_classes.csv",
        rows("x,y", lambda i: f"{i},1234567890123456789{i % 3}"),
        numeric=["x"],
        rows=12,
        targets=["12345678901234567890", "12345678901234567891"],
    )
    case("long_identifiers.csv", rows("x,y", lambda i: f"1234567890123456789{i % 3},{i % 2}"), text=["x"], rows=12)
    case("phone.csv", rows("x,phone,y", lambda i: f"{i},+49 30 {1000 + i},{i % 2}", 40), error="--drop phone")
    case("hexadecimal.csv", rows("x,y", lambda i: f"0x{i % 4},{i % 2}"), text=["x"], rows=12)
    case("versions.csv", rows("v,y", lambda i: f"1.{i % 3}.2,{i % 2}"), text=["v"], rows=12)
    case("truth.csv", rows("a,y", lambda i: f"{['True', 'False'][i % 2]},{i % 2}"), numeric=["a"], rows=12, first=[1])
    case("yes_no.csv", rows("a,y", lambda i: f"{['yes', 'no'][i % 2]},{i % 2}"), text=["a"], rows=12)


def dates():
    """Dates, as they are written in different places."""
    parts = ["d: year", "d: day of year", "d: weekday", "d: days"]
    first = {"numeric": parts, "rows": 12, "first": [2024, 32, 4, 19754], "notes": ["dates"]}
    case("date_iso.csv", rows("d,y", lambda i: f"2024-02-{1 + i:02d},{i % 2}"), **first)
    case("date_slashes.csv", rows("d,y", lambda i: f"2024/02/{1 + i:02d},{i % 2}"), **first)
    case("date_german.csv", rows("d,y", lambda i: f"{1 + i:02d}.02.2024,{i % 2}"), **first)
    case("date_american.csv", rows("d,y", lambda i: f"2/{1 + 2 * i}/2024,{i % 2}"), **first)
    case("date_british.csv", rows("d,y", lambda i: f"{1 + 2 * i}/2/2024,{i % 2}"), **first)
    case("date_month_name.csv", rows("d,y", lambda i: f"{1 + i:02d}-Feb-2024,{i % 2}"), **first)
    case("date_long.csv", rows("d,y", lambda i: f'"February {1 + i:02d}, 2024",{i % 2}'), **first)
    case("date_short_year.csv", rows("d,y", lambda i: f"{1 + 2 * i:02d}.02.24,{i % 2}"), **first)
    case(
        "date_unsettled.csv",
        rows("d,y", lambda i: f"2/{1 + i % 9}/2024,{i % 2}"),
        numeric=parts,
        rows=12,
        first=[2024, 32, 4, 19754],
        notes=["--day-first"],
    )
    case(
        "date_day_first.csv",
        rows("d,y", lambda i: f"{1 + i % 9}/2/2024,{i % 2}"),
        options={"target": "y", "day_first": True},
        numeric=parts,
        rows=12,
        first=[2024, 32, 4, 19754],
    )
    case(
        "date_and_time.csv",
        rows("d,y", lambda i: f"2024-02-{1 + i:02d} 06:00:00,{i % 2}"),
        numeric=[*parts, "d: hour"],
        rows=12,
        first=[2024, 32, 4, 19754.25, 6],
    )
    case(
        "date_utc.csv",
        rows("d,y", lambda i: f"2024-02-{1 + i:02d}T06:00:00Z,{i % 2}"),
        numeric=[*parts, "d: hour"],
        rows=12,
        first=[2024, 32, 4, 19754.25, 6],
    )
    case(
        "date_microseconds.csv",
        rows("d,y", lambda i: f"2024-02-{1 + i:02d}T06:00:00.000000,{i % 2}"),
        numeric=[*parts, "d: hour"],
        rows=12,
    )
    case(
        "date_missing.csv",
        rows("d,y", lambda i: f"{'' if i == 4 else f'2024-02-{1 + i:02d}'},{i % 2}"),
        numeric=parts,
        rows=12,
        missing={"d: year": 1},
    )
    case(
        "date_marker.csv",
        rows("d,y", lambda i: f"{'unknown' if i == 4 else f'2024-02-{1 + i:02d}'},{i % 2}"),
        numeric=parts,
        rows=12,
        missing={"d: year": 1},
    )
    case(
        "date_impossible.csv",
        rows("d,y", lambda i: f"2024-02-{20 + i:02d},{i % 2}", 11),
        error="'2024-02-30' in row 10",
    )
    case("date_target.csv", rows("x,y", lambda i: f"{i},2024-02-{1 + i:02d}"), error="got dates")


def lines():
    """Rows that are short, long or empty, and rows without a target."""
    case("short_row.csv", "a,b,y\n1,2,0\n3,4\n5,6,1\n", error="line 3 has 2 fields; the first line names 3")
    case("short_quoted_row.csv", 'a,b,y\n"1",2,0\n"3",4\n5,6,1\n', error="line 3 has 2 fields")
    case("long_row.csv", "a,b,y\n1,2,0\n3,4,1,9\n5,6,1\n", error="line 3 has 4 fields")
    case("empty_last_field.csv", "a,y,b\n1,0,\n3,1,5\n5,1,6\n4,0,6\n", numeric=["a", "b"], rows=4, missing={"b": 1})
    case(
        "blank_lines.csv", "a,b,y\n1,2,0\n\n3,4,1\n\n5,6,1\n7,8,0\n", numeric=["a", "b"], rows=4, notes=["2 empty rows"]
    )
    case("no_last_line_break.csv", "a,y\n1,0\n2,1\n3,0\n4,1", numeric=["a"], rows=4)
    case("only_a_header.csv", "a,y\n", error="at least one row")
    case("empty_file.csv", "", error="the file is empty")
    case("only_a_target.csv", "y\n0\n1\n0\n1\n", error="at least one column")
    without = rows("a,y", lambda i: f"{i},{'' if i % 4 == 1 else i % 2}", 40)
    case("no_target_in_rows.csv", without, numeric=["a"], rows=30, notes=["10 rows without 'y'"])
    case(
        "target_required.csv",
        without,
        options={"target": "y", "require_every_target": True},
        error="10 values are missing",
    )
    case("no_target_at_all.csv", rows("a,y", lambda i: f"{i},"), error="12 values are missing")
    case(
        "target_marker.csv", rows("a,y", lambda i: f"{i},{'.' if i % 4 == 1 else i * 1.5}", 40), numeric=["a"], rows=30
    )
    case("wrong_target.csv", rows("a,z", lambda i: f"{i},{i % 2}"), error="there is no 'y'")
    case(
        "weights.csv",
        rows("height,y", lambda i: f"{58 + i},{115 + 3 * i}", 15),
        numeric=["height"],
        rows=15,
        classes=False,
    )
    case("counts.csv", rows("x,y", lambda i: f"{i},{i % 6}", 40), numeric=["x"], rows=40, classes=True)
    case(
        "real_none_category.csv",
        rows("garage,y", lambda i: f"{['None', 'Attached', 'Detached'][i % 3]},{i % 2}", 40),
        text=["garage"],
        rows=40,
    )


if __name__ == "__main__":
    for old in FOLDER.iterdir():
        if old.suffix in (".csv", ".tsv", ".gz"):
            old.unlink()
    for part in (names, strays, written_numbers, codes, dates, lines):
        part()
    (FOLDER / "expected.json").write_text(json.dumps(EXPECTED, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(len(EXPECTED), "tables")
