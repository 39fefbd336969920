"""Every kernel compiles for every architecture, without a GPU: no spills, no stack, accesses of 16 bytes."""

from __future__ import annotations

import io
import re
import sys

import pytest

from fusedmlp import kernel_sources

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
FILES = kernel_sources.names()
_RESOURCES = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)
REGISTERS = 65536  # of a multiprocessor, on all of these architectures
THREADS = 256  # of a block


@pytest.fixture(scope="module")
def cuda():
    """cuda.core and NVRTC; part of the test extra on Linux, so that missing there is a failure."""
    try:
        import cuda.bindings.nvrtc
        import cuda.core
    except ImportError as error:
        if sys.platform != "linux":
            pytest.skip(f"CUDA's compiler is installed with the test extra on Linux only: {error}")
        pytest.fail(f'the kernels cannot be compiled: {error}. pip install "fusedmlp[test]"')
    return cuda


def kernels_in(file, architecture=None):
    """The kernels of a source, counted by hand: 4 activations (f' of the identity is 1), 2 dtypes, 2 layouts."""
    return {
        "sigmoid.cu": 4 * 2 * 2,
        "fused_backward.cu": (3 + 1) * 3 * 2 * 2,
        "hidden_layer.cu": 4 * 2 * (2 * 2 + 1),
        "narrow_step.cu": 2 * (7 * 2 + 5) + (0 if architecture == "sm_75" else 2 * 7 * 2),
        "optimizer.cu": 4 * 2 * 2,
        "output_layer.cu": 2 * 2,
        "sum_rows.cu": 2,
    }[file]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_compiles_without_spills(cuda, file, architecture):
    options = cuda.core.ProgramOptions(  # as CuPy compiles
        std="c++17", arch=architecture, ftz=True, device_as_default_execution_space=True, ptxas_options=["-v"]
    )
    log = io.StringIO()
    cubin = cuda.core.Program(kernel_sources.source(file), "c++", options).compile("cubin", logs=log)
    assert len(cubin.code) > 1000
    found = _RESOURCES.findall(log.getvalue())
    assert len(found) == kernels_in(file, architecture), log.getvalue()
    for name, *numbers in found:
        stack, stores, loads, registers = map(int, numbers)
        assert (stack, stores, loads) == (0, 0, 0), f"{name} on {architecture}: {stack} B stack, {stores} B spilled"
        # At least two blocks of a multiprocessor at a time; below that, waiting for memory is not hidden.
        blocks = 1 if file == "narrow_step.cu" else 2
        assert registers * THREADS * blocks <= REGISTERS, f"{name} on {architecture}: {registers} registers"


@pytest.mark.parametrize("file", FILES)
def test_packed_kernels_access_16_bytes(cuda, file):
    """The compiler makes one access of a pack: 4 float32 or 2 float64."""
    nvrtc = cuda.bindings.nvrtc
    status, program = nvrtc.nvrtcCreateProgram(kernel_sources.source(file).encode(), file.encode(), 0, [], [])
    assert status == 0
    options = [b"-arch=compute_90", b"-std=c++17", b"-ftz=true", b"--device-as-default-execution-space"]
    assert nvrtc.nvrtcCompileProgram(program, len(options), options) == (0,)
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    entries = re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx.decode(), re.DOTALL)
    assert len(entries) == kernels_in(file)
    for name, body in entries:
        wide = "v4.f32" if "float32" in name else "v2.f64"
        wide_accesses = set(re.findall(r"\b(ld|st)\.global\S*\." + re.escape(wide), body))
        assert wide_accesses == ({"ld", "st"} if name.endswith("packed") else set()), name
        # CUDA's accurate exp and tanh of float32 begin with the hardware's 2ˣ.
        powers = "tanh" in name or "sigmoid" in name or file in ("hidden_layer.cu", "narrow_step.cu", "output_layer.cu")
        assert "approx" not in body or powers, f"{name} uses an approximation"
        assert "tanh.approx" not in body, f"{name} uses an approximation of the accuracy of bfloat16"


def test_nvrtc_reports_mistakes(cuda):
    """A kernel that does not compile is an error."""
    options = cuda.core.ProgramOptions(std="c++17", arch="sm_90")
    broken = kernel_sources.source("sigmoid.cu").replace("activation<F>(z.x[j])", "activation<F>(z.y[j])")
    with pytest.raises(Exception, match="NVRTC_ERROR_COMPILATION"):
        cuda.core.Program(broken, "c++", options).compile("cubin")
