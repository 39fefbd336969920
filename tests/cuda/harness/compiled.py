"""The kernels as machine code, made by CUDA's own compiler without a GPU."""

from __future__ import annotations

import base64
import functools
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.kept import kept

from fusedmlp.backends.cupy import kernel_sources

_INSTALL = 'pip install "fusedmlp[test]"'
_RESOURCES = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)
_FUNCTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\S[^;]*?)\s*;", re.MULTILINE)


class Resources(NamedTuple):
    """What ptxas says of a kernel: bytes a thread, and registers."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int


class Compiled(NamedTuple):
    """A file for an architecture: its machine code, and the resources by kernel."""

    cubin: bytes
    resources: dict[str, Resources]


@functools.cache
def cuda_core():
    """The module cuda.core, with NVRTC loaded; part of the test extra on Linux, so that missing there is a failure.

    NVRTC's library is loaded by the first compilation, with the help of modules that some tests replace; so that
    happens here as well.
    """
    try:
        import cuda.bindings.nvrtc
        import cuda.core
    except ImportError as error:
        missing(f"CUDA's compiler: {error}")
    options = cuda.core.ProgramOptions(arch="sm_90")
    cuda.core.Program('extern "C" __global__ void empty() {}', "c++", options).compile("cubin")
    return cuda.core


def missing(what):
    """A visible skip where the test extra does not bring a tool, else a failure."""
    if sys.platform != "linux":
        pytest.skip(f"{what}; the test extra brings it on Linux only")
    pytest.fail(f"{what}. {_INSTALL}")


@functools.cache
def compiled(file, architecture):
    """A file of the kernels for an architecture such as "sm_90"."""
    return compile_text(kernel_sources.source(file), architecture)


def compile_text(text, architecture):
    """CUDA C++ as `Compiled`, with the options that CuPy compiles with."""
    core = cuda_core()

    def make(path):
        options = core.ProgramOptions(
            std="c++17", arch=architecture, ftz=True, device_as_default_execution_space=True, ptxas_options=["-v"]
        )
        log = io.StringIO()
        cubin = core.Program(text, "c++", options).compile("cubin", logs=log)
        found = _RESOURCES.findall(log.getvalue())
        path.write_text(json.dumps([base64.b64encode(cubin.code).decode(), found]))

    versions = [importlib.metadata.version(name) for name in ("cuda-core", "nvidia-cuda-nvrtc")]
    code, found = json.loads(kept([text, architecture, *versions], make).read_text())
    resources = {name: Resources(*map(int, numbers)) for name, *numbers in found}
    return Compiled(base64.b64decode(code), resources)


LARGE = {
    "hidden_layer.cu": "4,TANH,tanh,float,float32,4,packed",
    "narrow_step.cu": "4,8,8,float,TF32X3,tf32x3",
    "narrow_cluster.cu": "1,8,8,float,TF32X3,tf32x3",
    "resident.cu": "float,TF32X3,tf32x3",
    "resident_cluster.cu": "float,TF32X3,tf32x3",
}
"""Files whose kernels take long to compile, and what -DONE asks for to get one that takes the most registers."""


def hungriest(file, architecture):
    """The kernel of a large file that takes the most registers, by itself."""
    one = LARGE[file]
    if architecture == "sm_75":  # no TF32
        one = one.replace("TF32X3,tf32x3", "STRICT,float32")
    return compile_text(f"#define ONE {one}\n" + kernel_sources.source(file), architecture)


@functools.cache
def machine_code(file, architecture):
    """`instructions` of a file of the kernels."""
    return instructions(compiled(file, architecture).cubin)


@functools.cache
def instructions(cubin):
    """Kernel -> its instructions in order, without addresses and predicates, such as "LDG.E.128 R4, [R2.64]"."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.cubin")
        path.write_bytes(cubin)
        done = subprocess.run([_disassembler(), "-c", path], capture_output=True, text=True, check=True)
    _, *parts = _FUNCTION.split(done.stdout)
    return {name: _INSTRUCTION.findall(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


@functools.cache
def _disassembler():
    try:
        files = importlib.metadata.distribution("nvidia-cuda-nvdisasm").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    installed = [str(file.locate()) for file in files if file.name == "nvdisasm"]
    path = installed[0] if installed else shutil.which("nvdisasm")
    if path is None:
        missing("CUDA's disassembler, nvdisasm, is not installed")
    return path
