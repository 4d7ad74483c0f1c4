"""The pages of results say what the records say."""

from benchmarks import record

README = record.ROOT / "README.md"


def test_the_readmes_table_is_that_of_the_records():
    assert record.readme(README.read_text()) == README.read_text(), "run python benchmarks/record.py --pages"


def test_the_page_of_results_is_that_of_the_records():
    assert record.page() == (record.ROOT / "docs" / "results.md").read_text(), "run python benchmarks/record.py --pages"


def test_every_record_has_a_config_of_the_same_settings():
    """But for what the name says, and where its data lies."""
    from metajax.cli import configs
    from metajax.workdir import to_json

    for name, kept in record.records().items():
        config = to_json(configs.load(record._config_of(name)), record.ROOT)
        assert kept["config"]["learner"] == config["learner"], name
        if record._config_of(name) == name:
            assert kept["config"]["training"]["steps"] == config["training"]["steps"], name
