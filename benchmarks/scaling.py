"""Measure the throughput on one core with one device, and on all cores with one device for each core.

    python -m benchmarks.scaling --only Omniglot

The benchmark also measures how much time `import metajax` adds to the import of JAX, Flax and optax. And it measures
two short runs of a config: the first compiles, and the second loads the compiled programs from the cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.throughput import environment
from metajax.core.precision import products_precision
from metajax.experiment.devices import use_precision
from metajax.profiling.workloads import WORKLOADS


def tasks_per_second(name: str, cores: int, seconds: float) -> float:
    """Return the tasks per second of a workload by `metajax bench`, in a process that may use only `cores` cores."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "metajax", "bench", "--only", name, "--devices", str(cores)]
        subprocess.run(
            [*command, "--seconds", str(seconds), "--output", str(output)],
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
        )
        return json.loads(output.read_text())["results"][name]["tasks_per_second"]


def start_seconds(code: str) -> float:
    """Return the wall time in seconds of a Python process that runs `code`: the median of five measurements."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return sorted(times)[2]


def starts_of_a_config(config: str) -> list[float]:
    """Return the seconds of two equal short runs of a config. The cache of compiled programs is empty at first."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for run in ("first", "second"):
            command = [sys.executable, "-m", "metajax", "train", config, "--workdir", f"{folder}/{run}"]
            few = ["--training.steps", "25", "--evaluation.num-tasks", "2", "--validation.num-tasks", "2"]
            start = time.perf_counter()
            environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            subprocess.run([*command, *few], check=True, stdout=subprocess.DEVNULL, env=environ)
            times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Measure throughput and start times, then print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="Omniglot", help="measure only workloads whose name contains this text")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--config", default="glyphs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    cores, lines = (
        len(os.sched_getaffinity(0)),
        [f"| workload | 1 core | {len(os.sched_getaffinity(0))} cores | times |"],
    )
    lines.append("| --- | --- | --- | --- |")
    for name, workload in WORKLOADS.items():
        if options.only in name and not workload.slow:
            one, many = (tasks_per_second(name, n, options.seconds) for n in (1, cores))
            lines.append(f"| {name} | {one:,.1f} | {many:,.1f} | {many / one:.2f} |")
            print(lines[-1], flush=True)
    bare = start_seconds("import jax, flax, optax")
    whole = start_seconds("import jax, flax, optax, metajax")
    first, second = starts_of_a_config(options.config)
    about = environment()
    use_precision("default")  # the setting of the `metajax bench` processes, for the text below
    text = "\n".join(
        [
            f"{about['device']}, {about['cores']} cores, jax {about['versions']['jax']}. Tasks per second, "
            f"products in {products_precision()} precision.",
            "",
            *lines,
            "",
            f"`import metajax` takes {whole - bare:.2f} s on top of `import jax, flax, optax` ({bare:.2f} s). A run of "
            f"25 meta-steps of `{options.config}` takes {first:.1f} s with an empty cache of compiled programs, and "
            f"{second:.1f} s the second time.",
        ]
    )
    print(text)
    (options.output / f"scaling-{about['platform']}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
