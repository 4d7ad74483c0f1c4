"""Measure the tasks per second of whole meta-steps, for metajax and all peers, in one run on one machine.

    python -m benchmarks.throughput                      # all workloads except the slow ones, all implementations
    python -m benchmarks.throughput --only Omniglot --implementations metajax "torch loop" --seconds 10
    python -m benchmarks.throughput --at-once 12         # for a machine with an accelerator and many cores

A *peer* is another implementation of the same meta-step. Each implementation runs in its own process, and all get equal
initial parameters and tasks. The measurement has two parts:

1. A process computes the meta-gradient of the first tasks in float64. It must equal metajax's meta-gradient. For
   ResNet-12 each class has only one example in this check.
2. Another process measures the time in float32, while no other process runs. On a GPU the matrix products of all
   implementations use TF32.

`--at-once` processes are checked at the same time, and JAX processes also compile before they wait for their turn.
Peers get tasks that are already sampled. metajax samples the tasks in the timed training step, as in training.

The implementation `NAME, bfloat16` is NAME with operands rounded to bfloat16: the operands of convolutions in metajax,
and autocast in PyTorch. Its meta-gradient is not checked, because rounding changes the values.

The results are written to `throughput-DEVICE.{md,json,png}` in the folder `--output` (default: `benchmarks/results`).
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import PEERS, Unsupported
from metajax.profiling.workloads import WORKLOADS, Workload, choose, make_tasks

ROUNDED = ", bfloat16"
"""End of the name of an implementation with operands rounded to bfloat16."""
OURS = ("metajax", "metajax, one device", f"metajax{ROUNDED}")
"""Names of the implementations that are metajax."""
Arrays = dict[str, np.ndarray]
"""Arrays by their paths, such as `convs/0/kernel`."""
Cell = tuple[str, str]
"""The name of a workload and the name of an implementation."""
JAX = {"JAX, vmap and lax.conv": "jax_obvious"}
"""Peers in JAX: the module in `benchmarks.peers` by the name of the peer."""
EVERYONE = (*OURS, *JAX, *PEERS, *(f"{peer}{ROUNDED}" for peer in PEERS))
"""Names of all implementations."""
_READY = "ready\n"
"""The line that a process prints when it is ready to be timed."""
TOLERANCE = 1e-6
"""Largest relative difference between meta-gradients in float64. In float32 equal implementations can differ by several
percent, because the statistics of small batches amplify the rounding in each inner step."""


def main() -> None:
    """Measure the throughput, then print and write a table of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="only workloads whose name contains one of these texts"
    )
    parser.add_argument("--implementations", nargs="*", default=EVERYONE, choices=EVERYONE, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each measurement")
    parser.add_argument("--patience", type=float, default=300.0, help="time limit of each measurement, in seconds")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="number of processes to prepare at the same time; up to 2 N − 1 processes exist",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(*options.child, seconds=options.seconds)))
        return
    names = list(choose(*options.only))
    if not names:
        parser.error(f"no workload's name contains {' or '.join(options.only)}")
    if options.at_once < 1 or not options.implementations:
        parser.error("--at-once is at least 1, and --implementations names one or more")
    about = environment()
    stem = options.output / f"throughput-{about['platform']}"
    options.output.mkdir(parents=True, exist_ok=True)
    results = _measured_before(stem.with_suffix(".json"), about)
    partial = stem.with_suffix(".partial.json")  # keeps the results of an interrupted run
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), options.seconds, options.patience, options.at_once)
        cells = [
            (name, implementation)
            for name in names
            for implementation in options.implementations
            if not (implementation == OURS[2] and WORKLOADS[name].model == "mlp")  # an MLP has no convolution
        ]
        for name, implementation, measured in measurements(cells, settings):
            results.setdefault(name, {})[implementation] = measured
            outcome = measured.get("error") or f"{rate(name, measured['seconds'])} tasks/s"
            print(f"{name}: {implementation}: {outcome}", file=sys.stderr, flush=True)
            report = {"environment": about, "results": {name: results[name] for name in WORKLOADS if name in results}}
            partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if not partial.exists():
        parser.error("none of these implementations supports any of these workloads")
    partial.replace(stem.with_suffix(".json"))
    text = table(report)
    print(text)
    stem.with_suffix(".md").write_text(text + "\n")
    plot(report, stem.with_suffix(".png"))


def _measured_before(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return the results of an earlier run on the same device with the same versions; an empty dict if there are none.

    The current run adds its results to them.
    """
    kept = json.loads(path.read_text()) if path.is_file() else {}
    return kept["results"] if kept.get("environment") == about else {}


class Settings(NamedTuple):
    """Settings of the measurements.

    Attributes:
        folder: A folder for the files that processes pass to each other.
        seconds: Duration of each measurement.
        patience: Time limit of each measurement in seconds.
        at_once: Number of processes that are checked or prepared at the same time. Up to `2 * at_once - 1` processes
            exist, because prepared processes wait for their turn.
    """

    folder: Path
    seconds: float
    patience: float
    at_once: int


def measurements(cells: Sequence[Cell], settings: Settings) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the results for each workload and implementation: a dict of measurements, or of an `error`.

    Several processes are prepared at the same time, and timed one after the other. Prepared processes wait without
    using a core, so `2 * at_once - 1` of them may exist. If `at_once` is 1, only one process exists, because it may
    take all memory of an accelerator.
    """
    names = dict.fromkeys(name for name, _ in cells)
    futures: list[Future] = []
    with ThreadPoolExecutor(settings.at_once) as pool, contextlib.ExitStack() as on_exit:
        on_exit.callback(_end, futures)
        on_exit.callback(pool.shutdown, cancel_futures=True)  # runs before `_end`, so that no process starts after it
        written = {name: pool.submit(_write, name, settings.folder) for name in names}
        ours = {name: pool.submit(_check, (name, OURS[0]), written[name], settings) for name in names}
        for batch in _batched(cells, 2 * settings.at_once - 1):
            prepared = [pool.submit(_prepared, cell, written[cell[0]], settings) for cell in batch]
            futures += prepared
            for name, check in ours.items():
                if error := check.result():
                    raise SystemExit(f"{name}: {OURS[0]}: {error['error']}")
            wait(prepared)
            for cell, future in zip(batch, prepared, strict=True):
                failed, process = future.result()
                check = failed or (_compared(cell, settings) if _is_exact(cell) else {})
                if "error" in check:
                    _end([future])
                    process = None
                yield *cell, {**(timed(process, settings) if process else {}), **check}


def _batched(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[i : i + size] for i in range(0, len(values), size))


def _write(name: str, folder: Path) -> None:
    """Write the initial parameters and the tasks of a workload to files."""
    (folder / name).mkdir()
    code = (
        "import sys, numpy as np\nfrom benchmarks.throughput import flattened\n"
        "from metajax.profiling import WORKLOADS, standard\n"
        "np.savez(sys.argv[2], **flattened(standard(WORKLOADS[sys.argv[1]]).params))"
    )
    command = [sys.executable, "-c", code, name, str(folder / name / "params.npz")]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})  # needs no accelerator
    np.savez(folder / name / "tasks.npz", **make_tasks(WORKLOADS[name]))  # type: ignore[arg-type]


def _prepared(cell: Cell, written: Future, settings: Settings) -> tuple[dict[str, Any], "_Process | None"]:
    """Check an implementation in one process, and prepare another process that will be timed.

    Returns:
        An empty dict and the prepared process; or, if the check failed, a dict with the `error` and `None`.
    """
    checked_before = cell[1] == OURS[0]
    failed = _check(cell, written, settings) if _is_exact(cell) and not checked_before else {}
    written.result()
    return failed, None if failed else _made_ready(cell, settings)


def _is_exact(cell: Cell) -> bool:
    """Return whether the meta-gradient of an implementation must equal metajax's, because nothing is rounded."""
    return not cell[1].endswith(ROUNDED)


def _end(prepared: Sequence[Future]) -> None:
    """End the prepared processes that were not timed."""
    for each in prepared:
        process = None if each.cancelled() or each.exception() else each.result()[1]
        if process:
            with process.popen as popen:
                popen.kill()


def _check(cell: Cell, written: Future, settings: Settings) -> dict[str, Any]:
    """Run a process that writes a meta-gradient to a file. Return an empty dict, or a dict with an `error`."""
    written.result()
    return _finish(_start("check", cell, settings), settings)


def _compared(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Return a dict with the difference of a meta-gradient from metajax's, or with an `error` above the tolerance."""
    difference = _difference(settings.folder / cell[0], cell[1])
    return (
        {"difference": difference}
        if difference <= TOLERANCE
        else {"error": f"its meta-gradient differs by {difference:.1e}"}
    )


class _Process(NamedTuple):
    """A measuring process, the file of its standard error, and its standard output so far."""

    popen: subprocess.Popen
    errors: Path
    output: str = ""


def _start(action: str, cell: Cell, settings: Settings) -> _Process:
    """Start a process that checks or times an implementation; `action` is `check` or `time`."""
    name, implementation = cell
    command = [sys.executable, "-m", "benchmarks.throughput", "--seconds", str(settings.seconds), "--child"]
    command += [action, implementation, name, str(settings.folder / name)]
    variables = {**os.environ, "JAX_ENABLE_X64": str(int(action == "check"))}
    if settings.at_once > 1:
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the processes share the accelerator's memory
    errors = settings.folder / name / f"{action}-{implementation}.err"
    with errors.open("w") as stream:
        popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True, env=variables
        )
    return _Process(popen, errors)


def _made_ready(cell: Cell, settings: Settings) -> _Process:
    """Start a process that times an implementation, and return it when it waits for its turn or has failed."""
    process = _start("time", cell, settings)
    output = ""
    with _patience(process, settings):
        for line in process.popen.stdout or ():
            if line == _READY:
                break
            output += line
    return process._replace(output=output)


def timed(process: _Process, settings: Settings) -> dict[str, Any]:
    """Let a prepared process measure, and return its results."""
    return {**_finish(process, settings), "at_once": settings.at_once}


def _finish(process: _Process, settings: Settings) -> dict[str, Any]:
    """Wait until a process ends, and return its results, or a dict with an `error`."""
    with _patience(process, settings):
        output, _ = process.popen.communicate("go\n")
    code = process.popen.returncode
    if code:
        too_late = process.errors.with_suffix(".late").exists()
        reason = f"not done after {settings.patience:.0f} s" if too_late else f"exit status {code}"
        errors = [] if too_late else process.errors.read_text().strip().splitlines()
        return {"error": (errors or [reason])[-1][:300]}
    return json.loads((process.output + output).splitlines()[-1])


@contextlib.contextmanager
def _patience(process: _Process, settings: Settings) -> Iterator[None]:
    """End a process that takes longer than the time limit, and record this in a file with the suffix `.late`."""

    def give_up() -> None:
        process.errors.with_suffix(".late").touch()
        process.popen.kill()

    clock = threading.Timer(settings.patience, give_up)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()


def _child(action: str, implementation: str, name: str, folder: str, *, seconds: float) -> dict[str, Any]:
    """Check or time one implementation in this process; `action` is `check` or `time`."""
    workload = WORKLOADS[name]
    params, tasks = (dict(np.load(Path(folder) / f"{part}.npz")) for part in ("params", "tasks"))
    try:
        if action == "time":
            return _time(implementation, workload, params, tasks, seconds)
        checked, tasks = _small(workload, tasks)
        gradient = gradient_of(implementation, checked, _in_float64(params), _in_float64(tasks))
    except Unsupported as reason:
        return {"error": str(reason)}
    np.savez(Path(folder) / f"{implementation}.npz", **gradient)  # type: ignore[arg-type]
    return {}


def _small(workload: Workload, tasks: Arrays) -> tuple[Workload, Arrays]:
    """Return a workload and tasks for the check in float64, which is slow: only the first one or two tasks.

    For a slow workload the tasks have only one support example and one query for each class.
    """
    checked = dataclasses.replace(workload, tasks=1 if workload.side > 28 else 2)
    if workload.slow:
        checked = dataclasses.replace(checked, shots=1, queries=1)
    examples = {"support": checked.ways * checked.shots, "query": checked.ways * checked.queries}
    return checked, {name: a[: checked.tasks, : examples[name.split("_")[0]]] for name, a in tasks.items()}


def _in_float64(arrays: Arrays) -> Arrays:
    return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()}


def gradient_of(implementation: str, workload: Workload, params: Arrays, tasks: Arrays) -> Arrays:
    """Compute the meta-gradient of an implementation, averaged over the tasks.

    Raises:
        Unsupported: If the implementation does not support the workload.
    """
    if implementation not in OURS:
        return _peer(implementation).prepare(workload, params, tasks)[1]()
    from metajax.profiling import meta_gradient

    mesh, template = _our_mesh(implementation, workload)
    return flattened(meta_gradient(workload, mesh, _unflattened(params, template), tasks))


def _time(implementation: str, workload: Workload, params: Arrays, tasks: Arrays, seconds: float) -> dict[str, Any]:
    from metajax.profiling import time_calls

    if implementation in OURS:
        return _time_ours(implementation, workload, seconds)
    peer = _peer(implementation.removesuffix(ROUNDED))
    if implementation in JAX:
        timing = _time_in_turn(peer.prepare(workload, params, tasks)[0], seconds)
        return {**timing, "peak_bytes": _peak_bytes_of_peer(implementation)}
    _wait_for_turn()  # before `prepare`, in which PyTorch peers time several chunk sizes
    with _autocast() if implementation.endswith(ROUNDED) else contextlib.nullcontext():
        timing = time_calls(peer.prepare(workload, params, tasks)[0], seconds=seconds)
        return {**timing._asdict(), "peak_bytes": _peak_bytes_of_peer(implementation)}


def _peak_bytes_of_peer(implementation: str) -> int:
    from metajax.profiling import peak_bytes

    if implementation in JAX:
        import jax

        return peak_bytes(jax.devices())
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes([])


def _time_in_turn(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Compile a function by its first call, wait for this process's turn, then time the function."""
    from metajax.profiling import time_calls

    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    _wait_for_turn()
    return time_calls(call, seconds=seconds)._replace(first_seconds=first)._asdict()


def _wait_for_turn() -> None:
    """Tell the parent process that this process is ready, and wait for its answer."""
    print(_READY, end="", flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the benchmark has ended")


def _peer(implementation: str) -> types.ModuleType:
    return importlib.import_module(f"benchmarks.peers.{(PEERS | JAX)[implementation]}")


def _autocast() -> contextlib.AbstractContextManager:
    import torch

    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, cache_enabled=False)


def _our_mesh(implementation: str, workload: Workload) -> tuple[Any, Any]:
    """Return the mesh of devices on which metajax runs a workload, and the initial parameters."""
    from metajax.experiment.devices import choose_mesh, prepare_devices
    from metajax.profiling import standard

    devices = 1 if implementation == OURS[1] else None
    prepare_devices(devices)
    params = standard(workload).params
    return choose_mesh(devices, params, workload.tasks), params


def flattened(tree: Any) -> Arrays:
    """Return the leaves of a pytree as NumPy arrays, by their paths, such as `convs/0/kernel`."""
    import jax

    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _unflattened(arrays: Arrays, template: Any) -> Any:
    import jax

    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in flattened(template)])


def _time_ours(implementation: str, workload: Workload, seconds: float) -> dict[str, Any]:
    from metajax.experiment.devices import use_precision
    from metajax.profiling import matrix_rate, peak_bytes, standard, task_flops, training_call

    mesh, _ = _our_mesh(implementation, workload)
    devices = list(mesh.devices.flat)
    exact = "float32" if devices[0].platform == "cpu" else "default"  # TF32 on a GPU
    use_precision("bfloat16" if implementation.endswith(ROUNDED) else exact)
    several = 5 if devices[0].platform == "cpu" else 25  # 25 is the default of training
    steps = 100 if workload.model == "mlp" else 1 if workload.slow else several
    timing = _time_in_turn(training_call(workload, mesh, steps), seconds)
    plain = standard(workload, mixed_mode=False)  # counts each necessary operation once, without rematerialisation
    flops = task_flops(plain.learner, plain.sampler, plain.params) * workload.tasks * steps / timing["seconds"]
    peak = peak_bytes(devices)  # before `matrix_rate`, which allocates large matrices
    rate = matrix_rate(devices, seconds=seconds / 4)
    scaled = {name: timing[name] / steps for name in ("seconds", "low", "high")}
    return {
        **timing,
        **scaled,
        "devices": mesh.size,
        "peak_bytes": peak,
        "gflops": flops / 1e9,
        "matrix_gflops": rate / 1e9,
    }


def _difference(folder: Path, implementation: str) -> float:
    """Return the norm of the difference between a meta-gradient and metajax's, divided by the norm of metajax's."""
    gradient, ours = (dict(np.load(folder / f"{name}.npz")) for name in (implementation, OURS[0]))
    squares = sum(float(np.sum(np.square(gradient[name] - ours[name]))) for name in ours)
    return (squares / sum(float(np.sum(np.square(each))) for each in ours.values())) ** 0.5


def environment() -> dict[str, Any]:
    """Return the versions of packages and a description of the device."""
    from metajax.experiment.devices import has_matrix_units

    code = "import jax; d = jax.devices(); print(d[0].platform, '|', d[0].device_kind)"
    platform_name, kind = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("|")
    on_cpu = platform_name.strip() == "cpu"
    packages = ("metajax", "jax", "jaxlib", "flax", "optax", "torch", "higher", "learn2learn", "parallel-metalearn")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "platform": "cpu-amx" if on_cpu and has_matrix_units() else platform_name.strip(),
        "device": _cpu() if on_cpu else kind.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(report: dict[str, Any]) -> str:
    """Return a Markdown table of tasks per second, and for each peer the ratio of metajax's speed to the peer's."""
    results, about = report["results"], report["environment"]
    columns = _columns(results)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['device']}, {about['cores']} cores, Python {about['python']}, {versions}. Tasks per second of whole "
        "meta-steps, medians; × is how many times faster metajax is, in bfloat16 where the other is.",
        "",
        f"| workload | {' | '.join(columns)} | metajax, of the matrix rate | the fastest peer |",
        f"| --- |{' --- |' * (len(columns) + 2)}",
    ]
    for name, row in results.items():
        cells = []
        for column in columns:
            seconds = row.get(column, {}).get("seconds")
            like = "metajax" if column in OURS or not column.endswith(ROUNDED) else f"metajax{ROUNDED}"
            base = row.get(like, {}).get("seconds")
            ratio = f" ({seconds / base:.1f}×)" if seconds and base and column != "metajax" else ""
            cells.append(f"{rate(name, seconds)}{ratio}" if seconds else "–")
        lines.append(f"| {name} | {' | '.join([*cells, *_shares(row)])} |")
    failed = collections.defaultdict(list)
    for name, row in results.items():
        for column, measured in row.items():
            if "error" in measured:
                failed[column, measured["error"]].append(name)
    reasons = [f"- {column}: {reason} ({'; '.join(names)})" for (column, reason), names in sorted(failed.items())]
    return "\n".join([*lines, *(["", "Not measured:", "", *reasons] if reasons else [])])


def rate(workload: str, seconds: float) -> str:
    """Return the tasks per second as text, from the seconds of a meta-step."""
    tasks = WORKLOADS[workload].tasks / seconds
    return f"{tasks:,.1f}" if tasks >= 1 else f"{tasks:.3f}"


def _shares(row: dict[str, Any]) -> tuple[str, str]:
    """Return the rates of necessary operations of metajax and of the fastest peer, as shares of the matrix rate.

    The matrix rate is the rate of large matrix products in float32.
    """
    ours = row.get("metajax", {})
    if "gflops" not in ours:
        return "–", "–"
    share = 100 * ours["gflops"] / ours["matrix_gflops"]
    fastest = min((row[peer]["seconds"] for peer in PEERS if "seconds" in row.get(peer, {})), default=None)
    return _percent(share), _percent(share * ours["seconds"] / fastest) if fastest else "–"


def _percent(share: float) -> str:
    return f"{share:.0f} %" if share >= 1 else f"{share:.1g} %"


def _columns(results: dict[str, Any]) -> list[str]:
    return [name for name in EVERYONE if any("seconds" in row.get(name, {}) for row in results.values())]


def plot(report: dict[str, Any], path: Path) -> None:
    """Plot the tasks per second of all implementations as bars on a logarithmic axis."""
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
