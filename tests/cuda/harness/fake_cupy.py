"""A module that looks like CuPy, with numpy arrays for memory and the CPU for a GPU.

It has what the project uses of CuPy, and refuses what CuPy refuses: numpy arrays among CuPy arrays, implicit conversion
to numpy, kernel arguments that are not sized. Every allocation lies between canaries (NaN), which are looked at after
every kernel, and holds NaN until it is written to; who reads it before is reported (`written_bytes`). It comes from a
pool with a limit (`fake_pool`), and every use of it is one by the current stream: `fake_streams` says what is out of
order.
"""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
from harness import fake_driver, fake_streams
from harness.emulator import compile_source
from harness.fake_cublas import FakeCublas
from harness.fake_cublaslt import FakeCublasLt
from harness.fake_devices import Device, DeviceOfThread
from harness.fake_memory import Allocation, Pointer
from harness.fake_pool import POOL, MemoryPool, OutOfMemoryError, using_allocator
from scipy import special


def allocate(shape, dtype, order="C", shift=0, device_id=0):
    """A new array of NaN; `shift` bytes behind a well-aligned address."""
    dtype = np.dtype(dtype)
    memory = Allocation(int(np.prod(shape)) * dtype.itemsize, shift)
    return ndarray(np.ndarray(shape, dtype, memory.piece, order=order), memory, device_id)


def copied(x, order="K", shift=0):
    """A numpy array's values in an array of the fake GPU."""
    if order in "KA":
        order = "F" if x.flags.fnc else "C"
    new = allocate(x.shape, x.dtype, order, shift)
    new.for_writing()[...] = x
    return new


def host(x):
    """What numpy may compute with: the memory behind an array, or a plain number; else CuPy's TypeError."""
    if isinstance(x, ndarray):
        return x.host
    if isinstance(x, bool | int | float | np.generic):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def wrapped(x):
    """A numpy result as an array; like CuPy, a scalar is an array without axes."""
    return copied(np.asarray(x))


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
    """cupy.ndarray, as far as the project uses it."""

    __array_priority__ = 100
    __hash__ = None

    def __init__(self, x, memory, device_id=0):
        self._raw = x
        self.memory = memory
        self.device_id = device_id

    @property
    def host(self):
        """The numbers, to be read by an operation of the current stream."""
        self._touch()
        self.memory.written.require(self._raw, "an operation of CuPy's own")
        return self._raw

    def for_writing(self):
        """The numbers, all of which an operation of the current stream overwrites."""
        self._touch()
        self.memory.written.note(self._raw)
        return self._raw

    def _touch(self):
        assert not fake_streams.current().is_capturing(), "an operation of CuPy's own in a capture"
        self.memory.users.touch(fake_streams.current())

    shape = property(lambda self: self._raw.shape)
    dtype = property(lambda self: self._raw.dtype)
    ndim = property(lambda self: self._raw.ndim)
    size = property(lambda self: self._raw.size)
    itemsize = property(lambda self: self._raw.itemsize)
    nbytes = property(lambda self: self._raw.nbytes)
    strides = property(lambda self: self._raw.strides)
    flags = property(lambda self: self._raw.flags)
    data = property(lambda self: Pointer(self._raw.ctypes.data, self.device_id, self.memory))
    T = property(lambda self: self._view(self._raw.T))

    def _view(self, x):
        return ndarray(x, self.memory, self.device_id)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._raw.ctypes.data, False),
            "strides": self.strides,
            "version": 3,
        }

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        assert method == "__call__", method
        values = [host(x) for x in inputs]
        if out is None:
            return wrapped(ufunc(*values, **kwargs))
        (target,) = out
        ufunc(*values, out=target.for_writing(), **kwargs)
        return target

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"numpy.{func.__name__} is not for arrays on a GPU")

    def __getitem__(self, key):
        x = self._raw[_index(key)]
        if isinstance(x, np.generic):  # CuPy has no scalars: a view without axes
            x = self._raw[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        if isinstance(x, np.ndarray) and np.shares_memory(x, self._raw):
            return self._view(x)
        return wrapped(self.host[_index(key)])

    def __setitem__(self, key, value):
        value, key = host(value), _index(key)
        self.memory.written.note(self._raw, key)
        self._touch()
        self._raw[key] = value

    def __len__(self):
        return len(self._raw)

    def __iter__(self):
        raise AssertionError("iterating over an array on a GPU takes a transfer per element")

    def __float__(self):
        return float(self.get().item())

    def __int__(self):
        return int(self.get().item())

    def __bool__(self):
        return bool(self.get())

    def get(self):
        x = self.host.copy(order="A")
        fake_streams.read()
        return x

    def set(self, arr, stream=None):
        assert isinstance(arr, np.ndarray), type(arr)
        assert (arr.shape, arr.dtype) == (self.shape, self.dtype), "set: CuPy would take it for bytes"
        assert self._raw.flags.c_contiguous, "set: CuPy would make a copy"
        self.for_writing()[...] = arr

    def item(self):
        return self.get().item()

    def fill(self, value):
        self.for_writing().fill(value)

    def copy(self, order="C"):
        return copied(self.host, order)

    def astype(self, dtype, order="K", copy=True):
        return self if self.dtype == dtype and not copy else copied(self.host.astype(dtype), order)

    def reshape(self, *shape):
        x = self._raw.reshape(*shape)
        return self._view(x) if np.shares_memory(x, self._raw) else copied(self.host.reshape(*shape))

    def take(self, indices, axis=None, out=None):
        result = np.take(self.host, host(indices), axis)
        if out is None:
            return copied(np.ascontiguousarray(result))
        if out.dtype != self.dtype:
            raise TypeError("Output dtype mismatch")
        if out.shape != result.shape:
            raise ValueError("Output shape mismatch")
        out.for_writing()[...] = result
        return out

    def _reduce(self, name, axis=None, out=None, keepdims=False, **kwargs):
        result = getattr(self.host, name)(axis=axis, keepdims=keepdims, **kwargs)
        if out is None:
            return wrapped(result)
        assert out.shape == result.shape, f"{name}: out {out.shape}, expected {result.shape}"
        out.for_writing()[...] = result
        return out

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return self._reduce("sum", axis, out, keepdims, dtype=dtype)

    def max(self, axis=None, out=None, keepdims=False):
        return self._reduce("max", axis, out, keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        return self._reduce("min", axis, out, keepdims)

    def all(self, axis=None, out=None, keepdims=False):
        return self._reduce("all", axis, out, keepdims)

    def any(self, axis=None, out=None, keepdims=False):
        return self._reduce("any", axis, out, keepdims)


def _index(key):
    """CuPy takes numpy arrays as indices, and its own."""
    parts = tuple(
        part.host if isinstance(part, ndarray) else part for part in (key if isinstance(key, tuple) else (key,))
    )
    return parts if isinstance(key, tuple) else parts[0]


class RawKernel:
    """A kernel that runs on the CPU and then looks at the canaries of its arrays."""

    def __init__(self, kernel, launches, device=lambda: 0):
        self._kernel = kernel
        self._launches = launches
        self._device = device
        self._shared_bytes = {}  # by device: each loads the kernel for itself

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._shared_bytes.get(self._device(), 0)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, n_bytes):
        self._shared_bytes[self._device()] = n_bytes

    @property
    def kernel(self):
        """Its function on the current device."""
        return types.SimpleNamespace(ptr=id(self))

    def __call__(self, grid, block, args, shared_mem=0):
        assert shared_mem <= max(48 * 1024, self.max_dynamic_shared_size_bytes), f"{shared_mem} bytes of shared memory"
        fake_streams.current().submit(lambda: self._run(grid, block, args, shared_mem))

    def _run(self, grid, block, args, shared_mem):
        self._launches.append(self._kernel.name)
        for x in args:
            if isinstance(x, ndarray):
                x.memory.users.touch(fake_streams.current())
        self._kernel(grid, block, args, shared_mem)
        for x in args:
            if isinstance(x, ndarray):
                x.memory.check(self._kernel.name)


class RawModule:
    """cupy.RawModule."""

    launches: list  # of this module object's kernels, by name; shared with the fake CuPy it belongs to
    device = staticmethod(lambda: 0)

    def __init__(self, code=None, *, options=()):
        self._code = code
        self.options = options

    def get_function(self, name):
        # All kernels of a file at once, whatever -DONE asks for: one by one, a run of the tests compiles twice as long.
        return RawKernel(compile_source(self._code).get_function(name, self.options), self.launches, self.device)


def _asarray(x, dtype=None, order=None, *, copy=None, blocking=False):
    if isinstance(x, ndarray):
        return x if dtype is None else x.astype(dtype, copy=False)
    if hasattr(x, "__cuda_array_interface__"):
        given = x.__cuda_array_interface__
        n_bytes = int(np.prod(given["shape"])) * np.dtype(given["typestr"]).itemsize
        buffer = (ctypes.c_char * n_bytes).from_address(given["data"][0])
        memory = Allocation(0)
        memory.owner = x
        view = ndarray(np.ndarray(given["shape"], given["typestr"], buffer, strides=given["strides"]), memory)
        return _asarray(view, dtype)
    x = np.asarray(x)
    assert blocking or not fake_streams.is_pinned(x.ctypes.data, x.nbytes), "the caller may change his array too early"
    new = copied(x.astype(dtype or x.dtype, copy=False), order or "K")
    fake_streams.read()
    return new


def _asnumpy(x, stream=None, order="C", out=None, *, blocking=True):
    return np.array(x.get(), order=order) if isinstance(x, ndarray) else np.asarray(x)


def _ufunc(function):
    """The module's function: at least one array must be the GPU's."""

    def call(*inputs, out=None, dtype=None):
        if not any(isinstance(x, ndarray) for x in inputs):
            raise TypeError(f"Unsupported type {type(inputs[0])}")
        values = [host(x) for x in inputs]
        if out is None:
            return wrapped(function(*values, **({} if dtype is None else {"dtype": dtype})))
        function(*values, out=out.for_writing())
        return out

    return call


_UFUNCS = (
    *("abs", "add", "equal", "exp", "expm1", "greater", "isfinite", "log", "log1p", "maximum"),
    *("minimum", "multiply", "negative", "reciprocal", "sqrt", "square", "subtract", "tanh"),
)


class CUDARuntimeError(RuntimeError):
    """cupy.cuda.runtime.CUDARuntimeError."""


def make(*, devices=1, driver=13020, runtime=13020, multiprocessors=2):
    """A new fake CuPy. `launches` lists the kernels that were launched.

    Few multiprocessors: the kernels then have to stride over the grid even in small tests.
    """
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.launches = []
    cupy.ndarray = ndarray
    current = type("Device", (Device,), {"current": DeviceOfThread()})

    def empty(shape, dtype=float, order="C"):
        return allocate(shape, dtype, order, device_id=current.current.number)

    cupy.cublas = FakeCublas(fake_streams.current, lambda: current.current.number, Allocation.holding)
    cupy.cublaslt = FakeCublasLt(fake_streams.current, lambda: current.current.number, Allocation.holding)
    cupy.driver = fake_driver.make(multiprocessors)
    shared = {"launches": cupy.launches, "device": staticmethod(lambda: current.current.number)}
    cupy.RawModule = type("RawModule", (RawModule,), shared)
    for name in ("float32", "float64", "uint32", "uint64"):
        setattr(cupy, name, getattr(np, name))
    cupy.asarray, cupy.asnumpy = _asarray, _asnumpy
    cupy.empty = empty
    cupy.empty_like = lambda x: allocate(x.shape, x.dtype)
    cupy.zeros_like = lambda x: wrapped(np.zeros_like(x._raw))
    cupy.ones_like = lambda x: wrapped(np.ones_like(x._raw))
    cupy.where = lambda condition, x, y: wrapped(np.where(host(condition), host(x), host(y)))
    for name in _UFUNCS:
        setattr(cupy, name, _ufunc(getattr(np, name)))

    def get_device_count():
        if devices == 0:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        if driver < runtime // 1000 * 1000:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
        return devices

    # Clocks in kHz. Of the bus as large a part as of the multiprocessors: an H200 has 132 for 6,144 bits.
    attributes = {16: multiprocessors, 97: 227 * 1024, 13: 1_980_000, 36: 3_201_000, 37: 6144 * multiprocessors // 132}

    cupy.get_default_memory_pool = lambda: POOL
    cupy.cuda = types.SimpleNamespace(
        Device=current,
        Event=fake_streams.Event,
        MemoryPool=MemoryPool,
        Stream=fake_streams.Stream,
        alloc_pinned_memory=fake_streams.alloc_pinned_memory,
        get_current_stream=fake_streams.current,
        is_available=lambda: devices > 0,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        using_allocator=using_allocator,
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            cudaDevAttrMultiProcessorCount=16,
            cudaDevAttrMaxSharedMemoryPerBlockOptin=97,
            cudaDevAttrClockRate=13,
            cudaDevAttrMemoryClockRate=36,
            cudaDevAttrGlobalMemoryBusWidth=37,
            deviceGetAttribute=lambda attribute, device: attributes[attribute],
            driverGetVersion=lambda: driver,
            getDevice=lambda: current.current.number,
            getDeviceCount=get_device_count,
            getDeviceProperties=lambda device: {"name": b"CPU in place of a GPU", "major": 9, "minor": 0},
            memGetInfo=lambda: (7 * 10**9, 8 * 10**9),
            runtimeGetVersion=lambda: runtime,
            setDevice=lambda device: setattr(current.current, "number", device),
        ),
    )
    return cupy


def install(patch, cupy):
    """Put a fake CuPy, its cuBLAS and its cuBLASLt, in the place of the real ones; `patch` is pytest's MonkeyPatch."""
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cupyx.scipy.special", types.SimpleNamespace(erfc=_ufunc(special.erfc)))
    cublas = "fusedmlp.backends.cupy.cublas"
    patch.setattr(f"{cublas}._found_path", lambda name: f"lib{name}.so")
    # Of whichever fake is installed when a library is opened.
    patch.setattr("fusedmlp.backends.cupy.occupancy.open_library", lambda: sys.modules["cupy"].driver)
    patch.setattr(
        f"{cublas}.open_library",
        lambda path: sys.modules["cupy"].cublaslt if "cublasLt" in path else sys.modules["cupy"].cublas,
    )
