"""Measure how the time of a meta-step divides into kinds of kernels.

    python -m benchmarks.kernels                     # all workloads except the slow ones
    python -m benchmarks.kernels --only Omniglot

JAX's profiler traces training after a warm-up. Convolutional models are traced twice: in float32, and with operands
rounded to bfloat16. There are four shares of the wall time of the device (on a CPU, of all cores):

- *products*: matrix products and convolutions;
- *moves*: kernels that only copy data, such as im2col patches, transposes and padding;
- *arithmetic*: all other kernels, such as activations, statistics, updates and random numbers;
- *between kernels*: the remaining time, in which the device starts kernels or cores wait for each other. Tracing makes
  this share larger.

The results are written to `kernels-DEVICE.{md,json}` in the folder `--output` (default: `benchmarks/results`).
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.throughput import ROUNDED, environment
from metajax.experiment.devices import choose_mesh, prepare_devices, use_precision
from metajax.profiling import WORKLOADS, choose, standard, training_call

KINDS = ("products", "moves", "arithmetic")
"""Kinds of kernels; the docstring of this module describes them."""
_PRODUCTS = ("dot", "convol", "ynn", "onednn", "gemm", "custom-call", "cublas", "cutlass", "triton", "prop", "grad")
_MOVES = {"copy", "bitcast", "transpose", "pad", "slice", "concatenate", "broadcast", "reverse", "reshape", "gather"}
_SILENT = {"fusion", "wrapped", "loop", "input", "dynamic", "update"}
"""Parts of a kernel's name that do not describe its operation."""
_HOLDERS = {"while", "call", "conditional", "async-start", "async-done"}
"""Names of events that only contain other kernels."""


def main() -> None:
    """Trace the workloads, then print and write a table of the shares of each kind of kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="only workloads whose name contains one of these texts"
    )
    parser.add_argument("--calls", type=int, default=3, help="number of timed calls of the training step")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    names = list(choose(*options.only))
    if not names:
        parser.error(f"no workload's name contains {' or '.join(options.only)}")
    prepare_devices(None)
    report = {"environment": environment(), "results": {}}
    stem = options.output / f"kernels-{report['environment']['platform']}"
    options.output.mkdir(parents=True, exist_ok=True)
    partial = stem.with_suffix(".partial.json")  # keeps the results of an interrupted run
    for name in names:
        rounded = {} if WORKLOADS[name].model == "mlp" else {ROUNDED: "bfloat16"}
        for suffix, precision in ({"": "float32"} | rounded).items():
            use_precision(precision)
            measured = report["results"][f"{name}{suffix}"] = measure(name, options.calls)
            print(f"{name}{suffix}: {1000 * measured['wall']:.1f} ms in all", file=sys.stderr, flush=True)
            partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    partial.replace(stem.with_suffix(".json"))
    text = table(report)
    print(text)
    stem.with_suffix(".md").write_text(text + "\n")


def measure(name: str, calls: int) -> dict[str, Any]:
    """Return the seconds of a meta-step for each kind of kernel, the number of kernels, and the wall time.

    The wall time is multiplied by the number of cores that run the kernels.
    """
    workload = WORKLOADS[name]
    mesh = choose_mesh(None, standard(workload).params, workload.tasks)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    short = workload.model == "mlp" or not on_cpu
    steps = 20 if short else 1  # many short meta-steps, so that the start of a call takes a small share
    call = training_call(workload, mesh, steps)
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()  # the first traced call also starts the tracing of an accelerator, so it is not timed
            start = time.perf_counter()
            for _ in range(calls):
                call()
            wall = time.perf_counter() - start
        (trace,) = Path(folder).rglob("*.xplane.pb")
        seconds, kernels = by_kind(_events(trace))
    uses_all_cores = mesh.size == 1 and on_cpu and workload.model != "mlp"
    cores = len(os.sched_getaffinity(0)) if uses_all_cores else mesh.size  # several devices have one core each
    traced = (1 + calls) * steps
    return {
        **{kind: seconds[kind] / traced for kind in KINDS},
        "kernels": round(kernels / traced),
        "wall": wall * cores / (calls * steps),
        "cores": cores,
    }


Event = tuple[str, float, float]
"""A kernel's name, its start time and its duration, in nanoseconds."""


def _events(trace: Path) -> Iterator[list[Event]]:
    """Yield the kernels of each thread of a trace."""
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            events = [e for e in line.events if any(key == "hlo_op" for key, _ in e.stats)]
            yield [(e.name, e.start_ns, e.duration_ns) for e in events]


def by_kind(threads: Iterable[list[Event]]) -> tuple[dict[str, float], int]:
    """Return the seconds of each kind of kernel, and the number of kernels.

    If several kernels of a thread run at the same time, the time counts only for the kernel that started last. So it
    counts for the inner kernel if one kernel contains another, and for the later kernel if two overlap, as in a CUDA
    graph.

    >>> seconds, kernels = by_kind([[("dot.1", 0, 9e9), ("copy.2", 1e9, 2e9)], [("while", 0, 9e9), ("tanh", 0, 1e9)]])
    >>> seconds["products"], seconds["moves"], seconds["arithmetic"], kernels
    (7.0, 2.0, 1.0, 3)
    >>> by_kind([[("dot", 0, 2e9), ("tanh", 1e9, 2e9), ("copy", 2e9, 2e9)]])[0]
    {'products': 1.0, 'moves': 2.0, 'arithmetic': 1.0}
    """
    seconds, kernels = dict.fromkeys(KINDS, 0.0), 0
    for events in threads:
        known = [(kind, start, start + duration) for name, start, duration in events if (kind := kind_of(name))]
        kernels += len(known)
        for kind, nanoseconds in _stretches(known):
            seconds[kind] += nanoseconds / 1e9
    return seconds, kernels


def _stretches(known: list[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Yield the kind and duration of each time span in which one kernel `(kind, start, end)` is the last that started.

    The durations have the unit of the times, nanoseconds.
    """
    running: list[tuple[str, float]] = []
    now = -math.inf
    for kind, start, end in [*sorted(known, key=lambda kernel: (kernel[1], -kernel[2])), ("", math.inf, math.inf)]:
        while running and now < start:
            last_kind, last_end = running[-1]
            until = min(last_end, start)
            if until > now:
                yield last_kind, until - now
                now = until
            if last_end <= now:
                running.pop()
        now = start
        running.append((kind, end))


def kind_of(name: str) -> str | None:
    """Return the kind of a kernel from its name; `None` if the event only contains other kernels, such as a loop.

    >>> [kind_of(name) for name in ("ynn_fusion.7", "wrapped_transpose", "add_select_fusion.2", "while.1.clone")]
    ['products', 'moves', 'arithmetic', None]
    >>> kind_of("fusion.3")  # the name does not describe the operation
    'arithmetic'
    >>> [kind_of(name) for name in ("void wgrad_alg0_engine<float>", "sm90_xmma_fprop", "loop_pad_fusion_1", "memcpy")]
    ['products', 'products', 'moves', 'moves']
    """
    name = re.sub(r"(\.clone|[._]\d+)*$", "", name)
    if name in _HOLDERS or name.startswith("end: "):
        return None
    if any(part in name for part in _PRODUCTS):
        return "products"
    operations = set(re.split(r"[_-]", name)) - _SILENT
    copies = name.lower().startswith(("memcpy", "memset"))
    return "moves" if copies or (operations and operations <= _MOVES) else "arithmetic"


def table(report: dict[str, Any]) -> str:
    """Return a Markdown table of the shares of each kind of kernel, with a row for each workload."""
    about = report["environment"]
    on_cpu = about["platform"] == "cpu"
    cores, whose = (f", {about['cores']} cores", "all cores") if on_cpu else ("", "the device")
    lines = [
        f"{about['device']}{cores}, jax {about['versions']['jax']}. Of the time of {whose}.",
        "",
        "| workload | products | moves | arithmetic | between kernels | kernels in a meta-step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in report["results"].items():
        shares = [row[kind] / row["wall"] for kind in KINDS]
        cells = [f"{100 * share:.0f} %" for share in [*shares, 1 - sum(shares)]]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['kernels']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
