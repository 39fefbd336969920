"""The CUDA sources as text: complete, documented, and missing ones reported."""

from __future__ import annotations

import re

import pytest

from fusedmlp.backends.cupy import cuda_tables, kernel_sources
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES, CUDA_RULES
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import RULES, SGD


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of sources of our own making."""
    monkeypatch.setattr(kernel_sources, "folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", kernel_sources.names())
def test_a_source_is_complete(name):
    text = kernel_sources.source(name)
    assert "#include" not in text  # NVRTC finds no header
    assert text.count("struct alignas(sizeof(T) * V) Pack") == text.count("enum Activation") == 1


def test_codes_are_those_of_the_tables():
    """The header has a name for every code, and another code in a table changes it."""
    text = cuda_tables.header()
    tables = {"Activation": HIDDEN_ACTIVATIONS, "Loss": LOSSES, "Rule": RULES}
    for table, rows in tables.items():
        (body,) = re.findall(rf"enum {table} {{(.*?)}}", text)
        codes = {name: int(code) for name, code in re.findall(r"(\w+) = (\d+)", body)}
        names = {"Activation": CUDA_ACTIVATIONS, "Loss": CUDA_LOSSES, "Rule": CUDA_RULES}[table]
        assert codes == {name.upper(): getattr(rows[name], "code", rows[name]) for name in names}


@pytest.mark.parametrize("table", ["CUDA_ACTIVATIONS", "CUDA_LOSSES", "CUDA_RULES"])
def test_what_has_no_cuda_function_is_not_covered(monkeypatch, table):
    architecture, optimizer = Architecture((3, 4, 1), "tanh", "squared_error"), SGD(0.1)
    assert cuda_tables.covers(architecture, optimizer)
    monkeypatch.setattr(cuda_tables, table, ())
    assert not cuda_tables.covers(architecture, optimizer)


def test_a_changed_header_changes_the_text(elsewhere):
    """CuPy keys its cache of compiled kernels by the text."""
    (elsewhere / "k.cu").write_text('#include "a.cuh"\n')
    (elsewhere / "a.cuh").write_text("int a;\n")
    before = kernel_sources.source("k.cu"), kernel_sources.hashes()
    (elsewhere / "a.cuh").write_text("int b;\n")
    assert kernel_sources.source("k.cu") != before[0]
    assert kernel_sources.hashes() != before[1]


def test_missing_files(elsewhere):
    with pytest.raises(FileNotFoundError, match=r"no CUDA source 'activations.cu' in .*; there are: "):
        kernel_sources.source("activations.cu")
    (elsewhere / "k.cu").write_text('#include "gone.cuh"\n')
    with pytest.raises(FileNotFoundError, match=r"no CUDA source 'gone.cuh' in .*; there are: k.cu"):
        kernel_sources.source("k.cu")


def test_missing_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_sources, "__file__", str(tmp_path / "src" / "fusedmlp" / "kernel_sources.py"))
    kernel_sources.folder.cache_clear()
    with pytest.raises(FileNotFoundError, match="the CUDA sources of fusedmlp are missing: expected"):
        kernel_sources.names()
    monkeypatch.undo()
    assert kernel_sources.names()


def test_the_page_on_kernels_names_every_file():
    readme = (kernel_sources.folder() / "README.md").read_text(encoding="utf-8")
    assert [file for file in kernel_sources.hashes() if f"`{file}`" not in readme] == []


@pytest.mark.parametrize("name", kernel_sources.names())
def test_shared_memory_is_dynamic(name):
    """A static __shared__ variable would be each thread's own where the kernels run on the CPU, and wrong."""
    declared = re.findall(r"^.*\b__shared__\b.*$", kernel_sources.source(name), re.MULTILINE)
    assert all(line.lstrip().startswith("extern __shared__") for line in declared), declared
