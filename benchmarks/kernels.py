"""Where the time of a meta-step goes, by kind of kernel.

    python -m benchmarks.kernels                     # all workloads but the slow
    python -m benchmarks.kernels --only Omniglot

Training is traced by JAX's profiler, after a warm-up; of models that convolve in float32, and with operands rounded to
bfloat16. *Products* are matrix products and convolutions; *moves* are kernels that only copy: windows of images,
transposes, padding; *arithmetic* is the rest: activations, statistics, updates, random numbers. *Between kernels* is
what is left of the wall time of the device (of a CPU, of all cores): launching kernels, and cores that wait for each
other. Shares are of the same total, and tracing makes what lies between kernels longer. Writes
`kernels-DEVICE.{md,json}` to `--output`
(`benchmarks/results`).
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
_PRODUCTS = ("dot", "convol", "ynn", "onednn", "gemm", "custom-call", "cublas", "cutlass", "triton", "prop", "grad")
_MOVES = {"copy", "bitcast", "transpose", "pad", "slice", "concatenate", "broadcast", "reverse", "reshape", "gather"}
_SILENT = {"fusion", "wrapped", "loop", "input", "dynamic", "update"}
"""Parts of a name that do not say what is computed."""
_HOLDERS = {"while", "call", "conditional", "async-start", "async-done"}


def main() -> None:
    """Trace, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="workloads whose name contains one of these"
    )
    parser.add_argument("--calls", type=int, default=3, help="traced calls of a few meta-steps each, after one more")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    names = list(choose(*options.only))
    if not names:
        parser.error(f"no workload's name contains {' or '.join(options.only)}")
    prepare_devices(None)
    report = {"environment": environment(), "results": {}}
    stem = options.output / f"kernels-{report['environment']['platform']}"
    options.output.mkdir(parents=True, exist_ok=True)
    partial = stem.with_suffix(".partial.json")  # what an interrupted run leaves
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
    """Seconds of a meta-step by kind of kernel, how many kernels it runs, and the seconds of the wall on all cores."""
    workload = WORKLOADS[name]
    mesh = choose_mesh(None, standard(workload).params, workload.tasks)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    short = workload.model == "mlp" or not on_cpu
    steps = 20 if short else 1  # of short ones so many that starting a call does not count
    call = training_call(workload, mesh, steps)
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()  # the first one that is traced also starts the tracing of an accelerator
            begun = time.perf_counter()
            for _ in range(calls):
                call()
            wall = time.perf_counter() - begun
        (trace,) = Path(folder).rglob("*.xplane.pb")
        seconds, kernels = by_kind(_events(trace))
    alone = mesh.size == 1 and on_cpu and workload.model != "mlp"
    cores = len(os.sched_getaffinity(0)) if alone else mesh.size  # one device has all cores, several have one each
    traced = (1 + calls) * steps
    return {
        **{kind: seconds[kind] / traced for kind in KINDS},
        "kernels": round(kernels / traced),
        "wall": wall * cores / (calls * steps),
        "cores": cores,
    }


Event = tuple[str, float, float]
"""A kernel's name, when it began and how long it ran, in nanoseconds."""


def _events(trace: Path) -> Iterator[list[Event]]:
    """The kernels of each thread of a trace."""
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            events = [e for e in line.events if any(key == "hlo_op" for key, _ in e.stats)]
            yield [(e.name, e.start_ns, e.duration_ns) for e in events]


def by_kind(threads: Iterable[list[Event]]) -> tuple[dict[str, float], int]:
    """Seconds of each kind of kernel, and the number of kernels.

    Every moment of a thread counts once, for the last to begin of those that run: for a kernel within another, and for
    the later of two that overlap, as they do in a CUDA graph.

    >>> seconds, kernels = by_kind([[("dot.1", 0, 9e9), ("copy.2", 1e9, 2e9)], [("while", 0, 9e9), ("tanh", 0, 1e9)]])
    >>> seconds["products"], seconds["moves"], seconds["arithmetic"], kernels
    (7.0, 2.0, 1.0, 3)
    >>> by_kind([[("dot", 0, 2e9), ("tanh", 1e9, 2e9), ("copy", 2e9, 2e9)]])[0]
    {'products': 1.0, 'moves': 2.0, 'arithmetic': 1.0}
    """
    seconds, kernels = dict.fromkeys(KINDS, 0.0), 0
    for events in threads:
        known = [(kind, begun, begun + duration) for name, begun, duration in events if (kind := kind_of(name))]
        kernels += len(known)
        for kind, nanoseconds in _stretches(known):
            seconds[kind] += nanoseconds / 1e9
    return seconds, kernels


def _stretches(known: list[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """The kind and the length of each stretch of time in which one kernel (kind, begun, end) was the last to begin."""
    running: list[tuple[str, float]] = []
    now = -math.inf
    for kind, begun, end in [*sorted(known, key=lambda kernel: (kernel[1], -kernel[2])), ("", math.inf, math.inf)]:
        while running and now < begun:
            last, its_end = running[-1]
            until = min(its_end, begun)
            if until > now:
                yield last, until - now
                now = until
            if its_end <= now:
                running.pop()
        now = begun
        running.append((kind, end))


def kind_of(name: str) -> str | None:
    """Kind of a kernel, from the compiler's name for it; None for what only holds others.

    >>> [kind_of(name) for name in ("ynn_fusion.7", "wrapped_transpose", "add_select_fusion.2", "while.1.clone")]
    ['products', 'moves', 'arithmetic', None]
    >>> kind_of("fusion.3")  # which may be anything
    'arithmetic'
    >>> [kind_of(name) for name in ("void wgrad_alg0_engine<float>", "sm90_xmma_fprop", "loop_pad_fusion_1", "memcpy")]
    ['products', 'products', 'moves', 'moves']
    """
    name = re.sub(r"(\.clone|[._]\d+)*$", "", name)
    if name in _HOLDERS or name.startswith("end: "):
        return None
    if any(part in name for part in _PRODUCTS):
        return "products"
    said = set(re.split(r"[_-]", name)) - _SILENT
    copies = name.lower().startswith(("memcpy", "memset"))
    return "moves" if copies or (said and said <= _MOVES) else "arithmetic"


def table(report: dict[str, Any]) -> str:
    """A row for each workload."""
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
