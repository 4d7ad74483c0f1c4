"""Memory and time of the meta-gradient against inner steps: a Transformer adapted by Adam, by differentiation rule.

    python -m benchmarks.memory --steps 1 4 16 64 --timed 16
    python -m benchmarks.memory --steps 64 --sequences 2 --timed 64

The model has 4 layers of width 256, on sequences of 128 tokens. Memory is what the compiled program needs beside its
arguments, by the compiler's own account; time is only taken up to `--timed` steps: plain reverse mode may not fit.
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
"""Largest relative difference between the norms of the rules' meta-gradients."""
_TOLERANCE_ROUNDED = 0.02
"""The same where products are TF32's."""
RULES: dict[str, dict[str, Any]] = {
    "plain reverse mode": {"mixed_mode": False, "unroll": 1},
    "mixed mode": {"unroll": 1},
    "mixed mode, remat": {"remat": True},
}


def compiled(steps: int, sequences: int, options: dict[str, Any]):
    """The compiled meta-gradient, and its arguments."""
    apply, params = mj.functional(mj.models.Transformer(256, rngs=nnx.Rngs(0)))
    # A smaller eps_root would make the derivative of Adam amplify rounding: with 1e-16, five ten-thousandths of the
    # parameters changed the meta-gradient of one step by more than its own size.
    inner = mj.inner_loop(optax.adam(1e-3, eps_root=1e-8), steps, **options)
    learner = mj.maml(mj.classification_loss(apply), inner)
    tokens = jax.random.randint(jax.random.key(0), (2, sequences, 129), 0, 256)
    task = mj.Task(*(mj.Batch(each[:, :-1], each[:, 1:]) for each in tokens))

    def gradient(params, task):
        return learner.gradient(params, task, jax.random.key(0), ()).gradient

    return jax.jit(gradient).lower(params, task).compile(), (params, task)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--timed", type=int, default=4, help="longest loop that is also run")
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
        raise SystemExit(f"the meta-gradients of the rules differ with {differing} inner steps: see their norms")
    size = "" if options.sequences == _SEQUENCES else f"-{options.sequences}-sequences"
    stem = options.output / f"memory-{report['environment']['platform']}{size}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(report) + "\n")
    print(table(report))


def disagreements(rows: list[dict[str, Any]], tolerance: float) -> list[int]:
    """Inner steps with which a meta-gradient's norm differs from that of the first rule by more than a share of it.

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
    """Memory beside the arguments, and seconds, by steps and rule."""
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
