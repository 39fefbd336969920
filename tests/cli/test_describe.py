"""``fusedmlp describe``, and what the commands say about columns."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner

from fusedmlp.cli.commands import cli


def write(path, leaks=False):
    rng = np.random.default_rng(0)
    lines = [",age,price,joined,zip,plan,refund,late"]
    for i in range(200):
        late = int(rng.random() < 0.4)
        refund = 100 * late + rng.integers(1, 50) if leaks else rng.integers(1, 50)
        day = np.datetime64("2023-01-01") + i
        age = "." if i % 50 == 0 else 20 + i % 40
        lines.append(
            f'{i},{age},"{1 + i % 9},{100 + i}.50",{day},0{2100 + i % 7},{["basic", "pro"][i % 2]},{refund},{late}'
        )
    path.write_text("\n".join(lines))


def test_every_column_has_a_line(run, tmp_path):
    write(tmp_path / "d.csv")
    lines = run("describe", "d.csv", "--target", "late").splitlines()
    assert lines[0] == "d.csv: 200 rows, 6 columns"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line and not line.startswith(" ")}
    assert rows["age"][:3] == ["number", "4", "40"]
    assert rows["joined"][:6] == ["date", "0", "200", "2023-01-01", "..", "2023-07-19"]
    assert rows["zip"][:3] == ["category", "0", "7"]
    assert "column 'column 1' only counts the rows: left out" in lines[1]
    assert any("'.': 4 missing values" in line for line in lines)


def test_a_column_that_tells_the_target_is_named(run, tmp_path):
    write(tmp_path / "d.csv", leaks=True)
    told = "column 'refund' tells the target by itself (1.000): is it known beforehand?"
    assert told in run("train", "d.csv", "--target", "late", "--epochs", "1")
    assert "tells the target by itself" in run("describe", "d.csv", "--target", "late")
    write(tmp_path / "d.csv")
    assert "tells" not in run("train", "d.csv", "--target", "late", "--epochs", "1")


def test_other_formats(run):
    assert "wine: 178 rows, 13 columns" in run("describe", "wine")


def test_without_a_target(run, tmp_path):
    (tmp_path / "d.csv").write_text("a,b\n" + "1,x\n2,y\n" * 9)
    assert "b       category        0          2  x (9), y (9)" in run("describe", "d.csv")


def test_new_categories_are_counted_and_said_once(run, tmp_path):
    (tmp_path / "d.csv").write_text("a,b,y\n" + "".join(f"{i},{'xz'[i % 2]},{i % 2}\n" for i in range(40)))
    (tmp_path / "new.csv").write_text("a,b\n1,x\n2,w\n3,w\n4,v\n")
    run("train", "d.csv", "--target", "y", "--out", "m.safetensors", "--epochs", "1")
    result = CliRunner().invoke(cli, ["predict", "m.safetensors", "new.csv"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 5


def test_rows_without_a_prediction_are_told(run, tmp_path):
    (tmp_path / "d.csv").write_text("a,b,y\n" + "".join(f"{i},{'xz'[i % 2]},{i % 2}\n" for i in range(40)))
    (tmp_path / "new.csv").write_text("a,b,y\n1,x,0\n\n2,z,1\n\n3,x,\n")
    run("train", "d.csv", "--target", "y", "--out", "m.safetensors", "--epochs", "1")
    result = CliRunner().invoke(cli, ["predict", "m.safetensors", "new.csv"])
    assert (len(result.stdout.splitlines()), result.stderr) == (4, "new.csv: 2 empty rows: left out\n")
    result = CliRunner().invoke(cli, ["evaluate", "m.safetensors", "new.csv"])
    assert result.stderr.splitlines() == ["new.csv: 2 empty rows: left out", "new.csv: 1 row without 'y': left out"]
