"""``fusedmlp bench-comm``."""

from __future__ import annotations

import json

import click

from fusedmlp.cli.output_paths import check_outputs
from fusedmlp.cli.report import print_table

HELP = """Measure how long a sum over all processes (MPI's Allreduce) takes, by the size of its message.

\b
mpiexec -n 8 fusedmlp bench-comm
mpiexec -n 8 fusedmlp bench-comm --out comm.json

A training over MPI makes such a sum in every step, of as many numbers as the network has parameters. The table has the
median time of the slowest process, and the bytes of the message per second. The last line is the straight line that
fits all of them best.
"""


@click.command(name="bench-comm", help=HELP)
@click.option("--out", metavar="FILE", help="Write the times as JSON.")
def bench_comm(out: str | None) -> None:
    """Measure, and print on rank 0."""
    from fusedmlp.distributed.mpi import mpi
    from fusedmlp.distributed.speed import allreduce_times, line_through
    from fusedmlp.files.atomic import write_atomically

    MPI = mpi()
    comm = MPI.COMM_WORLD
    check_outputs({"--out": out}, {})
    if comm.Get_size() == 1:
        click.echo("one process: nothing travels; start several by mpiexec -n N fusedmlp bench-comm", err=True)
    timings = allreduce_times(comm)
    if comm.Get_rank():
        return
    library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
    line = line_through(timings)
    result = {
        "ranks": comm.Get_size(),
        "library": " ".join(library.split()),
        "latency": line.latency,
        "seconds_per_byte": line.per_byte,
        "times": [timing._asdict() for timing in timings],
    }
    if out is not None:
        write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    click.echo(f"{result['ranks']} ranks, {result['library']}\n")
    rows = [[f"{t.n_bytes:,}", f"{t.seconds * 1e6:,.1f}", f"{t.n_bytes / t.seconds / 1e6:,.0f}"] for t in timings]
    print_table(["bytes", "µs", "MB/s"], rows, left=())
    rate = f"{1 / line.per_byte / 1e6:,.0f} MB/s" if line.per_byte else "no time for a byte"
    click.echo(f"\nabout {line.latency * 1e6:.1f} µs and {rate}")
    if out is not None:
        click.echo(f"times: {out}")
