"""More devices, more tasks: throughput on one core as one device, and on all cores with a device for each.

    python -m benchmarks.scaling --only Omniglot

Also how long `import metajax` takes beside what it imports, and a first and a second start of a config, the second from
the cache of compiled programs.
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
    """`metajax bench` of a workload in a process that may use so many cores."""
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
    """Wall-clock seconds of a Python process, the median of five."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.perf_counter() - began)
    return sorted(took)[2]


def starts_of_a_config(config: str) -> list[float]:
    """Seconds of a short run of a config, twice, with an empty cache at first."""
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for run in ("first", "second"):
            command = [sys.executable, "-m", "metajax", "train", config, "--workdir", f"{folder}/{run}"]
            few = ["--training.steps", "25", "--evaluation.num-tasks", "2", "--validation.num-tasks", "2"]
            began = time.perf_counter()
            environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            subprocess.run([*command, *few], check=True, stdout=subprocess.DEVNULL, env=environ)
            took.append(time.perf_counter() - began)
    return took


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="Omniglot", help="workloads whose name contains this")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--config", default="glyphs_maml_5w1s")
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
    use_precision("default")  # as `metajax bench` did
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
