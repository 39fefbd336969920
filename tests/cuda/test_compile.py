"""The kernels compile without a GPU: no spills, no stack, no more registers than planned.

Those of the small files for sm_90 and the oldest architecture, the activations for all; of each large file the kernel
that takes the most registers. ``make kernels`` compiles all of them for sm_90.
"""

from __future__ import annotations

import pytest
from harness.compiled import LARGE, compile_text, compiled, hungriest

from fusedmlp.backends.cupy import kernel_sources

FILES = kernel_sources.names()
CLUSTERED = ("narrow_cluster.cu", "resident_cluster.cu")
# Registers of a thread, by the beginning of a kernel's name: what the hungriest architecture takes, to the next
# multiple of 8. A multiprocessor has 65536, that is 128 for two blocks of 256 threads; with fewer blocks than two,
# waiting for memory is not hidden, and a kernel that takes more has to say here that this is meant.
REGISTERS = {
    "activate_": 56,
    "fused_backward_1_": 48,
    "fused_backward_4_": 64,
    "fused_backward_16_": 128,
    "times_derivative_": 40,
    "hidden_layer_1_": 96,
    "hidden_layer_4_": 112,
    "hidden_layer_16_": 128,
    "lower_layer_0_": 80,
    "lower_layer_1_": 80,
    "lower_layer_4_": 112,
    "lower_layer_16_": 128,
    # One block at a time where the sums of dW1 leave no room for two: the products in it keep the units busy.
    **{f"narrow_forward_{N}_{R}_": 128 if R < 16 else 152 for N in (1, 4) for R in (2, 4, 8, 16)},
    **dict(zip((f"narrow_step_1_{R}_" for R in (2, 4, 8, 16)), (128, 224, 240, 248), strict=True)),
    **dict(zip((f"narrow_step_4_{R}_" for R in (2, 4, 8, 16)), (240, 248, 255, 232), strict=True)),
    # A tile's A stays beside the sums of dW1 while the parts of the outputs are on their way.
    **dict(zip((f"narrow_cluster_1_{R}_" for R in (2, 4, 8, 16)), (216, 240, 255, 248), strict=True)),
    **dict(zip((f"narrow_cluster_4_{R}_" for R in (2, 4, 8, 16)), (240, 248, 255, 248), strict=True)),
    "sum_rows_": 40,
    "losses_": 64,
    "outputs_": 40,
    "sgd_": 40,
    "momentum_": 40,
    "nesterov_": 40,
    "adam_": 56,
    "adamw_": 64,
    "gradient_squares_": 48,
    "clip_factor": 40,
    "gather_": 64,
    "squares_": 40,
    "finish_": 64,
    "resident_float32": 80,
    "resident_tf32": 128,  # that of 3xTF32: both parts of the operands
    "resident_float64": 168,
    "resident_cluster_": 184,
}


def kernels_in(file, architecture):
    """The kernels of a source, counted by hand: 4 activations (f' of the identity is 1), 2 dtypes, 2 layouts."""
    return {
        "activations.cu": 4 * 2 * 2,
        "fused_backward.cu": (3 + 1) * 3 * 2 * 2,
        "hidden_layer.cu": 4 * 2 * (2 * 2 + 1),
        "lower_layer.cu": (3 + 1) * 3 * 2 * 2,
        "mini_batch.cu": 3 * 2,
        "narrow_step.cu": 2 * (3 * 7 * 2 + 5),
        "narrow_cluster.cu": 3 * 4 * 2 - 1 + 5,
        "optimizer.cu": 5 * 2 * 2 + 2 + 1,
        "output_layer.cu": 2 * 2,
        "resident_cluster.cu": 4,
        "resident.cu": 2 if architecture == "sm_75" else 4,  # no TF32
        "sum_rows.cu": 2,
    }[file]


def budget(kernel):
    """The registers that a kernel may take."""
    budgets = [registers for beginning, registers in REGISTERS.items() if kernel.startswith(beginning)]
    assert len(budgets) == 1, f"{kernel}: {len(budgets)} of the budgets of registers are for it, expected one"
    return budgets[0]


EVERY_KERNEL = [
    *(pytest.param(file, "sm_90", marks=[pytest.mark.every_kernel] if file in LARGE else []) for file in FILES),
    *((file, "sm_75") for file in FILES if file not in LARGE and file not in CLUSTERED),
]


@pytest.mark.parametrize(("file", "architecture"), EVERY_KERNEL)
def test_compiles_within_its_budget(file, architecture):
    cubin, resources = compiled(file, architecture)
    assert len(cubin) > 500
    assert len(resources) == kernels_in(file, architecture), sorted(resources)
    check(resources, architecture)


@pytest.mark.parametrize(
    ("file", "architecture"),
    [
        pytest.param(file, architecture, marks=[] if (number + place) % 4 == 1 else [pytest.mark.every_kernel])
        for number, file in enumerate(["activations.cu", *LARGE])
        for place, architecture in enumerate(("sm_75", "sm_80", "sm_90", "sm_100"))
    ],
)
def test_compiles_for_other_architectures(file, architecture):
    if file in CLUSTERED and architecture in ("sm_75", "sm_80"):
        pytest.skip("clusters begin with sm_90")
    made = hungriest(file, architecture) if file in LARGE else compiled(file, architecture)
    assert made.resources
    check(made.resources, architecture)


def check(resources, architecture):
    for name, (stack, stores, loads, registers) in resources.items():
        assert (stack, stores, loads) == (0, 0, 0), f"{name} on {architecture}: {stack} B stack, {stores} B spilled"
        assert registers <= budget(name), f"{name} on {architecture}: {registers} registers, planned {budget(name)}"


@pytest.mark.every_kernel
def test_every_budget_is_for_a_kernel():
    kernels = {kernel for file in FILES for kernel in compiled(file, "sm_90").resources}
    assert all(any(kernel.startswith(beginning) for kernel in kernels) for beginning in REGISTERS)


def test_nvrtc_reports_mistakes():
    """A kernel that does not compile is an error."""
    broken = kernel_sources.source("activations.cu").replace("activation<F>(z.x[j])", "activation<F>(z.y[j])")
    with pytest.raises(Exception, match="NVRTC_ERROR_COMPILATION"):
        compile_text(broken, "sm_90")
