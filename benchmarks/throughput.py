"""Tasks per second of whole meta-steps, against every peer, in one run on one machine.

    python -m benchmarks.throughput                      # all workloads but the slow, all implementations
    python -m benchmarks.throughput --only Omniglot --implementations metajax "torch loop" --seconds 10

Each implementation runs in a process of its own, one after the other, on the same initial values and tasks; before any
is timed, its meta-gradient is compared with metajax's. Peers get their tasks ready-made; metajax is timed as it
trains, drawing them inside. Writes `throughput-DEVICE.{md,json,png}` to `--output` (`benchmarks/results`).
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import PEERS, Unsupported
from metajax.benchmark.workloads import WORKLOADS, Workload, make_tasks

OURS = ("metajax", "metajax, one device")
JAX = {"JAX, vmap and lax.conv": "jax_obvious"}
TOLERANCE = 1e-2
"""Largest relative difference between meta-gradients: batch statistics of five images, step after step, amplify the
rounding of float32."""


def main() -> None:
    """Measure, print and write the table."""
    everyone = [*OURS, *JAX, *PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="workloads whose name contains one of these")
    parser.add_argument("--implementations", nargs="*", default=everyone, choices=everyone, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timed calls for each measurement")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until a measurement is given up")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], Path(options.child[1]), options.seconds)))
        return
    names = [n for n, w in WORKLOADS.items() if (any(t in n for t in options.only) if options.only else not w.slow)]
    if not names:
        parser.error(f"no workload's name contains {' or '.join(options.only)}")
    about = environment()
    stem = options.output / f"throughput-{about['platform']}"
    options.output.mkdir(parents=True, exist_ok=True)
    results = _measured_before(stem.with_suffix(".json"), about)
    for name in names:
        measured = _workload(name, options.implementations, options.seconds, options.patience)
        results[name] = {**results.get(name, {}), **measured}
    report = {"environment": about, "results": {name: results[name] for name in WORKLOADS if name in results}}
    text = table(report)
    print(text)
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    stem.with_suffix(".md").write_text(text + "\n")
    plot(report, stem.with_suffix(".png"))


def _measured_before(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run wrote with the same versions on the same device, for this one to add to."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    return kept["results"] if kept.get("environment") == about else {}


def _workload(name: str, implementations: list[str], seconds: float, patience: float) -> dict[str, Any]:
    """Every implementation's measurement of one workload."""
    workload, results = WORKLOADS[name], {}
    with tempfile.TemporaryDirectory() as folder:
        _write(name, Path(folder))
        reference = None
        for implementation in implementations:
            result = _in_own_process(name, implementation, Path(folder), seconds, patience)
            if "error" not in result:
                gradient = dict(np.load(Path(folder) / "gradient.npz"))
                reference = reference or gradient
                result["difference"] = _difference(gradient, reference)
                if not result["difference"] <= TOLERANCE:
                    result = {"error": f"its meta-gradient differs by {result['difference']:.1e}"}
            results[implementation] = result
            said = result.get("error") or f"{workload.tasks / result['seconds']:.1f} tasks/s"
            print(f"{name}: {implementation}: {said}", file=sys.stderr, flush=True)
    return results


def _write(name: str, folder: Path) -> None:
    """The initial values and the tasks."""
    code = (
        "import sys, numpy as np, jax\nfrom metajax.benchmark import WORKLOADS, standard\n"
        "params = standard(WORKLOADS[sys.argv[1]]).params\n"
        "flat = {jax.tree_util.keystr(k, simple=True, separator='/'): np.asarray(v)"
        " for k, v in jax.tree.leaves_with_path(params)}\nnp.savez(sys.argv[2], **flat)"
    )
    subprocess.run([sys.executable, "-c", code, name, str(folder / "params.npz")], check=True)
    np.savez(folder / "tasks.npz", **make_tasks(WORKLOADS[name]))  # type: ignore[arg-type]


def _in_own_process(name: str, implementation: str, folder: Path, seconds: float, patience: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.throughput", "--seconds", str(seconds), "--child"]
    order = folder / "order.json"
    order.write_text(json.dumps({"workload": name, "folder": str(folder)}))
    command += [implementation, str(order)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        return {"error": f"not done with three meta-steps after {patience:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(implementation: str, order: Path, seconds: float) -> dict[str, Any]:
    """One implementation's measurement, in this process."""
    ordered = json.loads(order.read_text())
    workload, folder = WORKLOADS[ordered["workload"]], Path(ordered["folder"])
    params, tasks = (dict(np.load(folder / f"{part}.npz")) for part in ("params", "tasks"))
    if implementation in OURS:
        return _measure_ours(workload, params, tasks, folder, seconds, one_device=implementation != "metajax")
    from metajax.benchmark.measure import peak_bytes, time_calls

    module = importlib.import_module(f"benchmarks.peers.{(PEERS | JAX)[implementation]}")
    try:
        step, gradient = module.prepare(workload, params, tasks)
    except Unsupported as reason:
        return {"error": str(reason)}
    np.savez(folder / "gradient.npz", **gradient())
    timing = time_calls(step, seconds=seconds)
    return {**timing._asdict(), "peak_bytes": peak_bytes([])}


def _measure_ours(
    workload: Workload,
    params: dict[str, np.ndarray],
    tasks: dict[str, np.ndarray],
    folder: Path,
    seconds: float,
    *,
    one_device: bool,
) -> dict[str, Any]:
    import jax

    from metajax.benchmark import (
        matrix_rate,
        meta_gradient,
        peak_bytes,
        standard,
        task_flops,
        time_calls,
        training_call,
    )
    from metajax.cli.device import choose_mesh, prepare_devices

    prepare_devices(1 if one_device else None)
    template = standard(workload).params
    mesh = choose_mesh(1 if one_device else None, template, workload.tasks)
    leaves = [
        params[jax.tree_util.keystr(k, simple=True, separator="/")] for k, _ in jax.tree.leaves_with_path(template)
    ]
    tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
    gradient = meta_gradient(workload, mesh, tree, tasks)
    flat = {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree.leaves_with_path(gradient)}
    np.savez(folder / "gradient.npz", **jax.device_get(flat))
    steps = 100 if workload.model == "mlp" else 1 if workload.slow else 5
    timing = time_calls(training_call(workload, mesh, steps), seconds=seconds)
    plain = standard(workload, mixed_mode=False)  # what has to be computed, not what is computed twice
    flops = task_flops(plain.learner, plain.sampler, plain.params) * workload.tasks * steps / timing.seconds
    rate = matrix_rate(list(mesh.devices.flat))
    scaled = {name: value / steps for name, value in timing._asdict().items() if name in ("seconds", "low", "high")}
    return {
        **timing._asdict(),
        **scaled,
        "devices": mesh.size,
        "peak_bytes": peak_bytes(list(mesh.devices.flat)),
        "gflops": flops / 1e9,
        "matrix_gflops": rate / 1e9,
    }


def _difference(gradient: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """Norm of the difference over the norm."""
    apart = sum(float(np.sum(np.square(gradient[name].astype(float) - reference[name]))) for name in reference)
    return (apart / sum(float(np.sum(np.square(each.astype(float)))) for each in reference.values())) ** 0.5


def environment() -> dict[str, Any]:
    """Versions and device."""
    code = "import jax; d = jax.devices(); print(d[0].platform, '|', d[0].device_kind)"
    platform_name, kind = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("|")
    wanted = ("metajax", "jax", "jaxlib", "flax", "optax", "torch", "higher", "learn2learn", "parallel-metalearn")
    versions = {}
    for name in wanted:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "platform": platform_name.strip(),
        "device": _cpu() if platform_name.strip() == "cpu" else kind.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(report: dict[str, Any]) -> str:
    """Tasks per second, and beside each peer how many times faster metajax is."""
    results, about = report["results"], report["environment"]
    columns = _columns(results)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['device']}, {about['cores']} cores, Python {about['python']}, {versions}. Tasks per second of whole "
        "meta-steps, medians; × is how many times faster metajax is.",
        "",
        f"| workload | {' | '.join(columns)} | of the matrix rate |",
        f"| --- |{' --- |' * (len(columns) + 1)}",
    ]
    for name, row in results.items():
        tasks, ours = WORKLOADS[name].tasks, row.get("metajax", {})
        cells = []
        for column in columns:
            seconds = row.get(column, {}).get("seconds")
            ratio = (
                f" ({seconds / ours['seconds']:.1f}×)" if seconds and "seconds" in ours and column != "metajax" else ""
            )
            cells.append(f"{tasks / seconds:,.1f}{ratio}" if seconds else "–")
        share = f"{100 * ours['gflops'] / ours['matrix_gflops']:.0f} %" if "gflops" in ours else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {share} |")
    reasons = sorted({f"- {c}: {n}: {r[c]['error']}" for n, r in results.items() for c in r if "error" in r[c]})
    return "\n".join([*lines, *(["", "Not measured:", "", *reasons] if reasons else [])])


def _columns(results: dict[str, Any]) -> list[str]:
    return [name for name in (*OURS, *JAX, *PEERS) if any(name in row for row in results.values())]


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars of tasks per second, logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    results = report["results"]
    columns = _columns(results)
    figure, axes = pyplot.subplots(figsize=(10, 0.9 * len(results) + 1.5), layout="constrained")
    height = 0.8 / len(columns)
    for i, column in enumerate(columns):
        rates = [WORKLOADS[n].tasks / r.get(column, {}).get("seconds", np.nan) for n, r in results.items()]
        axes.barh(np.arange(len(results)) + i * height, rates, height, label=column)
    axes.set(xscale="log", xlabel="tasks per second", yticks=np.arange(len(results)) + 0.4 - height / 2)
    axes.set_yticklabels(results)
    axes.invert_yaxis()
    axes.legend()
    axes.set_title(report["environment"]["device"])
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
