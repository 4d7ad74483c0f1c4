"""Measure the memory and time of a meta-gradient for several numbers of inner steps and methods of differentiation.

    python -m benchmarks.memory --steps 1 4 16 64 --timed 16
    python -m benchmarks.memory --steps 64 --sequences 2 --timed 64

The model is a Transformer of 4 layers and width 256, on sequences of 128 tokens. The inner loop uses Adam. The memory
is the size of the compiled program's temporary buffers, as XLA reports it. The program runs only up to `--timed` inner
steps, because the memory may be too small for plain reverse mode.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx

import metajax as mj
from benchmarks.throughput import environment
from metajax.profiling import time_calls

_SEQUENCES = 8
_TOLERANCE = 0.01
"""Largest relative difference between the norms of two methods' meta-gradients, on a CPU."""
_TOLERANCE_ROUNDED = 0.02
"""Largest relative difference between the norms of two methods' meta-gradients, on a GPU with TF32 products."""
RULES: dict[str, dict[str, Any]] = {
    "plain reverse mode": {"mixed_mode": False, "unroll": 1},
    "mixed mode": {"unroll": 1},
    "mixed mode, remat": {"remat": True},
}


def compiled(steps: int, sequences: int, options: dict[str, Any]):
    """Return the compiled function of the meta-gradient, and its arguments. `options` are arguments of `inner_loop`."""
    apply, params = mj.functional(mj.models.Transformer(256, rngs=nnx.Rngs(0)))
    # With a smaller eps_root the derivative of Adam would amplify rounding. With 1e-16, rounding in 0.05 % of the
    # parameters changed the meta-gradient of one step by more than its own norm.
    inner = mj.inner_loop(optax.adam(1e-3, eps_root=1e-8), steps, **options)
    learner = mj.maml(mj.classification_loss(apply), inner)
    tokens = jax.random.randint(jax.random.key(0), (2, sequences, 129), 0, 256)
    task = mj.Task(*(mj.Batch(each[:, :-1], each[:, 1:]) for each in tokens))

    def gradient(params, task):
        return learner.gradient(params, task, jax.random.key(0), ()).gradient

    return jax.jit(gradient).lower(params, task).compile(), (params, task)


def main() -> None:
    """Measure memory and time, then print and write a table of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--timed", type=int, default=4, help="largest number of inner steps that are also timed")
    parser.add_argument("--sequences", type=int, default=_SEQUENCES)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for steps in options.steps:
        for name, rule in RULES.items():
            program, arguments = compiled(steps, options.sequences, rule)
            row: dict[str, Any] = {"steps": steps, "rule": name}
            row["bytes"] = program.memory_analysis().temp_size_in_bytes
            if steps <= options.timed:
                row["norm"] = float(optax.tree.norm(program(*arguments)))
                call = lambda p=program, a=arguments: jax.block_until_ready(p(*a))  # noqa: E731
                row["seconds"] = time_calls(call, seconds=0.1, at_least=3).seconds
            rows.append(row)
            print(json.dumps(row), flush=True)
    report = {"environment": environment(), "sequences": options.sequences, "rows": rows}
    tolerance = _TOLERANCE if report["environment"]["platform"] == "cpu" else _TOLERANCE_ROUNDED
    if differing := disagreements(rows, tolerance):
        raise SystemExit(f"the norms of the methods' meta-gradients differ with {differing} inner steps")
    size = "" if options.sequences == _SEQUENCES else f"-{options.sequences}-sequences"
    stem = options.output / f"memory-{report['environment']['platform']}{size}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(report) + "\n")
    print(table(report))


def disagreements(rows: list[dict[str, Any]], tolerance: float) -> list[int]:
    """Return the numbers of inner steps for which the norms of two methods' meta-gradients differ.

    The norm of the first method is the reference. The relative difference must be above `tolerance`.

    >>> disagreements([{"steps": 4, "norm": 2.0}, {"steps": 4, "norm": 2.1}, {"steps": 16}], 0.1)
    []
    >>> disagreements([{"steps": 4, "norm": 2.0}, {"steps": 4, "norm": 2.3}, {"steps": 4, "norm": 2.0}], 0.1)
    [4]
    >>> disagreements([{"steps": 4, "norm": 2.0}, {"steps": 4, "norm": float("nan")}], 0.1)
    [4]
    """
    norms: dict[int, list[float]] = {}
    for row in rows:
        if "norm" in row:
            norms.setdefault(row["steps"], []).append(row["norm"])
    return [steps for steps, (first, *others) in norms.items() if not _all_near(others, first, tolerance)]


def _all_near(values: list[float], first: float, tolerance: float) -> bool:
    return all(abs(value - first) <= tolerance * first for value in values)


def table(report: dict[str, Any]) -> str:
    """Return a Markdown table of memory and time, with a row for each number of steps and a column for each method."""
    about = report["environment"]
    lines = [
        f"{about['device']}, jax {about['versions']['jax']}. A Transformer of 4 layers and width 256, "
        f"{report['sequences']} sequences of 128 tokens, Adam inside.",
        "",
        f"| inner steps | {' | '.join(RULES)} |",
        f"| --- |{' --- |' * len(RULES)}",
    ]
    for steps in sorted({row["steps"] for row in report["rows"]}):
        of = {row["rule"]: row for row in report["rows"] if row["steps"] == steps}
        plain = of["plain reverse mode"]["bytes"]
        cells = [
            f"{row['bytes'] / 2**20:,.0f} MiB ({plain / row['bytes']:.1f}× less)"
            + (f", {_time(row['seconds'])}" if "seconds" in row else "")
            for row in (of[name] for name in RULES)
        ]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
