"""The pages of results say what the records say."""

import pytest

from benchmarks import record
from metajax.cli import configs
from metajax.experiment import workdir


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
        return {"config": {"seed": seed}, "evaluation": {"transductive": measured, "non_transductive": measured}}

    name = "omniglot_maml_5w1s"
    kept = {name: run(0, 0.96), f"{name}_seed_2": run(2, 0.98), f"{name}_seed_1": run(1, 0.97), "sinusoid_maml": {}}
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


OTHERWISE = {
    "64_pixels": {"task.size": 64},
    "by_example": {"task.split": "by_example"},
    "seed_1": {"seed": 1},
    "seed_2": {"seed": 2},
}
"""What ends of a name say was set."""


RECORDS = record.records()


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_settings_of_its_config(name):
    """But for what the name says, where its data lies, and how it was carried out, which changes rounding alone."""

    def settings(config: dict) -> dict:
        passed = ("execution", "task.source")
        return {field: value for field, value in workdir._leaves(config) if not field.startswith(passed)}

    now = settings(workdir.to_json(configs.load(record._config_of(name))))
    then = settings(RECORDS[name]["config"])
    set_otherwise = {field: value for field, value in then.items() if field in now and value != now[field]}
    said = [fields for words, fields in OTHERWISE.items() if name.endswith(f"_{words}")]
    assert set_otherwise == (said[0] if said else {})


@pytest.mark.parametrize("config", sorted({record._config_of(name) for name in RECORDS}))
def test_a_config_says_what_its_first_record_says(config):
    """That of the shortest name; of others it may speak or not."""
    name = min((name for name in RECORDS if record._config_of(name) == config), key=len)
    told = " ".join(configs.find(config).read_text().split())
    for kind in ("transductive", "non_transductive"):
        score = record._score(RECORDS[name]["evaluation"].get(kind))
        assert score == "–" or score.removeprefix("MSE ").removesuffix(" %") in told
