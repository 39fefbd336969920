"""The CUDA sources as text: complete, documented, and missing ones reported."""

from __future__ import annotations

import hashlib
import re

import pytest
from harness.global_writes import complaints

from fusedmlp.backends.cupy import kernel_sources


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of sources of our own making."""
    monkeypatch.setattr(kernel_sources, "folder", lambda: tmp_path)
    return tmp_path


def test_names_and_hashes():
    assert kernel_sources.names() == [
        "fused_backward.cu",
        "hidden_layer.cu",
        "mini_batch.cu",
        "narrow_cluster.cu",
        "narrow_step.cu",
        "optimizer.cu",
        "output_layer.cu",
        "activations.cu",
        "sum_rows.cu",
    ]
    hashes = kernel_sources.hashes()
    headers = {"clusters.cuh", "common.cuh", "losses.cuh", "narrow_block.cuh", "tile_products.cuh", "progress.cuh"}
    assert hashes.keys() == {*headers, *kernel_sources.names()}
    for file, digest in hashes.items():
        assert digest == hashlib.sha256((kernel_sources.folder() / file).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", kernel_sources.names())
def test_a_source_is_complete(name):
    text = kernel_sources.source(name)
    assert "#include" not in text  # NVRTC finds no header
    assert text.count("struct alignas(sizeof(T) * V) Pack") == 1
    assert "extern" in text


@pytest.mark.parametrize("name", kernel_sources.names())
def test_a_source_says_what_it_computes(name):
    head = kernel_sources.source(name).split("\n\n")[0:8]
    comment = "\n".join(line for part in head for line in part.splitlines() if line.startswith("//"))
    formula = {
        "fused_backward.cu": "f'(A)",
        "hidden_layer.cu": "dZ = (W2 dz) ⊙ f'(A)",
        "mini_batch.cu": "J = Σ w j / Σ w",
        "narrow_cluster.cu": "dW1 = X dZᵀ",
        "narrow_step.cu": "dW1 = X dZᵀ",
        "optimizer.cu": "θ ← θ - rate g",
        "output_layer.cu": "(Σ w j, Σ w)",
        "activations.cu": "f(Z + b)",
        "sum_rows.cu": "out[i] = Σ over rows of x[row, i]",
    }[name]
    for part in (formula, "(n_in, m)|(n, m)|(n,)|(n_out, m)|(rows, n)", "Bytes moved", "[Ff]lops:"):
        assert re.search(part if "|" in part or part.startswith("[") else re.escape(part), comment), part


def test_headers_are_inlined_once(elsewhere):
    (elsewhere / "a.cuh").write_text("int a;\n")
    (elsewhere / "b.cuh").write_text('#include "a.cuh"\nint b;\n')
    (elsewhere / "k.cu").write_text('// kernel\n#include "b.cuh"\n  # include "a.cuh"\nint k;\n')
    assert kernel_sources.source("k.cu").split() == ["//", "kernel", "int", "a;", "int", "b;", "int", "k;"]


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


def test_table_of_kernels_names_every_kernel():
    readme = (kernel_sources.folder() / "README.md").read_text(encoding="utf-8")
    for file in kernel_sources.hashes():
        assert f"`{file}`" in readme
    functions = {
        re.sub(r"\W.*", "", match)
        for file in kernel_sources.names()
        for match in re.findall(r"\b(activate|fused_backward_\d+|times_derivative)_##", kernel_sources.source(file))
    }
    for function in functions:
        assert function in readme


@pytest.mark.parametrize("name", kernel_sources.names())
def test_shared_memory_is_dynamic(name):
    """A static __shared__ variable would be each thread's own where the kernels run on the CPU, and wrong."""
    declared = re.findall(r"^.*\b__shared__\b.*$", kernel_sources.source(name), re.MULTILINE)
    assert all(line.lstrip().startswith("extern __shared__") for line in declared), declared


@pytest.mark.parametrize("name", kernel_sources.hashes())
def test_no_number_is_summed_by_several_blocks(name):
    text = (kernel_sources.folder() / name).read_text(encoding="utf-8")
    assert complaints(text) == []


READ_AND_WRITTEN = "is read and written"


@pytest.mark.parametrize(
    ("parameters", "body", "expected"),
    [
        # Accumulation, in the ways to write it.
        ("float* p", "p[0] += 1;", READ_AND_WRITTEN),
        ("float* p", "p[threadIdx.x] -= 1;", READ_AND_WRITTEN),
        ("float* __restrict__ p, int n", "p[p ? n : 0] *= 2;", READ_AND_WRITTEN),
        ("float* p", "*p += 1;", READ_AND_WRITTEN),
        ("float* p", "*(p + 1) += 1;", READ_AND_WRITTEN),
        ("float* p", "(*p) += 1;", READ_AND_WRITTEN),
        ("float* p", "(*p)++;", READ_AND_WRITTEN),
        ("float* p", "++p[3];", READ_AND_WRITTEN),
        ("float* p", "p[3]--;", READ_AND_WRITTEN),
        ("float* p", "p[1] = p[1] + 1;", READ_AND_WRITTEN),
        ("float* p", "float x = p[1]; x += 1; p[1] = x;", READ_AND_WRITTEN),
        ("float* p", "*p = 1 + *p;", READ_AND_WRITTEN),
        ("float4* p", "p[1].x += 1;", READ_AND_WRITTEN),
        ("float4* p", "p->x += 1;", READ_AND_WRITTEN),
        ("float* p", "float* q = p + 1; *q += 1;", READ_AND_WRITTEN),
        ("float* p", "auto q = p + 1; q[0] += 1;", READ_AND_WRITTEN),
        ("float* p", "reinterpret_cast<float2*>(p)[1].x += 1;", READ_AND_WRITTEN),
        ("float* p", "Pack<T, V> x = load<T, V>(p + 1, 4); x.x[0] += 1; store<T, V>(p + 1, x, 4);", READ_AND_WRITTEN),
        ("float* p", "float& x = p[1]; x += 1;", "a reference to an element of p"),
        ("Problem s", "s.out[1] += 1;", READ_AND_WRITTEN),
        ("Problem s", "s.out[1] = 1; float x = s.out[2];", READ_AND_WRITTEN),
        ("float* p", "// own\n p[0] += 1;", READ_AND_WRITTEN),
        ("float* p", "// own: mine\n p[0] += 1;\n p[1] += 1;", READ_AND_WRITTEN),
        # Atomics.
        ("float* p", "atomicAdd(p, 1.0f);", "an atomic on p"),
        ("float* p", "atomicAdd(&p[3], 1.0f);", "an atomic on p"),
        ("float* p", "atomicCAS(reinterpret_cast<unsigned*>(p), 1u, 2u);", "an atomic on reinterpret_cast"),
        ("float* p", "atomicCAS((unsigned*)p, 1u, 2u);", "an atomic on"),
        ("unsigned* p", "atomicAdd(p + 1, 1u);", None),
        # What is no accumulation.
        ("float* p", "p[0] = 1; p[1] = 2;", None),
        ("const float* p, float* out", "out[0] = p[0] + p[1];", None),
        ("float* p", "float x[4] = {}; x[0] += 1; p[0] = x[0];", None),
        ("float* p", "p += 1; p[0] = 2;", None),
        ("float* p, float a", "float x = a * p[0];", None),
        ("float* p", "float* room = reinterpret_cast<float*>(shared_memory); room[0] += 1; p[0] = room[0];", None),
        ("Shared s", "s.room[1] += 1; s.second[1] += 1;", None),
        ("float* p", "p[0] += 1;  // own: the only block", None),
        ("float* p", "// own: the only block\n p[0] += 1;", None),
    ],
)
def test_sums_of_several_blocks_are_found(parameters, body, expected):
    structs = """
        struct Problem { const float *x, *y; float *z, *out; int n; };
        struct Shared {
            float* room;
            float* second;
            __device__ Shared() { room = reinterpret_cast<float*>(shared_memory); second = room + 4; }
        };
    """
    found = complaints(f'{structs}extern "C" __global__ void __launch_bounds__(256) k({parameters}) {{\n{body}\n}}')
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert expected in found[0]


def test_sums_are_found_in_macros_and_device_functions():
    text = """
#define K(T, t)                                   \\
    extern "C" __global__ void k_##t(T* p) {      \\
        p[0] += 1;                                \\
    }
template <typename T> __device__ __forceinline__ void f(T* __restrict__ out, const T (&a)[4]) { out[0] -= a[0]; }
struct S {
    double* sums;
    __device__ void write() { sums[0] = 1; }
    __device__ double read() const { return sums[0]; }
};
"""
    lines = [line.split(":")[0] for line in complaints(text)]
    assert lines == ["line 4", "line 6", "line 9"]
