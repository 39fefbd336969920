"""A library that looks like cuBLASLt, to ctypes and below it, for products with an epilogue; computed by numpy.

It refuses what cuBLASLt refuses: sizes that do not fit, epilogues of float64, a mask whose lines are no multiples of
128 bits, a missing bias, an algorithm of another problem or for better aligned memory. Mistakes that cuBLASLt would not
notice are internal errors, with a traceback. Its relu makes 0 of NaN, as a maximum does that prefers numbers.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from ctypes import POINTER, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from harness.fake_cublas import (
    INVALID_VALUE,
    NOT_INITIALIZED,
    NOT_SUPPORTED,
    Refused,
    exported,
    matrix_at,
    status_names,
    to_tf32,
)

FLOAT32 = np.dtype(np.float32)
RELU, BIAS, DRELU, BGRAD, AUX = 2, 4, 8, 16, 128
EPILOGUES = {RELU, BIAS, RELU | BIAS, RELU | AUX, RELU | AUX | BIAS, DRELU | AUX, DRELU | AUX | BGRAD}
_COMPUTE_TYPES = {68: "strict", 77: "tf32"}
# Attributes of a product by their numbers in cublasLt.h, and their bytes.
TRANS_A, TRANS_B, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_LD = 3, 4, 7, 8, 11, 12
_BYTES = {TRANS_A: 4, TRANS_B: 4, EPILOGUE: 4, BIAS_POINTER: 8, AUX_POINTER: 8, AUX_LD: 8}
_PREFERENCE_BYTES = {1: 8, 5: 4, 6: 4, 7: 4, 8: 4}
_LINE_OF_MASK, _ALIGNMENT_OF_MASK = 128, 16
_NEEDED_WORKSPACE = 4096


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        *(("data", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int)),
        *(("waves", ctypes.c_float), ("reserved", c_int * 4)),
    ]


class Layout(NamedTuple):
    """A column-major matrix."""

    type: int
    rows: int
    columns: int
    leading: int


@dataclass
class Description:
    """cublasLtMatmulDesc_t."""

    compute: int
    scale: int
    attributes: dict[int, int] = field(default_factory=lambda: {TRANS_A: 0, TRANS_B: 0, EPILOGUE: 1})


class Product(NamedTuple):
    """A call of cublasLtMatmul that was right; `shape` is that of D."""

    epilogue: int
    compute: str
    stream: int
    thread: int
    shape: tuple[int, int]


class FakeCublasLt:
    """libcublasLt.so, as ctypes.CDLL shows it.

    Attributes
    ----------
    products : list of Product
    handles : dict of address -> device
        Those that were not destroyed.
    objects : dict of address -> Layout, Description or preference
        Those that were not destroyed.
    searches : int
        How often an algorithm was looked for.
    missing : set of int
        Epilogues that have no algorithm.
    watch : callable, optional
        Called for every product with "epilogue" and its number, and the bytes that it reads and writes.
    versions : list
        What cublasLtGetProperty says: major, minor, patch.
    """

    def __init__(self, current_stream, current_device, memory_at):
        self._current_stream, self._current_device, self._memory_at = current_stream, current_device, memory_at
        self._addresses = itertools.count(0x200000, 0x100)
        self._algorithms = {}
        self.products, self.handles, self.objects, self.missing, self.searches = [], {}, {}, set(), 0
        self.watch = None
        self.versions = [13, 2, 0]
        made, opaque = POINTER(c_void_p), c_void_p
        self.cublasLtGetStatusName = status_names()
        self.cublasLtGetProperty = exported(self._get_property, c_int, POINTER(c_int))
        self.cublasLtCreate = exported(self._create, made)
        self.cublasLtDestroy = exported(self._destroy, opaque)
        self.cublasLtMatmulDescCreate = exported(
            lambda out, compute, scale: self._new(out, Description(compute, scale)), made, c_int, c_int
        )
        self.cublasLtMatrixLayoutCreate = exported(
            lambda out, *sizes: self._new(out, self._layout(*sizes)), made, c_int, c_uint64, c_uint64, c_int64
        )
        self.cublasLtMatmulPreferenceCreate = exported(lambda out: self._new(out, {}), made)
        for kind in ("MatmulDesc", "MatrixLayout", "MatmulPreference"):
            setattr(self, f"cublasLt{kind}Destroy", exported(self._forget, opaque))
        setting = (opaque, c_int, c_void_p, c_size_t)
        self.cublasLtMatmulDescSetAttribute = exported(self._set_attribute, *setting)
        self.cublasLtMatmulPreferenceSetAttribute = exported(self._set_preference, *setting)
        self.cublasLtMatmulAlgoGetHeuristic = exported(
            self._find, *[opaque] * 6, opaque, c_int, POINTER(Heuristic), POINTER(c_int)
        )
        self.cublasLtMatmul = exported(self._matmul, *[opaque] * 12, POINTER(Heuristic), opaque, c_size_t, opaque)

    def multiply(self, a, b):
        """The arithmetic, in numpy."""
        return a @ b

    def _get_property(self, part, value):
        value[0] = self.versions[part]

    def _create(self, handle):
        assert not self._current_stream().is_capturing(), "a handle made in a capture"
        handle[0] = next(self._addresses)
        self.handles[handle[0]] = self._current_device()

    def _destroy(self, address):
        if address not in self.handles:
            raise Refused(NOT_INITIALIZED)
        assert self.handles.pop(address) == self._current_device(), "destroyed on another device"

    def _new(self, out, value):
        out[0] = next(self._addresses)
        self.objects[out[0]] = value

    def _forget(self, address):
        self._get(address, object)
        del self.objects[address]

    def _get(self, address, kind):
        if not isinstance(self.objects.get(address), kind):
            raise Refused(INVALID_VALUE)
        return self.objects[address]

    @staticmethod
    def _layout(kind, rows, columns, leading):
        if rows < 1 or columns < 1 or leading < rows:
            raise Refused(INVALID_VALUE)
        return Layout(kind, rows, columns, leading)

    @staticmethod
    def _number(sizes, attribute, buffer, n_bytes):
        if sizes.get(attribute) != n_bytes:
            raise Refused(INVALID_VALUE)
        return int.from_bytes(ctypes.string_at(buffer, n_bytes), "little")

    def _set_attribute(self, address, attribute, buffer, n_bytes):
        product = self._get(address, Description)
        product.attributes[attribute] = self._number(_BYTES, attribute, buffer, n_bytes)

    def _set_preference(self, address, attribute, buffer, n_bytes):
        preference = self._get(address, dict)
        preference[attribute] = self._number(_PREFERENCE_BYTES, attribute, buffer, n_bytes)

    def _problem(self, product, layouts):
        """What an algorithm is for: all but the addresses; refused where the parts do not fit together."""
        a, b, c, d = layouts
        rows, inner = a[1:3] if product.attributes[TRANS_A] == 0 else a[2:0:-1]
        inner_b, columns = b[1:3] if product.attributes[TRANS_B] == 0 else b[2:0:-1]
        if (rows, columns) != d[1:3] or inner != inner_b or c != d:
            raise Refused(INVALID_VALUE)
        epilogue, aux = product.attributes[EPILOGUE], product.attributes.get(AUX_LD, 0)
        if epilogue & AUX and (aux % _LINE_OF_MASK or aux < rows):
            raise Refused(INVALID_VALUE)
        types = {layout.type for layout in layouts} | {product.scale}
        if types != {0} or product.compute not in _COMPUTE_TYPES or epilogue not in EPILOGUES:
            raise Refused(NOT_SUPPORTED)
        for pointer, alignment in self._pointers(product):
            if not pointer or pointer % alignment:
                raise Refused(INVALID_VALUE)
        kept = {key: product.attributes[key] for key in (TRANS_A, TRANS_B, EPILOGUE)} | {AUX_LD: aux}
        return product.compute, tuple(kept.items()), layouts

    @staticmethod
    def _pointers(product):
        """(address, alignment) of the bias and the mask, where the epilogue uses them."""
        epilogue = product.attributes[EPILOGUE]
        if epilogue & (BIAS | BGRAD):
            yield product.attributes.get(BIAS_POINTER), FLOAT32.itemsize
        if epilogue & AUX:
            yield product.attributes.get(AUX_POINTER), _ALIGNMENT_OF_MASK

    def _find(self, handle, product, a, b, c, d, preference, requested, results, count):
        if handle not in self.handles:
            raise Refused(NOT_INITIALIZED)
        product, preference = self._get(product, Description), self._get(preference, dict)
        self.searches += 1
        problem = self._problem(product, tuple(self._get(x, Layout) for x in (a, b, c, d)))
        assert requested == 1, requested
        alignments = [preference.get(attribute, 256) for attribute in (5, 6, 7, 8)]
        assert all(x in (4, 8, 16, 32, 64, 128, 256) for x in alignments), alignments
        count[0] = 0
        if product.attributes[EPILOGUE] in self.missing:
            raise Refused(NOT_SUPPORTED)
        if preference.get(1, 0) < _NEEDED_WORKSPACE:
            return
        number = next(self._addresses)
        self._algorithms[number] = problem, alignments
        results[0].data[0], results[0].workspace, results[0].state = number, _NEEDED_WORKSPACE, 0
        count[0] = 1

    def _matmul(self, handle, product, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algorithm, *rest):
        workspace, n_bytes, stream_pointer = rest
        product, stream = self._get(product, Description), self._current_stream()
        layouts = tuple(self._get(x, Layout) for x in (of_a, of_b, of_c, of_d))
        problem, alignments = self._algorithms[algorithm[0].data[0]]
        if problem != self._problem(product, layouts) or n_bytes < _NEEDED_WORKSPACE:
            raise Refused(INVALID_VALUE)
        if any(x % alignment for x, alignment in zip((a, b, c, d), alignments, strict=True)):
            raise Refused(NOT_SUPPORTED)
        assert self.handles[handle] == self._current_device(), "the handle is of another device"
        assert (stream_pointer or 0) == stream.ptr, "the product goes to another stream than CuPy's"
        assert c == d, "C is not D"
        factors = [np.frombuffer((ctypes.c_char * 4).from_address(x), FLOAT32)[0] for x in (alpha, beta)]
        assert factors == [1, 0], factors
        self._memory_at(workspace, n_bytes)
        attributes, precision = dict(product.attributes), _COMPUTE_TYPES[product.compute]
        epilogue, shape = attributes[EPILOGUE], layouts[3][1:3]
        self.products.append(Product(epilogue, precision, stream.ptr, threading.get_ident(), shape))

        def work():
            A, B, D = (
                matrix_at(self._memory_at, x, FLOAT32, *layout[1:])
                for x, layout in zip((a, b, d), (layouts[0], layouts[1], layouts[3]), strict=True)
            )
            assert not any(np.may_share_memory(D, x) for x in (A, B)), "D overlaps an operand"
            for x, matrix in ((a, A), (b, B)):
                self._memory_at(x, 1).written.require(matrix, "cublasLtMatmul")
            self._memory_at(d, 1).written.note(D)
            A, B = (x.T if attributes[key] else x for x, key in ((A, TRANS_A), (B, TRANS_B)))
            if precision == "tf32":
                A, B = to_tf32(np.ascontiguousarray(A)), to_tf32(np.ascontiguousarray(B))
            D[...] = self._finished(self.multiply(A, B), attributes)
            if self.watch is not None:
                self.watch(f"epilogue {epilogue}", *self._moved(epilogue, attributes.get(AUX_LD, 0), (A, B), D))
            used = [a, b, d, workspace, *(pointer for pointer, _ in self._pointers(product_now))]
            for x in used:
                self._memory_at(x, 1).users.touch(stream)
                self._memory_at(x, 1).check("cublasLtMatmul")

        product_now = Description(product.compute, product.scale, attributes)
        stream.submit(work)

    @staticmethod
    def _moved(epilogue, line, operands, out):
        """(bytes read, bytes written): the operands, the result, the bias and the mask, each once."""
        bias, mask = out.shape[0] * out.itemsize, line // 8 * out.shape[1]
        loaded = sum(x.nbytes for x in operands) + bias * bool(epilogue & BIAS) + mask * bool(epilogue & DRELU)
        return loaded, out.nbytes + bias * bool(epilogue & BGRAD) + mask * bool(epilogue & AUX and epilogue & RELU)

    def _finished(self, product, attributes):
        """The epilogue."""
        epilogue, (rows, columns) = attributes[EPILOGUE], product.shape
        if epilogue & BIAS:
            b = matrix_at(self._memory_at, attributes[BIAS_POINTER], FLOAT32, rows, 1, rows)
            self._memory_at(attributes[BIAS_POINTER], 1).written.require(b, "cublasLtMatmul")
            product = product + b
        if epilogue & AUX:
            line = attributes[AUX_LD] // 8
            bits = matrix_at(self._memory_at, attributes[AUX_POINTER], np.dtype(np.uint8), line, columns, line)
            written = self._memory_at(attributes[AUX_POINTER], 1).written
            written.note(bits) if epilogue & RELU else written.require(bits, "cublasLtMatmul")
        if epilogue & RELU and epilogue & AUX:
            bits[...] = 0xFF  # where there is no number
            packed = np.packbits(product > 0, axis=0, bitorder="little")
            bits[: len(packed)] = packed
        if epilogue & RELU:
            product = np.fmax(product, 0)
        if epilogue & DRELU:
            mask = np.unpackbits(np.ascontiguousarray(bits), axis=0, bitorder="little")[:rows]
            product = np.where(mask == 1, product, FLOAT32.type(0))
        if epilogue & BGRAD:
            bias = matrix_at(self._memory_at, attributes[BIAS_POINTER], FLOAT32, rows, 1, rows)
            self._memory_at(attributes[BIAS_POINTER], 1).written.note(bias)
            bias[...] = product.sum(axis=1, keepdims=True)
        return product
