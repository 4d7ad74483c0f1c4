"""The pages of results say what the records say."""

import pytest

from benchmarks import record


@pytest.mark.parametrize("page", record.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_records(page):
    assert record.with_tables(page.read_text()) == page.read_text(), "run python -m benchmarks.record --pages"


def test_every_place_for_a_table_is_found():
    for page, tables in zip(record.PAGES, (2, 5), strict=True):
        assert page.read_text().count("written by benchmarks/record.py -->") == tables
        assert len(record.TABLES.findall(page.read_text())) == tables


def test_the_page_of_results_is_that_of_the_records():
    assert record.page() == (record.ROOT / "docs" / "results.md").read_text(), "run python -m benchmarks.record --pages"


def test_every_record_has_a_config_of_the_same_settings():
    """But for what the name says, and where its data lies."""
    from metajax.cli import configs
    from metajax.workdir import to_json

    for name, kept in record.records().items():
        config = to_json(configs.load(record._config_of(name)), record.ROOT)
        assert kept["config"]["learner"] == config["learner"], name
        if record._config_of(name) == name:
            assert kept["config"]["training"]["steps"] == config["training"]["steps"], name
