"""``python -m bench.streams --out DIR``: training on files against training in memory; and how much memory it takes.

Throughput is that of the second epoch, when the files are in the system's cache: medians of several turns, one way to
train after the other. Memory is the process's own, without pages of files, while it trains on a memory-mapped file that
is larger than most memories: a sparse one, of zeros, that takes no room on the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.machine import cpu_model

CASES = {"784-128-10": 200_000, "784-32-10": 200_000, "128-64-10": 1_000_000, "30-64-1": 2_000_000}
BATCH_SIZE = 256
SHARDS = 8
WAYS = ("in memory", "one .npy", "one .npy, float64", "class numbers", ".npy shards", "Parquet shards", "batches")


def network(name: str) -> Any:
    """A network of the sizes that its name has."""
    from fusedmlp import Network

    sizes = [int(n) for n in name.split("-")]
    return Network(sizes, "relu", "squared_error" if sizes[-1] == 1 else "categorical_cross_entropy", random_state=0)


def files(name: str, m: int, folder: Path) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Samples in every form: the arguments of ``fit``, by how they are stored."""
    import polars as pl

    from fusedmlp import ArrayStream, NpyStream, ParquetStream

    inputs, *_, outputs = (int(n) for n in name.split("-"))
    rng = np.random.default_rng(0)
    X, labels = rng.random((m, inputs), np.float32), rng.integers(0, max(2, outputs), m)
    Y = np.eye(outputs, dtype=np.float32)[labels] if outputs > 1 else labels[:, None].astype(np.float32)
    np.save(folder / "X.npy", X)
    np.save(folder / "X64.npy", X.astype(np.float64))
    for kind in ("X", "Y", "parquet"):
        (folder / kind).mkdir()
    for number, rows in enumerate(np.array_split(np.arange(m), SHARDS)):
        np.save(folder / "X" / f"{number}.npy", X[rows])
        np.save(folder / "Y" / f"{number}.npy", Y[rows])
        frame = pl.DataFrame(X[rows], schema=[f"x{i}" for i in range(inputs)])
        frame.with_columns(y=labels[rows]).write_parquet(folder / "parquet" / f"{number}.parquet")
    classes = outputs if outputs > 1 else None
    mapped, mapped64 = (np.load(folder / f"{each}.npy", mmap_mode="r").T for each in ("X", "X64"))
    return {
        "in memory": lambda: (X.T, Y.T),
        "one .npy": lambda: (ArrayStream(mapped, Y.T),),
        "one .npy, float64": lambda: (ArrayStream(mapped64, Y.T),),
        "class numbers": lambda: (ArrayStream(mapped, labels, classes=classes),),
        ".npy shards": lambda: (NpyStream(folder / "X", folder / "Y"),),
        "Parquet shards": lambda: (ParquetStream(folder / "parquet", "y", classes=classes),),
        "batches": lambda: (lambda: ((X[i : i + 1000].T, Y[i : i + 1000].T) for i in range(0, m, 1000)),),
    }


def throughput(turns: int) -> dict[str, dict[str, float]]:
    """Samples per second, by case and way."""
    rates: dict[str, dict[str, float]] = {}
    for name, m in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            ways = files(name, m, Path(folder))
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(turns):
                for way, make in ways.items():
                    history = network(name).fit(*make(), epochs=3, batch_size=BATCH_SIZE)
                    seconds[way].append(min(history.seconds[1:]))
        rates[name] = {way: m / statistics.median(times) for way, times in seconds.items()}
        cells = " | ".join(f"{rate:,.0f} ({rate / rates[name]['in memory']:.2f})" for rate in rates[name].values())
        click.echo(f"| {name} | {cells} |")
    return rates


# Memory ---------------------------------------------------------------------------------------------------------------


def own_bytes() -> int:
    """The process's resident memory without pages of files."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return sum(int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def train_on_a_large_file(gigabytes: float) -> None:
    """Train for an epoch on a sparse file; print a line of JSON."""
    inputs = 784
    m = int(gigabytes * 1e9) // (4 * inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        header = {"descr": "<f4", "fortran_order": False, "shape": (m, inputs)}
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 4 * inputs * m)
        X, Y = np.load(path, mmap_mode="r").T, (np.arange(m) % 2).astype(np.int8)
        before, largest, done = own_bytes(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                largest[0] = max(largest[0], own_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        net, begin = network("784-128-1"), time.perf_counter()
        history = net.fit(X, Y, epochs=1, batch_size=BATCH_SIZE)
        seconds = time.perf_counter() - begin
        done.set()
        watcher.join()
    rates = {"seconds": seconds, "samples_per_second": m / history.seconds[0]}
    print(json.dumps({"file": 4 * inputs * m, "samples": m, "before": before, "largest": largest[0], **rates}))


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bench/out/streams"))
@click.option("--turns", default=5, show_default=True)
@click.option("--gigabytes", default=16.0, show_default=True, help="The size of the memory-mapped file.")
@click.option("--memory-only", is_flag=True, hidden=True)
def main(out: Path, turns: int, gigabytes: float, memory_only: bool) -> None:
    """Measure throughput and memory of trainings on files."""
    if memory_only:
        train_on_a_large_file(gigabytes)
        return
    out.mkdir(parents=True, exist_ok=True)
    click.echo(f"{cpu_model()}, batches of {BATCH_SIZE}, samples/s (of training in memory)\n")
    click.echo(f"| network | {' | '.join(WAYS)} |\n|---|{'--:|' * len(WAYS)}")
    rates = throughput(turns)
    words = [sys.executable, "-m", "bench.streams", "--memory-only", "--gigabytes", str(gigabytes)]
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ).stdout
    memory = json.loads(text.splitlines()[-1])
    click.echo(
        f"\n{memory['file'] / 1e9:.1f} GB memory-mapped, 784-128-1: {memory['samples_per_second']:,.0f} samples/s; own "
        f"memory at most {memory['largest'] / 1e6:.0f} MB, {memory['before'] / 1e6:.0f} MB before the training"
    )
    results = {"cpu": cpu_model(), "rates": rates, "memory": memory}
    (out / "streams.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
