"""Keep the record of a run: its config, environment and evaluation, without the weights.

    python benchmarks/record.py runs/omniglot_maml_5w1s

writes `benchmarks/results/omniglot_maml_5w1s.json` (a work directory is named after its config, and may say more:
`omniglot_maml_5w1s_seed_1`), and `python benchmarks/record.py --table` prints the README's table
of all records.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "configs"


def record(workdir: Path) -> Path:
    """Write the record of a finished run."""
    config, environment = (json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "environment"))
    environment.pop("command")  # the paths of the machine are nobody's business
    if config["task"].get("source"):
        config["task"]["source"] = Path(config["task"]["source"]).name
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tasks, before, seconds = config["training"]["tasks_per_step"], 0, 0.0
    for row in rows:
        seconds += (row["step"] - before) * tasks / row["tasks_per_second"]
        before = row["step"]
    evaluations = {path.stem: json.loads(path.read_text()) for path in sorted(workdir.glob("evaluation*.json"))}
    path = RESULTS / f"{workdir.name}.json"
    path.parent.mkdir(exist_ok=True)
    official = evaluations["evaluation"]
    for name in ("steps", "num_tasks"):
        measured = official["inner_steps" if name == "steps" else name]
        if measured != config["evaluation"][name]:
            raise SystemExit(
                f"{workdir}: evaluation.json has {name} = {measured}, the config {config['evaluation'][name]}"
            )
    content = {"config": config, "environment": environment, "training_seconds": round(seconds), **evaluations}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def table() -> str:
    """A row for each record: the score after the last inner step, with its interval over tasks."""
    lines = [
        "| config | after | transductive | each query alone | test tasks | training steps alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        kept = json.loads(path.read_text())
        if "evaluation" not in kept:  # of speed, not of a run
            continue
        evaluation, environment = kept["evaluation"], kept["environment"]
        cells = [_score(evaluation.get(kind)) for kind in ("transductive", "non_transductive")]
        minutes = kept["training_seconds"] / 60
        config = max((c.stem for c in CONFIGS.glob("*.py") if path.stem.startswith(c.stem)), key=len)
        lines.append(
            f"| [`{path.stem}`](configs/{config}.py) | {evaluation['inner_steps']} steps | {cells[0]} | {cells[1]} "
            f"| {evaluation['num_tasks']} | {minutes:.1f} min, {environment['devices']} CPU device"
            f"{'s' if environment['devices'] > 1 else ''} |"
        )
    return "\n".join(lines)


def _score(measured: dict | None) -> str:
    if measured is None:
        return "–"
    if "accuracy" in measured:
        values = measured["accuracy"]
        return f"{100 * values['mean'][-1]:.2f} ± {100 * values['ci95'][-1]:.2f} %"
    values = measured["loss"]
    return f"MSE {values['mean'][-1]:.3f} ± {values['ci95'][-1]:.3f}"


if __name__ == "__main__":
    print(table() if sys.argv[1:] == ["--table"] else record(Path(sys.argv[1])))
