"""cuBLAS by ctypes: where the library is found, its statuses as exceptions, and the stand-in that other tests use."""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy import cublas
from fusedmlp.backends.cupy.cublas import Cublas, CublasError
from fusedmlp.backends.cupy.cublas_products import CublasProducts
from fusedmlp.backends.cupy.cublaslt import CublasLt


@pytest.fixture
def square():
    """A matrix of ones."""
    return fake_cupy.copied(np.ones((4, 4), np.float32))


@pytest.fixture
def products(cupy, square):
    """CublasProducts that have computed something."""
    ready = CublasProducts(cupy)
    ready.gemm(square, square, square.copy())
    return ready


class TestErrors:
    def test_a_status_is_an_exception_with_the_shapes(self, products, cupy, square):
        cupy.cublas.handles.clear()
        message = (
            r"float32 product of a \(4, 4\) and b \(4, 4\): cublasGemmEx failed: CUBLAS_STATUS_NOT_INITIALIZED \(1\)"
        )
        with pytest.raises(CublasError, match=message):
            products.gemm(square, square, square.copy())

    def test_every_function_reports_its_status(self, cupy):
        library = Cublas(cupy.cublas)
        for name, call in {
            "cublasDestroy_v2": lambda: library.destroy(1),
            "cublasSetStream_v2": lambda: library.set_stream(1, 0),
            "cublasSetWorkspace_v2": lambda: library.set_workspace(1, 0, 0),
        }.items():
            with pytest.raises(CublasError, match=f"{name} failed: CUBLAS_STATUS_NOT_INITIALIZED"):
                call()
        handle = library.create()
        with pytest.raises(CublasError, match="cublasSetWorkspace_v2 failed: CUBLAS_STATUS_INVALID_VALUE"):
            library.set_workspace(handle, 1, 4096)
        x = ctypes.addressof(ctypes.c_float())
        with pytest.raises(CublasError, match="CUBLAS_STATUS_INVALID_VALUE"):  # 2 rows, a leading dimension of 1
            library.gemm_ex(handle, 0, 0, 2, 2, 2, x, x, 0, 1, x, 0, 2, x, x, 0, 2, cublas.COMPUTE_32F)
        with pytest.raises(CublasError, match="CUBLAS_STATUS_NOT_SUPPORTED"):
            library.gemm_ex(handle, 0, 0, 2, 2, 2, x, x, 1, 2, x, 1, 2, x, x, 1, 2, cublas.COMPUTE_32F)


class TestLibrary:
    """Where cuBLAS is found: where CuPy finds it, else by its name."""

    @pytest.fixture
    def opened(self, cupy, monkeypatch):
        """The paths that were opened; those in `missing` cannot be."""
        record = types.SimpleNamespace(paths=[], missing={})

        def open_library(path):
            record.paths.append(path)
            if path in record.missing:
                raise OSError(record.missing[path])
            return cupy.cublas

        monkeypatch.setattr(cublas, "open_library", open_library)
        return record

    def found(self, monkeypatch, result):
        def load(name):
            assert name == "cublasLt"
            if isinstance(result, Exception):
                raise result
            return types.SimpleNamespace(abs_path=result)

        pathfinder = types.ModuleType("cuda.pathfinder")
        pathfinder.load_nvidia_dynamic_lib = load
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
        return cublas._found_path("cublasLt")

    def test_where_cupy_finds_it(self, monkeypatch):
        assert self.found(monkeypatch, "/lib/libcublas.so.13") == "/lib/libcublas.so.13"
        assert self.found(monkeypatch, None) is None
        with pytest.raises(RuntimeError, match="not found"):
            self.found(monkeypatch, RuntimeError("not found"))

    def test_the_first_that_opens(self, cupy, opened):
        assert cublas.load(cupy).version() == (13, 2, 0)
        assert opened.paths == ["libcublas.so"]

    @pytest.mark.parametrize("error", [ImportError("No module named 'cuda'"), RuntimeError("not found")])
    def test_by_name_where_there_is_no_pathfinder(self, cupy, opened, monkeypatch, error):
        def find(name):
            raise error

        monkeypatch.setattr(cublas, "_found_path", find)
        cublas.load(cupy)
        assert opened.paths == ["libcublas.so.13"]

    def test_the_name_has_the_version_of_cupys_cuda(self, opened, monkeypatch):
        older = fake_cupy.make(runtime=12090)
        opened.missing["libcublas.so"] = "cannot open"
        older.cublas.versions[0] = 12
        monkeypatch.setattr(cublas, "open_library", lambda path: opened.paths.append(path) or older.cublas)
        assert cublas.load(older).version()[0] == 12

    def test_cublaslt_is_found_the_same_way(self, cupy, monkeypatch):
        paths = []
        monkeypatch.setattr(cublas, "open_library", lambda path: paths.append(path) or cupy.cublaslt)
        assert cublas.find(cupy, "cublasLt", CublasLt).version() == (13, 2, 0)
        assert paths == ["libcublasLt.so"]
        cupy.cublaslt.versions[0] = 12
        message = r"cuBLASLt for CUDA 13 \(libcublasLt.so.13\) cannot be loaded; cuda-pathfinder: a library for CUDA 12"
        with pytest.raises(RuntimeError, match=message):
            cublas.find(cupy, "cublasLt", CublasLt)

    def test_none(self, cupy, opened):
        opened.missing |= {
            "libcublas.so": "libcublas.so: broken\nmore",
            "libcublas.so.13": "libcublas.so.13: no such file",
        }
        with pytest.raises(RuntimeError) as caught:
            cublas.load(cupy)
        assert str(caught.value) == (
            "cuBLAS for CUDA 13 (libcublas.so.13) cannot be loaded; cuda-pathfinder: libcublas.so: broken; "
            "libcublas.so.13: libcublas.so.13: no such file"
        )

    def test_of_another_cuda(self, cupy, opened):
        cupy.cublas.versions[0] = 12
        with pytest.raises(
            RuntimeError, match="cuda-pathfinder: a library for CUDA 12; libcublas.so.13: a library for"
        ):
            cublas.load(cupy)

    def test_nothing_is_loaded_before_a_product(self, opened, emulated, square):
        assert opened.paths == []
        emulated.matmul(square, square)
        emulated.matmul(square, square)
        assert len(opened.paths) == 1
