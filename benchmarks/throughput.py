"""Tasks per second of whole meta-steps, against every peer, in one run on one machine.

    python -m benchmarks.throughput                      # all workloads but the slow, all implementations
    python -m benchmarks.throughput --only Omniglot --implementations metajax "torch loop" --seconds 10
    python -m benchmarks.throughput --at-once 12         # where there are many cores beside an accelerator

Each implementation runs in a process of its own on the same initial values and tasks, and is timed while no other
runs; before that `--at-once` processes at a time are checked and, if they are JAX, compiled. It is timed in float32,
after its meta-gradient of the first tasks was compared with metajax's in float64, in a process before (of ResNet-12
with an example of each class). On a GPU products of float32 are TF32's, in every implementation. Peers get their tasks
ready-made; metajax is timed as it trains, drawing them inside. `NAME, bfloat16` is NAME once more, with operands
rounded to bfloat16 (in metajax those of convolutions, in PyTorch under its autocast); it is not checked, since it is
not the same. Writes `throughput-DEVICE.{md,json,png}` to `--output` (`benchmarks/results`).
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
OURS = ("metajax", "metajax, one device", f"metajax{ROUNDED}")
Arrays = dict[str, np.ndarray]
Cell = tuple[str, str]
"""A workload and an implementation, by their names."""
JAX = {"JAX, vmap and lax.conv": "jax_obvious"}
EVERYONE = (*OURS, *JAX, *PEERS, *(f"{peer}{ROUNDED}" for peer in PEERS))
_READY = "ready\n"
TOLERANCE = 1e-6
"""Largest relative difference between meta-gradients in float64. In float32 equal implementations can be percents
apart: statistics of small batches, step after step, amplify its rounding."""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="workloads whose name contains one of these"
    )
    parser.add_argument("--implementations", nargs="*", default=EVERYONE, choices=EVERYONE, metavar="NAME")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timed calls for each measurement")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until a measurement is given up")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="processes to prepare together, up to the cores; nearly twice as many are alive",
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
    partial = stem.with_suffix(".partial.json")  # what an interrupted run leaves
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), options.seconds, options.patience, options.at_once)
        cells = [
            (name, implementation)
            for name in names
            for implementation in options.implementations
            if not (implementation == OURS[2] and WORKLOADS[name].model == "mlp")  # it has no convolution to round
        ]
        for name, implementation, measured in measurements(cells, settings):
            results.setdefault(name, {})[implementation] = measured
            said = measured.get("error") or f"{rate(name, measured['seconds'])} tasks/s"
            print(f"{name}: {implementation}: {said}", file=sys.stderr, flush=True)
            report = {"environment": about, "results": {name: results[name] for name in WORKLOADS if name in results}}
            partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if not partial.exists():
        parser.error("none of these implementations does any of these workloads")
    partial.replace(stem.with_suffix(".json"))
    text = table(report)
    print(text)
    stem.with_suffix(".md").write_text(text + "\n")
    plot(report, stem.with_suffix(".png"))


def _measured_before(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run wrote with the same versions on the same device, for this one to add to."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    return kept["results"] if kept.get("environment") == about else {}


class Settings(NamedTuple):
    """How to measure.

    Attributes:
        folder: For what processes hand to each other.
        seconds: Of timed calls for each measurement.
        patience: Seconds until a measurement is given up.
        at_once: Processes that are checked, or made ready, together; nearly twice as many are alive.
    """

    folder: Path
    seconds: float
    patience: float
    at_once: int


def measurements(cells: Sequence[Cell], settings: Settings) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of each workload and implementation what was measured, or an `error`; prepared some at a time, timed one by one.

    Processes that are ready wait for their turn, and leave the cores to those that compile: nearly twice `at_once` of
    them in all, but one alone if that is 1, for it may take all of an accelerator's memory.
    """
    names = dict.fromkeys(name for name, _ in cells)
    begun: list[Future] = []
    with ThreadPoolExecutor(settings.at_once) as pool, contextlib.ExitStack() as on_exit:
        on_exit.callback(_end, begun)
        on_exit.callback(pool.shutdown, cancel_futures=True)  # before: it waits for what still starts processes
        written = {name: pool.submit(_write, name, settings.folder) for name in names}
        ours = {name: pool.submit(_check, (name, OURS[0]), written[name], settings) for name in names}
        for some in _batched(cells, 2 * settings.at_once - 1):
            prepared = [pool.submit(_prepared, cell, written[cell[0]], settings) for cell in some]
            begun += prepared
            for name, check in ours.items():
                if error := check.result():
                    raise SystemExit(f"{name}: {OURS[0]}: {error['error']}")
            wait(prepared)
            for cell, future in zip(some, prepared, strict=True):
                failed, process = future.result()
                check = failed or (_compared(cell, settings) if _is_exact(cell) else {})
                if "error" in check:
                    _end([future])
                    process = None
                yield *cell, {**(timed(process, settings) if process else {}), **check}


def _batched(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[i : i + size] for i in range(0, len(values), size))


def _write(name: str, folder: Path) -> None:
    """The initial values and the tasks."""
    (folder / name).mkdir()
    code = (
        "import sys, numpy as np\nfrom benchmarks.throughput import flattened\n"
        "from metajax.profiling import WORKLOADS, standard\n"
        "np.savez(sys.argv[2], **flattened(standard(WORKLOADS[sys.argv[1]]).params))"
    )
    command = [sys.executable, "-c", code, name, str(folder / name / "params.npz")]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})  # an accelerator has no part in it
    np.savez(folder / name / "tasks.npz", **make_tasks(WORKLOADS[name]))  # type: ignore[arg-type]


def _prepared(cell: Cell, written: Future, settings: Settings) -> tuple[dict[str, Any], "_Process | None"]:
    """Let a process write a meta-gradient, and another one get ready to be timed; or an error, and none."""
    checked_before = cell[1] == OURS[0]
    failed = _check(cell, written, settings) if _is_exact(cell) and not checked_before else {}
    written.result()
    return failed, None if failed else _made_ready(cell, settings)


def _is_exact(cell: Cell) -> bool:
    """Whether its meta-gradient has to be ours: a rounded one is not."""
    return not cell[1].endswith(ROUNDED)


def _end(prepared: Sequence[Future]) -> None:
    """End the processes that have not had their turn."""
    for each in prepared:
        process = None if each.cancelled() or each.exception() else each.result()[1]
        if process:
            with process.popen as popen:
                popen.kill()


def _check(cell: Cell, written: Future, settings: Settings) -> dict[str, Any]:
    """Let a process write a meta-gradient; returns `{}` or an error."""
    written.result()
    return _finish(_start("check", cell, settings), settings)


def _compared(cell: Cell, settings: Settings) -> dict[str, Any]:
    """How far a meta-gradient is from ours, or an error if that is too far or no number."""
    difference = _difference(settings.folder / cell[0], cell[1])
    return (
        {"difference": difference}
        if difference <= TOLERANCE
        else {"error": f"its meta-gradient differs by {difference:.1e}"}
    )


class _Process(NamedTuple):
    """A measuring process, what it writes to standard error, and what it has said so far."""

    popen: subprocess.Popen
    errors: Path
    said: str = ""


def _start(what: str, cell: Cell, settings: Settings) -> _Process:
    name, implementation = cell
    command = [sys.executable, "-m", "benchmarks.throughput", "--seconds", str(settings.seconds), "--child"]
    command += [what, implementation, name, str(settings.folder / name)]
    variables = {**os.environ, "JAX_ENABLE_X64": str(int(what == "check"))}
    if settings.at_once > 1:
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # they share the accelerator's memory
    errors = settings.folder / name / f"{what}-{implementation}.err"
    with errors.open("w") as stream:
        popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True, env=variables
        )
    return _Process(popen, errors)


def _made_ready(cell: Cell, settings: Settings) -> _Process:
    """Start timing an implementation, up to where it waits for its turn, or has failed."""
    process = _start("time", cell, settings)
    said = ""
    with _patience(process, settings):
        for line in process.popen.stdout or ():
            if line == _READY:
                break
            said += line
    return process._replace(said=said)


def timed(process: _Process, settings: Settings) -> dict[str, Any]:
    """What a process that is ready measures, now that it is its turn."""
    return {**_finish(process, settings), "at_once": settings.at_once}


def _finish(process: _Process, settings: Settings) -> dict[str, Any]:
    with _patience(process, settings):
        output, _ = process.popen.communicate("go\n")
    code = process.popen.returncode
    if code:
        gave_up = process.errors.with_suffix(".late").exists()
        reason = f"not done after {settings.patience:.0f} s" if gave_up else f"exit status {code}"
        said = [] if gave_up else process.errors.read_text().strip().splitlines()
        return {"error": (said or [reason])[-1][:300]}
    return json.loads((process.said + output).splitlines()[-1])


@contextlib.contextmanager
def _patience(process: _Process, settings: Settings) -> Iterator[None]:
    """End a process that takes too long, and leave word that it was that."""

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


def _child(what: str, implementation: str, name: str, folder: str, *, seconds: float) -> dict[str, Any]:
    """Check or time one implementation, in this process."""
    workload = WORKLOADS[name]
    params, tasks = (dict(np.load(Path(folder) / f"{part}.npz")) for part in ("params", "tasks"))
    try:
        if what == "time":
            return _time(implementation, workload, params, tasks, seconds)
        checked, tasks = _small(workload, tasks)
        gradient = gradient_of(implementation, checked, _in_float64(params), _in_float64(tasks))
    except Unsupported as reason:
        return {"error": str(reason)}
    np.savez(Path(folder) / f"{implementation}.npz", **gradient)  # type: ignore[arg-type]
    return {}


def _small(workload: Workload, tasks: Arrays) -> tuple[Workload, Arrays]:
    """The first tasks, as many as float64 allows; of a slow workload on an example of each class."""
    checked = dataclasses.replace(workload, tasks=1 if workload.side > 28 else 2)
    if workload.slow:
        checked = dataclasses.replace(checked, shots=1, queries=1)
    examples = {"support": checked.ways * checked.shots, "query": checked.ways * checked.queries}
    return checked, {name: a[: checked.tasks, : examples[name.split("_")[0]]] for name, a in tasks.items()}


def _in_float64(arrays: Arrays) -> Arrays:
    return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()}


def gradient_of(implementation: str, workload: Workload, params: Arrays, tasks: Arrays) -> Arrays:
    """An implementation's meta-gradient, averaged over the tasks.

    Raises:
        Unsupported: If it has none.
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
    _wait_for_turn()  # it tries out chunk sizes when it is prepared
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
    """Compile, and time when the turn has come."""
    from metajax.profiling import time_calls

    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    _wait_for_turn()
    return time_calls(call, seconds=seconds)._replace(first_seconds=first)._asdict()


def _wait_for_turn() -> None:
    print(_READY, end="", flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the benchmark has ended")


def _peer(implementation: str) -> types.ModuleType:
    return importlib.import_module(f"benchmarks.peers.{(PEERS | JAX)[implementation]}")


def _autocast() -> contextlib.AbstractContextManager:
    import torch

    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, cache_enabled=False)


def _our_mesh(implementation: str, workload: Workload) -> tuple[Any, Any]:
    """The devices, and the tree of parameters that the choice depends on."""
    from metajax.experiment.devices import choose_mesh, prepare_devices
    from metajax.profiling import standard

    devices = 1 if implementation == OURS[1] else None
    prepare_devices(devices)
    params = standard(workload).params
    return choose_mesh(devices, params, workload.tasks), params


def flattened(tree: Any) -> Arrays:
    """The leaves of a tree as NumPy arrays, by their paths (`convs/0/kernel`)."""
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
    many = 5 if devices[0].platform == "cpu" else 25  # as training does by default
    steps = 100 if workload.model == "mlp" else 1 if workload.slow else many
    timing = _time_in_turn(training_call(workload, mesh, steps), seconds)
    plain = standard(workload, mixed_mode=False)  # what has to be computed, not what is computed twice
    flops = task_flops(plain.learner, plain.sampler, plain.params) * workload.tasks * steps / timing["seconds"]
    peak = peak_bytes(devices)  # before large matrices are multiplied
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
    """Norm of the difference between a meta-gradient and ours, over the norm of ours."""
    gradient, ours = (dict(np.load(folder / f"{name}.npz")) for name in (implementation, OURS[0]))
    apart = sum(float(np.sum(np.square(gradient[name] - ours[name]))) for name in ours)
    return (apart / sum(float(np.sum(np.square(each))) for each in ours.values())) ** 0.5


def environment() -> dict[str, Any]:
    """Versions and device."""
    from metajax.experiment.devices import has_matrix_units

    code = "import jax; d = jax.devices(); print(d[0].platform, '|', d[0].device_kind)"
    platform_name, kind = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("|")
    on_cpu = platform_name.strip() == "cpu"
    wanted = ("metajax", "jax", "jaxlib", "flax", "optax", "torch", "higher", "learn2learn", "parallel-metalearn")
    versions = {}
    for name in wanted:
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
    """Tasks per second, and beside each peer how many times faster metajax is."""
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
    """Tasks per second, from the seconds of a meta-step."""
    tasks = WORKLOADS[workload].tasks / seconds
    return f"{tasks:,.1f}" if tasks >= 1 else f"{tasks:.3f}"


def _shares(row: dict[str, Any]) -> tuple[str, str]:
    """Of the rate of float32 matrix products, what metajax and the fastest peer reach with what has to be computed."""
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
