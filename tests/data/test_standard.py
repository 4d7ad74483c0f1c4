"""Published data sets are recognised by their classes and numbers of images."""

import logging

import numpy as np
import pytest
from PIL import Image

import metajax as mj
from metajax.data import load_folder
from metajax.data.dataset import Dataset
from metajax.data.standard import checksum, standard_name
from metajax.experiment import FolderConfig, Shots, presets


def dataset(classes: dict[str, dict[str, int]]) -> Dataset:
    splits = {}
    for split, counts in classes.items():
        sizes = np.array(list(counts.values()))
        images = np.zeros((sizes.sum(), 1, 1, 3), np.uint8)
        splits[split] = mj.ClassBank(images, np.cumsum(sizes) - sizes, sizes)
    return Dataset("mine", splits, {split: list(counts) for split, counts in classes.items()})


def test_the_checksum_depends_on_splits_names_and_numbers_but_not_on_their_order():
    one = checksum(dataset({"train": {"a": 2, "b": 3}, "test": {"c": 1}}))
    assert checksum(dataset({"test": {"c": 1}, "train": {"b": 3, "a": 2}})) == one
    for other in (
        {"train": {"a": 3, "b": 2}, "test": {"c": 1}},
        {"train": {"a": 2, "d": 3}, "test": {"c": 1}},
        {"train": {"a": 2}, "test": {"b": 3, "c": 1}},
        {"train": {"a": 2, "b": 3}},
    ):
        assert checksum(dataset(other)) != one


def test_another_data_set_is_no_published_one_and_a_warning_says_so(tmp_path, caplog):
    for split in ("train", "val", "test"):
        for name in ("n01", "n02"):
            folder = tmp_path / "images" / split / f"{split}_{name}"
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    sizes = Shots(shots=1, queries=1)
    task = FolderConfig(source=tmp_path / "images", ways=2, size=8, train=sizes, test=sizes, standard="mini-ImageNet")
    with caplog.at_level(logging.WARNING, "metajax.data"):
        task.tasks(tmp_path / "data")
    (message,) = [record.getMessage() for record in caplog.records if "published" in record.getMessage()]
    assert "images is not the published mini-ImageNet (" in message
    assert "train 2 classes of 3 to 3 images" in message


def test_the_config_names_its_option_and_has_the_published_settings():
    maml = presets.load("mini_imagenet")
    assert maml.task.standard == "mini-ImageNet"
    assert (maml.inner.learning_rate, maml.inner.steps, maml.evaluation.steps) == (0.05, 5, 10)
    assert (maml.training.steps, maml.training.tasks_per_step, maml.model.channels) == (60_000, 4, 32)
    reptile = presets.load("mini_imagenet", learner="reptile", shots=5)
    assert (reptile.task.train.shots, reptile.inner.steps, reptile.inner.batch_size) == (15, 8, 10)
    assert (reptile.training.steps, reptile.evaluation.steps, reptile.evaluation.batch_size) == (100_000, 50, 15)
    assert presets.load("mini_imagenet", learner="protonet").task.train.ways == 30
    assert presets.load("mini_imagenet", learner="protonet", shots=5).task.train.ways == 20


@pytest.mark.slow
def test_the_real_data_is_recognised(shared_data, tmp_path):
    archive = shared_data / "mini_imagenet" / "mini_imagenet.zip"
    if not archive.is_file():
        pytest.skip(f"no real data: {archive} is not there")
    found = load_folder(archive, size=8, data_dir=tmp_path)
    assert standard_name(found) == "mini-ImageNet with 300 images of each validation class"
