"""Record the results of a run, without its parameters, and write the pages of results from all records.

    python -m benchmarks.record runs/omniglot    # writes benchmarks/results/omniglot.json
    python -m benchmarks.record --pages                    # writes the tables and figures of docs/ and the README

A record has the name of its work directory, and the config with the options of the command line that began the run.
Runs that differ only in their seed have names that end in `_seed_1`, `_seed_2` and so on.
"""

import collections
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.peers import PEERS
from benchmarks.throughput import ROUNDED, rate

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text())
TABLES = re.compile(r"(<!-- (\S+): written by benchmarks/record.py -->\n).*?(\n<!-- /\2 -->)", re.DOTALL)
"""Pattern of a place for a table in a page. The name of the table is `results`, `speed`, a key of `SPEED`, or the name
of a file in `benchmarks/results`."""
SPEED = {"speed-cpu": "throughput-cpu-amx.json", "speed-gpu": "throughput-gpu.json"}
"""The file in `benchmarks/results` with the measurements for each speed table."""
README_WORKLOADS = (
    "sinusoid, 1 step",
    "Omniglot 5w1s, 15 queries, 5 steps",
    "Omniglot 20w1s, 1 query, 5 steps",
    "Omniglot 5w1s, 15 queries, 5 steps, Reptile",
    "mini-ImageNet 5w1s",
)
"""Workloads in the rows of the README's speed table."""
README_RUNS = (
    "omniglot_long",
    "omniglot_20ways_long",
    "omniglot_fomaml_long",
    "omniglot_reptile_long",
    "sinusoid",
)
"""Runs in the rows of the README's table of results."""
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
"""Pages whose tables `--pages` writes."""
LEARNERS = {
    "omniglot_anil_short": "ANIL",
    "omniglot_boil_short": "BOIL",
    "omniglot_cavia_short": "CAVIA",
    "omniglot_fomaml_short": "First-order MAML",
    "omniglot_imaml_short": "iMAML",
    "omniglot_short": "MAML",
    "omniglot_maml_plus_plus_short": "MAML++",
    "omniglot_meta_sgd_short": "Meta-SGD",
    "omniglot_preconditioned_short": "MAML with a preconditioner",
    "omniglot_proto_maml_short": "Proto-MAML",
    "omniglot_protonet_short": "Prototypical networks",
}
"""The runs that compare all learners with equal settings, each with the name of its learner."""
_SEED = "_seed_"
_FAMILIAR = ("torch loop", "torch.func")
"""Peers that have their own columns in the speed tables."""


def record(workdir: Path) -> Path:
    """Write the record of a finished run to `benchmarks/results`, and return the path of the record.

    Raises:
        SystemExit: If the run has no evaluation, or if its evaluation has other settings than its config.
    """
    config, environment = (json.loads((workdir / f"{name}.json").read_text()) for name in ("config", "environment"))
    command = public_command(environment.pop("command"))
    if config["task"].get("source"):
        config["task"]["source"] = Path(config["task"]["source"]).name
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tasks, previous_step, seconds, curve = config["training"]["tasks_per_step"], 0, 0.0, []
    for row in rows:
        seconds += (row["step"] - previous_step) * tasks / row["tasks_per_second"]
        previous_step = row["step"]
        validated = {name: value for name, value in row.items() if name.startswith("validation_")}
        if validated:
            curve.append({"step": row["step"], "seconds": round(seconds, 1), **validated})
    evaluations = {path.stem: json.loads(path.read_text()) for path in sorted(workdir.glob("evaluation*.json"))}
    path = RESULTS / f"{workdir.name}.json"
    path.parent.mkdir(exist_ok=True)
    if "evaluation" not in evaluations:
        raise SystemExit(f"{workdir} has no evaluation.json: run its `metajax train` command until it ends")
    official = evaluations["evaluation"]
    for name in ("steps", "num_tasks"):
        measured = official["inner_steps" if name == "steps" else name]
        if measured != config["evaluation"][name]:
            raise SystemExit(
                f"{workdir}: evaluation.json has {name} = {measured}, the config {config['evaluation'][name]}"
            )
    content = {
        "command": command,
        "config": config,
        "environment": environment,
        "training_seconds": round(seconds),
        "curve": curve,
        **evaluations,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def public_command(words: list[str]) -> str:
    """Return the config and the options of a `metajax train` command, without the options that have private paths.

    >>> public_command(["metajax", "train", "folder", "--task.source", "/home/me/birds", "--shots=5", "--seed", "1"])
    'folder --shots=5 --seed 1'
    """
    private = ("--workdir", "--data-dir", "--distributed", "--devices", "--task.source", "--task.split-lists")
    words, kept = iter(words[words.index("train") + 1 :]), []
    for word in words:
        if word.partition("=")[0] in private:
            next(words if "=" not in word else iter(()), None)
        else:
            kept.append(word)
    return " ".join([Path(kept[0]).stem, *kept[1:]])


def records() -> dict[str, dict]:
    """Return the records of all runs, by the name of the run."""
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    return {name: content for name, content in kept.items() if "evaluation" in content}


def table(names: Iterable[str], folder: str) -> str:
    """Return a Markdown table with a row for each run: the score after the last inner step, and the published score.

    Args:
        names: The names of the runs.
        folder: The relative path from the page to the folder of the configs, for links.
    """
    lines = [
        "| command | after | transductive | non-transductive | published | difference | test tasks "
        "| meta-steps × tasks | training alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        kept = records()[name]
        evaluation, environment, training = kept["evaluation"], kept["environment"], kept["config"]["training"]
        cells = [
            _link(kept, folder),
            f"{evaluation['inner_steps']} steps",
            *[_score(evaluation.get(kind)) for kind in ("transductive", "non_transductive")],
            *_published(kept["command"], evaluation),
            str(evaluation["num_tasks"]),
            f"{training['steps']:,} × {training['tasks_per_step']}",
            f"{kept['training_seconds'] / 60:.1f} min, {_devices(environment)}{', bfloat16' if _rounds(kept) else ''}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _devices(environment: dict) -> str:
    """Return the number and kind of a run's devices as text, such as `2 CPU devices`."""
    platform, _, kind = environment["device"].partition(": ")
    kind = "CPU device" if platform == "cpu" else kind
    count = environment["devices"]
    return f"{count} {kind}{'s' if count > 1 else ''}"


def _rounds(kept: dict) -> bool:
    """Return whether a run rounded the operands of convolutions to bfloat16, by its settings or by default."""
    if not re.search("Conv|ResNet", kept["config"]["model"]["class"]):
        return False
    setting = kept["config"].get("execution", {}).get("precision")
    return "bfloat16" in (setting, kept["environment"].get("precision"))


def family_table() -> str:
    """Return a Markdown table of the learners with equal settings, best first, each with its difference from MAML."""
    kept = {name: content for name, content in records().items() if name in LEARNERS}
    base = kept["omniglot_short"]["evaluation"]["transductive"]["accuracy"]
    lines = [
        "| learner | transductive | against MAML | non-transductive | inner steps at test | training alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(kept, key=lambda name: -_last(kept[name]["evaluation"]["transductive"])[0]):
        evaluation = kept[name]["evaluation"]
        mean, half = _last(evaluation["transductive"])
        apart = math.hypot(half, 100 * base["ci95"][-1])
        difference = mean - 100 * base["mean"][-1]
        verdict = "" if name == "omniglot_short" else f"{difference:+.2f} ± {apart:.2f}"
        lines.append(
            f"| {LEARNERS[name]} | {_score(evaluation['transductive'])} "
            f"| {verdict} | {_score(evaluation['non_transductive'])} | {evaluation['inner_steps']} "
            f"| {kept[name]['training_seconds'] / 60:.1f} min |"
        )
    return "\n".join(lines)


def sinusoid_table() -> str:
    """Return a Markdown table of the sinusoid runs: mean squared errors after 1, 5 and 10 steps, as in MAML's paper."""
    lines = ["| command | 1 step | 5 steps | 10 steps | test tasks |", "| --- | --- | --- | --- | --- |"]
    for name, content in records().items():
        if not name.startswith("sinusoid"):
            continue
        losses, last = content["evaluation"]["transductive"]["loss"], content["evaluation"]["inner_steps"]
        at = [
            f"{losses['mean'][min(s, last)]:.3f} ± {losses['ci95'][min(s, last)]:.3f}" if s <= last or not last else "–"
            for s in (1, 5, 10)
        ]
        lines.append(f"| {_link(content, '../configs')} | {' | '.join(at)} | {content['evaluation']['num_tasks']} |")
    return "\n".join(lines)


def seeds_table(kept: dict[str, dict]) -> str:
    """Return a Markdown table of the configs that were run with several seeds.

    Each row has the score of each run, and the mean and standard deviation of the scores.

    Args:
        kept: Records by the name of the run.
    """
    lines = [
        "| command | seeds | queries | accuracy by seed | mean ± standard deviation |",
        "| --- | --- | --- | --- | --- |",
    ]
    runs = collections.defaultdict(list)
    for name, content in kept.items():
        runs[name.split(_SEED)[0]].append(content)
    for several in runs.values():
        if len(several) == 1:
            continue
        several.sort(key=lambda content: content["config"]["seed"])
        seeds = ", ".join(str(content["config"]["seed"]) for content in several)
        for kind in ("transductive", "non_transductive"):
            measured = [content["evaluation"].get(kind, {}) for content in several]
            if not all("accuracy" in each for each in measured):
                continue
            scores = [_last(each)[0] for each in measured]
            each = ", ".join(f"{score:.2f}" for score in scores)
            spread = f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f} %"
            lines.append(
                f"| {_link(several[0], '../configs')} | {seeds} | {kind.replace('_', '-')} | {each} | {spread} |"
            )
    return "\n".join(lines)


def _over_seeds() -> str:
    """Return the section of the results page about seeds; empty if no config was run with several seeds."""
    table = seeds_table(records())
    if len(table.splitlines()) == 2:  # only the header
        return ""
    about = "These runs differ in their seed, which sets the initial values, the training tasks and the test tasks."
    return f"## Over seeds\n\n{about}\n\n{table}\n\n"


def page() -> str:
    """Return the Markdown text of the page `docs/results.md`."""
    others = [name for name in records() if name not in LEARNERS]
    return f"""# Results

`python -m benchmarks.record --pages` writes this page from the records of runs in `benchmarks/results/`. No number on
this page is typed by hand.

- **Score**: the mean over test tasks after the last inner step, with a 95 % interval (1.96·σ/√n over the test tasks of
  one trained model). The spread over seeds is separate; see "Over seeds".
- **Transductive**: the queries of a task are normalised together. Most papers report this value, and the column
  *difference* compares with it. **Non-transductive**: each query is normalised with the support set only.
- **Training alone**: the time of training without start-up, validation and evaluation, on a shared two-core machine
  beside other work, unless the column names an accelerator.
- **bfloat16**: the operands of convolutions were rounded to bfloat16.
- **Command**: the arguments of `metajax train`. Runs of `folder` with `--task.size 64` have images of Tiny ImageNet.

Most runs are short: minutes on two cores instead of the 60,000 meta-steps of the papers. Runs with `--length long` have
18,000 to 100,000 meta-steps. The docstring of each config says how its settings differ from the paper's.

## Every run

{table(others, "../configs")}

{_over_seeds()}## The family in one shared setting

These runs use real Omniglot, 5-way 1-shot, with characters split at random. All learners have the same model, outer
optimiser, number of meta-steps and number of tasks. Each config sets its own inner learning rate, inner steps and mask
of adapting parameters. Where the interval of a difference contains 0, the test does not distinguish the two learners.

{family_table()}

![Validation accuracy against time](accuracy_against_time.png)

## Sinusoids

The table shows the mean squared error on 5-shot sinusoids. The oracle gets amplitude and phase as inputs and does not
adapt.

{sinusoid_table()}

![Mean squared error against inner steps](sinusoid_family.png)
"""


def speed_table(measured: str) -> str:
    """Return a Markdown table of metajax's tasks per second, and of the ratios to the speed of peers.

    Args:
        measured: Name of a file in `benchmarks/results` that `benchmarks.throughput` wrote.
    """
    results = json.loads((RESULTS / measured).read_text())["results"]
    lines = [
        "| workload | metajax, tasks/s | times the fastest PyTorch peer | times a torch loop | times torch.func "
        "| bfloat16, tasks/s | times the fastest PyTorch peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results.items():
        seconds = {who: measured["seconds"] for who, measured in row.items() if "seconds" in measured}
        peers = {who: value for who, value in seconds.items() if who.removesuffix(ROUNDED) in PEERS}
        exact = {who: value for who, value in peers.items() if who in PEERS}
        if not exact or "metajax" not in seconds:
            continue
        cells = [rate(name, seconds["metajax"]), _lead(seconds["metajax"], exact)]
        cells += [f"{exact[peer] / seconds['metajax']:.1f}×" if peer in exact else "–" for peer in _FAMILIAR]
        rounded = seconds.get(f"metajax{ROUNDED}")
        cells += [rate(name, rounded), _lead(rounded, peers)] if rounded else ["–", "–"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def readme_speed_table() -> str:
    """Return the README's table: for some workloads the speed on two CPU cores and on a GPU."""
    lines = [
        "| workload | two CPU cores, tasks/s | × fastest PyTorch peer | in bfloat16, tasks/s | × fastest PyTorch peer "
        "| GPU, tasks/s | × fastest PyTorch peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    on_cpu, on_gpu = (
        {row.split(" | ")[0]: row.strip("| ").split(" | ") for row in speed_table(SPEED[name]).splitlines()}
        for name in ("speed-cpu", "speed-gpu")
    )
    for workload in README_WORKLOADS:
        cpu, gpu = on_cpu[f"| {workload}"], on_gpu[f"| {workload}"]
        lines.append(f"| {' | '.join([*cpu[:3], *cpu[5:], *gpu[1:3]])} |")
    return "\n".join(lines)


def _lead(seconds: float, others: dict[str, float]) -> str:
    """Return the speed-up over the fastest of the other implementations, and the name of that implementation."""
    fastest = min(others, key=lambda who: others[who])
    return f"{others[fastest] / seconds:.1f}× ({fastest})"


def with_tables(text: str) -> str:
    """Return the text of a page with up-to-date tables in all places for tables."""

    def with_table(place: re.Match) -> str:
        if place[2] == "results":
            content = table(README_RUNS, "configs")
        elif place[2] == "speed":
            content = readme_speed_table()
        else:
            content = speed_table(SPEED[place[2]]) if place[2] in SPEED else _measured(place[2])
        return place[1] + content + place[3]

    return TABLES.sub(with_table, text)


def _measured(name: str) -> str:
    path = RESULTS / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing: python -m benchmarks.{name.split('-')[0]} writes it")
    return path.read_text().strip()


def figures() -> None:
    """Plot validation accuracy against training time, and the sinusoid error against inner steps, into `docs/`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for i, (name, content) in enumerate(records().items()):
        if name in LEARNERS and content["curve"]:
            seconds = [row["seconds"] for row in content["curve"]]
            accuracies = [100 * row["validation_accuracy"] for row in content["curve"]]
            style = {"linewidth": 2.5, "color": "black"} if name == "omniglot_short" else {}
            axes.plot(seconds, accuracies, marker="osD^v"[i % 5], label=LEARNERS[name], **style)
    axes.set(
        xlabel="seconds of meta-training on two cores, beside other work",
        ylabel="validation accuracy (%), transductive",
        title="Omniglot 5-way 1-shot: accuracy against meta-training time",
        xscale="log",
    )
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter("{x:.0f}")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(ROOT / "docs" / "accuracy_against_time.png", dpi=130)

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, content in records().items():
        if name.startswith("sinusoid"):
            losses = content["evaluation"]["transductive"]["loss"]
            steps = range(len(losses["mean"]))
            label = name.removeprefix("sinusoid").strip("_") or "maml"
            if len(losses["mean"]) == 1:
                axes.axhline(losses["mean"][0], color="grey", linestyle=":", label=label)
            else:
                axes.errorbar(steps, losses["mean"], losses["ci95"], label=label, capsize=2)
    axes.set(xlabel="inner steps", ylabel="mean squared error", title="5-shot sinusoids", yscale="log", xlim=(0, 12))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(ROOT / "docs" / "sinusoid_family.png", dpi=130)


def _link(record: dict, folder: str) -> str:
    """Return the command of a record as a link to its config file."""
    return f"[`{record['command']}`]({folder}/{record['command'].split()[0]}.py)"


def _last(measured: dict) -> tuple[float, float]:
    """Return the accuracy after the last inner step and the half-width of its interval, in percent."""
    values = measured["accuracy"]
    return 100 * values["mean"][-1], 100 * values["ci95"][-1]


def _score(measured: dict | None) -> str:
    if measured is None:
        return "–"
    if "accuracy" in measured:
        return "{:.2f} ± {:.2f} %".format(*_last(measured))
    values = measured["loss"]
    return f"MSE {values['mean'][-1]:.3f} ± {values['ci95'][-1]:.3f}"


def _published(command: str, evaluation: dict) -> tuple[str, str]:
    """Return the published score for a command, and metajax's score minus the published score, as text."""
    published = PUBLISHED.get(re.sub(r" --seed \d+", "", command))
    if published is None:
        return "–", "–"
    if "mse" in published:
        difference = evaluation["transductive"]["loss"]["mean"][-1] - published["mse"]
        return f"MSE {published['mse']} ({published['source']})", f"{difference:+.3f}"
    difference = _last(evaluation["transductive"])[0] - published["transductive"]
    return f"{published['transductive']} ± {published['interval']} % ({published['source']})", f"{difference:+.2f}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--pages"]:
        for path in PAGES:
            path.write_text(with_tables(path.read_text()))
        (ROOT / "docs" / "results.md").write_text(page())
        figures()
    else:
        print(record(Path(sys.argv[1])))
