"""The machine code of the kernels, as nvdisasm shows it: what the compiler made of the words that speed depends on."""

from __future__ import annotations

import itertools
import re

import pytest
from harness.compiled import LARGE, compile_text, compiled, hungriest, instructions, machine_code

from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.cupy.costs import split_slots
from fusedmlp.backends.cupy.launch import C_TYPES, THREADS
from fusedmlp.backends.cupy.narrow_step import KINDS

FILES = [
    *(
        pytest.param(file, "sm_90", marks=[pytest.mark.every_kernel] if file in LARGE else [])
        for file in kernel_sources.names()
    ),
    ("activations.cu", "sm_75"),
]

# The functions that a kernel may call, by the beginning of its name; all others call none. A call is the slow path of
# an accurate division or root, and its registers are the caller's. Float64 has no fast division.
CALLS_OF_FLOAT64 = "dblrcp_rn|div_rn_f64|dsqrt_rn"
CALLS = {
    "adam_float32": "sqrt_rn",  # 28 bytes of memory an element leave it the time
    "adamw_float32": "sqrt_rn",
    "losses_float32": "div_rn_f64",  # J is computed in double
    "clip_factor": CALLS_OF_FLOAT64,  # one number, in double
    "finish_": "dblrcp_rn|div_rn_f64|dsqrt_rn|__internal_",  # one thread, once a step; powers of β are no quick thing
    "resident_": "dblrcp_rn|div_rn_f64|dsqrt_rn|__internal_|sqrt_rn",  # as losses, finish and adam
}

# Accesses to arrays whose addresses are read from a record. A launch reads and writes parameters, moments, and the nine
# numbers of what the network has reached; an epoch writes its losses and its time, and the best parameters. A step
# reads the rate alone: samples are copied asynchronously.
FROM_RECORDS = {"resident_": 37}

# Kernels of additions and products alone. The accurate exp, tanh and divisions of the others begin with the hardware's
# approximations, too: those are refused where there is nothing that they could be the beginning of.
PLAIN = ("fused_backward_", "times_derivative_", "lower_layer_", "sgd_", "momentum_", "nesterov_", "sum_rows_")

APPROXIMATION = re.compile("MUFU")
TANH_OF_BFLOAT16 = re.compile(r"MUFU\.TANH")  # of its accuracy, that is
LOCAL_MEMORY = re.compile(r"(LDL|STL)\b")
WIDE_LOAD, WIDE_STORE = re.compile(r"LDG(STS)?\.E\S*\.128\b"), re.compile(r"STG\.E\S*\.128\b")
ASYNC_COPY, WAIT_FOR_COPIES = re.compile(r"LDGSTS\b"), re.compile(r"DEPBAR\.LE SB0, 0x1\b")
CALL = re.compile(r"CALL\b.*?(?:__cuda_\w+|\S+$)")
SLOW_ADDRESS = re.compile(r"(LD|ST)\.")  # which memory it is, is found out at every access
FLOATING_POINT_ATOMIC = re.compile(r"(ATOM|ATOMG|ATOMS|RED|REDG|REDUX)\b\S*\.F(16|32|64)")
TENSOR_CORE = re.compile(r"\w*MMA\.\S*")
TENSOR_CORE_TF32 = re.compile(r"HMMA\.\S*TF32|HGMMA\.\S*TF32")


def found(pattern, body):
    """The instructions that a pattern is the beginning of."""
    return [line for line in body if pattern.match(line)]


def complaints(name, body):
    """What is wrong with a kernel's instructions."""
    allowed = [functions for beginning, functions in CALLS.items() if name.startswith(beginning)]
    if "float64" in name:
        allowed.append(CALLS_OF_FLOAT64)
    wide = bool(found(WIDE_LOAD, body)), bool(found(WIDE_STORE, body))
    plain, tensor_cores = name.startswith(PLAIN), found(TENSOR_CORE, body)
    from_records = sum(count for beginning, count in FROM_RECORDS.items() if name.startswith(beginning))
    wrong = [
        *(f"local memory: {line}" for line in found(LOCAL_MEMORY, body)),
        *(f"an address of no known memory: {line}" for line in found(SLOW_ADDRESS, body)[from_records:]),
        *(f"an atomic whose order decides the bits: {line}" for line in found(FLOATING_POINT_ATOMIC, body)),
        *(f"an approximation: {line}" for line in found(APPROXIMATION if plain else TANH_OF_BFLOAT16, body)),
        *(f"a call: {line}" for line in found(CALL, body) if not any(re.search(x, line) for x in allowed)),
    ]
    if name.endswith("packed") and wide != (True, True):
        wrong.append(f"16 bytes at a time in (loads, stores): {wide}")
    if name.endswith("strided") and wide != (False, False):
        wrong.append(f"16 bytes at a time in (loads, stores): {wide}, where addresses need not be multiples of 16")
    if "tf32" in name and not found(TENSOR_CORE_TF32, body):
        wrong.append("no product in TF32")
    if "tf32" not in name and tensor_cores:
        wrong.append(f"a product on tensor cores: {tensor_cores[0]}")
    return wrong


@pytest.mark.parametrize(("file", "architecture"), FILES)
def test_machine_code(file, architecture):
    kernels = machine_code(file, architecture)
    assert kernels.keys() == compiled(file, architecture).resources.keys()
    wrong = {name: complaints(name, body) for name, body in kernels.items()}
    assert not any(wrong.values()), {name: lines[:3] for name, lines in wrong.items() if lines}


@pytest.mark.parametrize("file", LARGE)
def test_machine_code_of_the_hungriest_kernel(file):
    for name, body in instructions(hungriest(file, "sm_90").cubin).items():
        assert complaints(name, body) == [], name


def test_the_sigmoid_is_short():
    """A dozen instructions more than the identity a float32 element, of the 76 for which there is time on an H100."""
    kernels = machine_code("activations.cu", "sm_90")
    for layout in ("packed", "strided"):
        sigmoid = kernels[f"activate_sigmoid_float32_{layout}"]
        elements = len(found(re.compile("MUFU.EX2"), sigmoid))
        assert elements == len(found(re.compile("MUFU.RCP"), sigmoid)) > 0
        assert len(sigmoid) - len(kernels[f"activate_identity_float32_{layout}"]) <= 16 * elements


MOVE = re.compile(r"MOV\b|IMAD\.MOV")
JUMP = re.compile(r"BRA|BSYNC|BAR|EXIT")


def loops_of_products(body):
    """The instructions between two jumps, where there are products on tensor cores among them."""
    pieces = [list(piece) for jump, piece in itertools.groupby(body, lambda line: bool(JUMP.match(line))) if not jump]
    return [piece for piece in pieces if found(TENSOR_CORE_TF32, piece)]


@pytest.mark.parametrize("file", ["narrow_step.cu", "narrow_cluster.cu"])
def test_products_do_not_move_their_sums_about(file):
    """What ptxas makes of sums that begin as one register: two moves a product, in every round of the loop."""
    kernels = instructions(hungriest(file, "sm_90").cubin)
    assert any("tf32" in name for name in kernels)
    loops = {name: loops_of_products(body) for name, body in kernels.items() if "tf32" in name}
    assert all(len(found_loops) >= (1 if "forward" in name else 2) for name, found_loops in loops.items())
    for name, found_loops in loops.items():
        for loop in found_loops:
            moves, products = len(found(MOVE, loop)), len(found(TENSOR_CORE_TF32, loop))
            assert moves <= products + 4, f"{name}: {moves} moves beside {products} products"


EVERY_KERNEL = pytest.mark.every_kernel


@pytest.mark.parametrize(("N", "R", "C"), [(1, 2, 8), (1, 8, 8), (4, 16, 4)])
@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=EVERY_KERNEL), "sm_90"])
def test_three_products_for_one(N, R, C, architecture):
    """As many instructions as the choice between strict and 3xTF32 counts on, and three times the products of TF32."""
    loops = {}
    for arithmetic in ("tf32", "tf32x3"):
        one = f"{N},{R},{C},float,{KINDS[arithmetic]},{arithmetic}"
        made = compile_text(f"#define ONE {one}\n" + kernel_sources.source("narrow_step.cu"), architecture)
        kernels = instructions(made.cubin)
        loops[arithmetic] = loops_of_products(kernels[f"narrow_forward_{N}_{R}_{C}_{arithmetic}"])
        products = [len(found(TENSOR_CORE_TF32, body)) for body in kernels.values()]
        loops[arithmetic, "products"] = products
    assert loops["tf32x3", "products"] == [3 * n for n in loops["tf32", "products"]]
    (loop,) = loops["tf32x3"]
    assert len(found(TENSOR_CORE_TF32, loop)) == 3 * C  # 8 steps of the depth, 4 x C numbers of a thread
    assert len(loop) == pytest.approx(split_slots(4, C), rel=0.15)


# The kernels of hidden_layer.cu: outputs, dtype, elements of an access, and how many blocks of a multiprocessor the
# registers have to leave room for (`Share::BLOCKS` in the source).
MIDDLE_KERNELS = [
    (1, "float32", 4, 4), (1, "float32", 1, 2), (1, "float64", 2, 3), (1, "float64", 1, 3),
    (4, "float32", 4, 3), (4, "float32", 1, 2), (4, "float64", 2, 2), (4, "float64", 1, 2),
    (16, "float32", 1, 2), (16, "float64", 1, 2),
]  # fmt: skip


@pytest.mark.parametrize(("n_out", "dtype", "pack", "blocks"), MIDDLE_KERNELS)
@pytest.mark.parametrize(
    "architecture",
    [pytest.param("sm_75", marks=EVERY_KERNEL), pytest.param("sm_80", marks=EVERY_KERNEL), "sm_90"],
)
def test_the_middle_kernel_copies_asynchronously(n_out, dtype, pack, blocks, architecture):
    """Z arrives while the thread works on what came before, and no block is lost to registers or spills."""
    layout = "strided" if pack == 1 else "packed"
    one = f"{n_out},SIGMOID,sigmoid,{C_TYPES[dtype]},{dtype},{pack},{layout}"
    made = compile_text(f"#define ONE {one}\n" + kernel_sources.source("hidden_layer.cu"), architecture)
    ((name, body),), (resources,) = instructions(made.cubin).items(), made.resources.values()
    assert resources[:3] == (0, 0, 0), f"{name}: {resources}"
    assert resources.registers * THREADS * blocks <= 65536
    copies = found(ASYNC_COPY, body)
    if architecture == "sm_75":
        assert not copies
        return
    assert any(".128" in line for line in copies) == (layout == "packed")
    assert not found(re.compile(r"LDG\.E\S*\.128"), body), "Z is read past the ring"
    first_wait = next(i for i, line in enumerate(body) if WAIT_FOR_COPIES.match(line))
    assert found(ASYNC_COPY, body[:first_wait]), "the wait leaves the next round's copies under way"


# Each kernel has one mistake: its name, its body, and what is said of it.
MISTAKES = [
    ("divides", "d[0] = x[0] / x[1];", "a call: CALL"),
    ("indexed", "float a[64]; for (int i = 0; i < 64; ++i) a[int(x[i])] = x[i]; d[0] = a[n];", "local memory: "),
    ("generic", "__shared__ float a[64]; float* p = n ? a : d; p[n & 31] = 1; d[1] = a[n + 1];", "no known memory: "),
    ("adds", "atomicAdd(d, x[0]);", "an atomic whose order decides the bits: "),
    ("narrow_packed", "d[0] = x[0];", "16 bytes at a time in (loads, stores): (False, False)"),
    ("wide_strided", "*(float4*)d = *(const float4*)x;", "16 bytes at a time in (loads, stores): (True, True)"),
    ("sgd_float32", "d[0] = __expf(x[0]);", "an approximation: MUFU.EX2"),
    ("tanhs", 'asm("tanh.approx.f32 %0, %1;" : "=f"(d[0]) : "f"(x[0]));', "an approximation: MUFU.TANH"),
    ("none_tf32", "d[0] = x[0];", "no product in TF32"),
    ("product", "PRODUCT", "a product on tensor cores: HMMA"),
]
PRODUCT = """float c[4] = {0, 0, 0, 0}; const unsigned* a = (const unsigned*)x;
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]));
    for (int i = 0; i < 4; ++i) d[4 * threadIdx.x + i] = c[i];"""


def test_mistakes_are_found():
    right = [("adam_float32", "d[0] = sqrtf(x[0]);"), ("product_tf32", "PRODUCT")]
    text = "".join(
        f'extern "C" __global__ void {name}(float* d, const float* x, int n) {{ {body.replace("PRODUCT", PRODUCT)} }}\n'
        for name, body, *_ in [*MISTAKES, *right]
    )
    kernels = instructions(compile_text(text, "sm_90").cubin)
    for name, _, expected in MISTAKES:
        assert any(expected in line for line in complaints(name, kernels[name])), name
    assert [complaints(name, kernels[name]) for name, _ in right] == [[], []]
