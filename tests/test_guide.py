"""The user's guide: every command and every line of Python in it runs, in order."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from fusedmlp.cli.commands import cli

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_first_hour(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) >= 7
    names = {}
    for language, code in blocks:
        if language == "python":
            exec(code, names)
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "fusedmlp"
            result = CliRunner().invoke(cli, arguments)
            assert result.exit_code == 0, (line, result.output)
    made = {"orders.csv", "late.safetensors", "late.png", "answers.csv", "confusion.png", "predicted.png"}
    assert made | {"diabetes.safetensors", "net.safetensors"} == set(os.listdir(tmp_path))
    assert len(Path("answers.csv").read_text(encoding="utf-8").splitlines()) == 601


def test_the_options_of_the_guide_are_there():
    output = CliRunner().invoke(cli, ["train", "--help"]).output
    table = GUIDE.read_text(encoding="utf-8")
    for option in re.findall(r"^\| `(--[a-z-]+)", table, re.MULTILINE):
        assert option in output
