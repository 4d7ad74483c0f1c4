"""The pages of results say what the records say."""

import re
from collections.abc import Iterator

import pytest
from command_line import experiment_of

from benchmarks import record
from metajax.experiment import presets, workdir


@pytest.mark.parametrize("page", record.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_records(page):
    assert record.with_tables(page.read_text()) == page.read_text(), "run python -m benchmarks.record --pages"


def test_every_place_for_a_table_is_found():
    for page, tables in zip(record.PAGES, (2, 11), strict=True):
        assert page.read_text().count("written by benchmarks/record.py -->") == tables
        assert len(record.TABLES.findall(page.read_text())) == tables


def test_the_page_of_results_is_that_of_the_records():
    assert record.page() == (record.ROOT / "docs" / "results.md").read_text(), "run python -m benchmarks.record --pages"


def test_scores_over_seeds_are_averaged():
    def run(seed: int, mean: float) -> dict:
        measured = {"accuracy": {"mean": [0.2, mean], "ci95": [0.0, 0.01]}}
        command = f"omniglot --seed {seed}" if seed else "omniglot"
        return {
            "command": command,
            "config": {"seed": seed},
            "evaluation": {"transductive": measured, "non_transductive": measured},
        }

    name = "omniglot"
    kept = {name: run(0, 0.96), f"{name}_seed_2": run(2, 0.98), f"{name}_seed_1": run(1, 0.97), "sinusoid": {}}
    lost = {"config": {"seed": 0}, "evaluation": {"transductive": {"loss": {}}}}  # nor has it each query alone
    kept = {"sinusoid_cavia": lost, "sinusoid_cavia_seed_1": lost, **kept}
    *_, transductive, alone = record.seeds_table(kept).splitlines()
    assert transductive.endswith("| 0, 1, 2 | transductive | 96.00, 97.00, 98.00 | 97.00 ± 1.00 % |")
    assert alone.endswith("| 0, 1, 2 | non-transductive | 96.00, 97.00, 98.00 | 97.00 ± 1.00 % |")


@pytest.mark.parametrize(("model", "asked", "on_the_device", "rounded"), [
    ("metajax.models.conv4:Conv4Config", None, "bfloat16", True),  # by default there
    ("metajax.models.conv4:Conv4Config", "bfloat16", None, True),  # before environments said it
    ("metajax.models.resnet:ResNet12Config", "float32", "float32", False),
    ("metajax.models.mlp:MLPConfig", None, "bfloat16", False),  # convolutions only
])  # fmt: skip
def test_a_record_says_when_convolutions_were_rounded(model, asked, on_the_device, rounded):
    config = {"model": {"class": model}, "execution": {"precision": asked}}
    assert record._rounds({"config": config, "environment": {"precision": on_the_device}}) == rounded


RECORDS = record.records()


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_settings_of_its_command(name):
    """Except settings of execution, calls and checkpoints, which change only rounding, and where the data is."""

    def settings(config: dict) -> dict:
        ignored = ("execution", "task.source", "training.steps_per_call", "training.checkpoint_every")
        return {field: value for field, value in workdir._leaves(config) if not field.startswith(ignored)}

    now = settings(workdir.to_json(experiment_of(RECORDS[name]["command"])))
    then = settings(RECORDS[name]["config"])
    assert {field: value for field, value in then.items() if field in now and value != now[field]} == {}


@pytest.mark.parametrize("config", presets.names())
def test_the_scores_of_a_config_are_recorded(config):
    """Scores in docstrings are those of records. `glyphs` and `varied` have evaluations on other tasks, too."""
    recorded = {
        f"{values['mean'][step]:.{digits}f} ± {values['ci95'][step]:.{digits}f}"
        for kept in RECORDS.values()
        if kept["command"].split()[0] == config
        for step, values, digits in scores(kept)
    }
    told = re.findall(r"\d+\.\d+ ± \d+\.\d+", " ".join(presets.find(config).read_text().split()))
    assert set(told) <= recorded
    assert told or "Not measured here" in presets.find(config).read_text()


def scores(kept: dict) -> Iterator[tuple[int, dict, int]]:
    """Yield the inner step, the percentages or errors, and the decimal places of each score in a record."""
    for evaluation in (each for name, each in kept.items() if name.startswith("evaluation")):
        reports = [evaluation, *evaluation.get("domains", {}).values()]
        measured = [each.get(kind, {}) for each in reports for kind in ("transductive", "non_transductive")]
        for metrics in measured:
            for metric in {"accuracy", "loss"} & set(metrics):
                values = metrics[metric]
                factor, digits = (100, 2) if metric == "accuracy" else (1, 3)
                scaled = {part: [factor * value for value in values[part]] for part in ("mean", "ci95")}
                for step in range(len(scaled["mean"])):
                    yield step, scaled, digits
