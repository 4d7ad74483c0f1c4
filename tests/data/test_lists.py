"""Published lists of splits, on folders of every arrangement, and what can be wrong with them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.data import load_folder
from metajax.data.listing import Entry
from metajax.data.lists import arrange_by_lists
from metajax.data.pixels import encode_png
from metajax.errors import UserError
from metajax.experiment import FolderConfig, Shots

SOURCE = Path("images")


def entries(*paths: str) -> list[Entry]:
    return [Entry(path, "") for path in sorted(paths)]


def write(folder: Path, **texts: str) -> Path:
    """Lists by split, `train_csv` for `train.csv`."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


FLAT = entries("images/n0101.jpg", "images/n0102.jpg", "images/n0201.jpg", "images/n0301.jpg", "images/n0302.jpg")
BY_FOLDER = entries("a/n01/n0101.jpg", "a/n01/n0102.jpg", "b/n02/n0201.jpg", "n03/n0301.jpg", "n03/n0302.jpg")


@pytest.mark.parametrize("header", ["filename,label", "filename, label", "label,filename", "Filename,Class"])
@pytest.mark.parametrize("files", [FLAT, BY_FOLDER])
def test_csv_lists_of_images(tmp_path, header, files):
    """Ravi and Larochelle's; Ren et al. call the second column class; what is not listed is left out."""

    def table(*rows: tuple[str, str]) -> str:
        first = header.lower().index("filename") == 0
        return "\n".join([header, *(",".join(row if first else row[::-1]) for row in rows)]) + "\n"

    lists = write(
        tmp_path,
        train_csv=table(("n0302.jpg", "n03"), ("n0101.jpg", "n01"), ("n0102.jpg", "n01")),
        test_csv=table(("n0201.jpg", "n02")),
    )
    layout = arrange_by_lists(SOURCE, files, lists)
    assert list(layout.groups) == [("train", "n01"), ("train", "n03"), ("test", "n02")]
    names = [[path.rsplit("/", 1)[1] for path in paths] for paths in layout.groups.values()]
    assert names == [["n0101.jpg", "n0102.jpg"], ["n0302.jpg"], ["n0201.jpg"]]


@pytest.mark.parametrize("form", ["txt", "csv", "csv with a header"])
def test_lists_of_classes(tmp_path, form):
    """Ren et al.'s tiered-ImageNet lists a class and its superclass, without a header."""
    texts = {"train": ["n01", "n03"], "val": ["n02"], "test": ["n04"]}
    suffix = form[:3]
    head = ["label,superclass"] if form.endswith("header") else []
    ending = "" if suffix == "txt" else ",n09"
    lists = write(
        tmp_path,
        **{f"{s}_{suffix}": "\n".join([*head, *(name + ending for name in names), ""]) for s, names in texts.items()},
    )
    files = entries(*(entry.path for entry in BY_FOLDER), "n04/deep/x.jpg", "n05/y.jpg")
    assert arrange_by_lists(SOURCE, files, lists).groups == {
        ("train", "n01"): ["a/n01/n0101.jpg", "a/n01/n0102.jpg"],
        ("train", "n03"): ["n03/n0301.jpg", "n03/n0302.jpg"],
        ("validation", "n02"): ["b/n02/n0201.jpg"],
        ("test", "n04"): ["n04/deep/x.jpg"],
    }


def test_class_names_of_text_lists_may_hold_anything(tmp_path):
    lists = write(tmp_path, train_txt="\ufeffbulldog, French\r\n\r\n", test_txt="  fox  \n")
    groups = arrange_by_lists(SOURCE, entries("bulldog, French/1.jpg", "fox/1.jpg"), lists).groups
    assert list(groups) == [("train", "bulldog, French"), ("test", "fox")]


@pytest.mark.parametrize(
    "first",
    ["class", "label", "Label", "class name", "classes", "target", "image", "file", "path", "class_a", "label, B"],
)
@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_a_first_class_with_the_name_of_a_column(tmp_path, caplog, first, ending):
    if ending == "csv":
        first = first.replace(", B", "")
    lists = write(tmp_path, **{f"train_{ending}": f"{first}\nfox\n", f"test_{ending}": "gnu\n"})
    layout = arrange_by_lists(SOURCE, entries(f"{first}/1.jpg", "fox/1.jpg", "gnu/1.jpg"), lists)
    assert list(layout.groups) == [*sorted([("train", first), ("train", "fox")]), ("test", "gnu")]
    assert not caplog.records


@pytest.mark.parametrize("header", ["class", "Label", "wnid", "category", "class name", "CATEGORIES"])
@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_headers_of_lists_of_classes(tmp_path, caplog, header, ending):
    lists = write(tmp_path, **{f"train_{ending}": f"{header}\nn01\nn03\n", "test_txt": "n02\n"})
    groups = arrange_by_lists(SOURCE, BY_FOLDER, lists).groups
    assert list(groups) == [("train", "n01"), ("train", "n03"), ("test", "n02")]
    assert f"train.{ending}: the first line, {header}, is taken for a header, not for a class" in caplog.text
    assert len(caplog.records) == 1


def test_a_column_of_superclasses_may_hold_the_name_of_a_column(tmp_path):
    lists = write(tmp_path, train_csv="n01,category\nn03,category\n", test_csv="wnid,superclass\nn02,label\n")
    groups = arrange_by_lists(SOURCE, BY_FOLDER, lists).groups
    assert list(groups) == [("train", "n01"), ("train", "n03"), ("test", "n02")]


def test_folders_with_the_names_of_columns(tmp_path):
    """A header of two known names is one, whatever the folders are called."""
    lists = write(tmp_path, train_csv="image,label\na.jpg,n01\n", test_csv="image,label\nb.jpg,n02\n")
    groups = arrange_by_lists(SOURCE, entries("image/a.jpg", "image/b.jpg", "label/c.jpg"), lists).groups
    assert groups == {("train", "n01"): ["image/a.jpg"], ("test", "n02"): ["image/b.jpg"]}


def test_file_names_may_repeat_from_class_to_class(tmp_path):
    files = entries("cat/1.jpg", "dog/1.jpg", "fox/1.jpg")
    lists = write(
        tmp_path, train_csv="filename,label\n1.jpg,cat\ndog/1.jpg,a dog\n", test_csv="filename,label\n1.jpg,fox\n"
    )
    assert arrange_by_lists(SOURCE, files, lists).groups == {
        ("train", "a dog"): ["dog/1.jpg"],
        ("train", "cat"): ["cat/1.jpg"],
        ("test", "fox"): ["fox/1.jpg"],
    }


@given(st.lists(st.integers(0, 9), min_size=2, max_size=10, unique=True), st.data())
@settings(max_examples=30, deadline=None)
def test_every_list_is_kept_to_the_letter(tmp_path_factory, classes, data):
    cut = data.draw(st.integers(1, len(classes) - 1))
    texts = {"train_txt": classes[:cut], "test_txt": classes[cut:]}
    lists = write(tmp_path_factory.mktemp("lists"), **{k: "\n".join(f"c{c}" for c in v) for k, v in texts.items()})
    files = entries(*(f"top/c{c}/{i}.png" for c in range(10) for i in range(c + 1)))
    groups = arrange_by_lists(SOURCE, files, lists).groups
    assert {group: len(paths) for group, paths in groups.items()} == {
        (split[: -len("_txt")], f"c{c}"): c + 1 for split, chosen in texts.items() for c in chosen
    }


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "holds neither train.csv nor train.txt"),
        ({"train_txt": "n01"}, "holds neither test.csv nor test.txt"),
        (
            {"train_txt": "n01", "train_csv": "n01", "test_txt": "n02"},
            "two lists of one split, train.csv and train.txt",
        ),
        ({"train_txt": "n01", "val_txt": "n03", "validation_txt": "n03", "test_txt": "n02"}, "two lists of one split"),
        ({"train_txt": "\n \n", "test_txt": "n02"}, "train.txt: is empty"),
        ({"train_csv": "filename,label\n", "test_txt": "n02"}, "train.csv: is empty"),
        (
            {"train_csv": "filename,size\n1,2\n", "test_txt": "n02"},
            "has the columns filename, size, it should have filename",
        ),
        (
            {"train_csv": "filename,label\nn0101.jpg\n", "test_txt": "n02"},
            "train.csv: row 2 is 'n0101.jpg', it should hold",
        ),
        ({"train_txt": "n01\nn03", "test_txt": "n02\nn01"}, "test.txt: lists the class n01, which train.txt lists too"),
        (
            {"train_txt": "n01\nn07\nn08", "test_txt": "n02"},
            "train.txt: 2 of 3 classes listed are not in images, e.g. n07",
        ),
        (
            {"train_csv": "filename,label\nn0101.jpg,n01\nn0199.jpg,n01\n", "test_txt": "n02"},
            "train.csv: 1 of 2 images listed are not in images, e.g. n0199.jpg",
        ),
        (
            {"train_csv": "filename,label\nx.jpg,n01\n", "test_txt": "n02"},
            "train.csv: x.jpg may be p/x.jpg or q/x.jpg of images",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, texts, said):
    files = entries(*(entry.path for entry in BY_FOLDER), "p/x.jpg", "q/x.jpg")
    with pytest.raises(UserError) as info:
        arrange_by_lists(SOURCE, files, write(tmp_path, **texts))
    assert said in str(info.value)
    assert str(tmp_path) in str(info.value)
    assert "\n" not in str(info.value)


def test_no_lists_and_no_text(tmp_path):
    with pytest.raises(UserError, match=r"no such folder; it should hold train\.csv, val\.csv and test\.csv"):
        arrange_by_lists(SOURCE, FLAT, tmp_path / "gone")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "test.txt").write_text("n01")
    with pytest.raises(UserError, match=r"train\.txt: cannot read"):
        arrange_by_lists(SOURCE, BY_FOLDER, tmp_path)


def draw(folder: Path, classes: int) -> Path:
    for c in range(classes):
        (folder / f"c{c}").mkdir(parents=True)
        for i in range(3):
            (folder / f"c{c}" / f"{i}.png").write_bytes(encode_png(np.full((4, 4, 3), 10 * c + i, np.uint8)))
    return folder


def test_a_folder_follows_its_lists_and_each_change_of_them(tmp_path):
    source = draw(tmp_path / "images", 6)
    lists = write(tmp_path / "lists", train_txt="c5\nc0", test_txt="c3")

    def levels() -> dict[str, list[int]]:
        loaded = load_folder(source, size=4, data_dir=tmp_path / "data", split_lists=lists)
        return {split: bank.images[:, 0, 0, 0].tolist() for split, bank in loaded.splits.items()}

    assert levels() == {"train": [0, 1, 2, 50, 51, 52], "test": [30, 31, 32]}
    write(lists, train_txt="c1", test_csv="c3")
    (lists / "test.txt").unlink()
    write(lists, test_csv="filename,label\n2.png,c3\n0.png,c4\n")
    assert levels() == {"train": [10, 11, 12], "test": [32, 40]}
    assert levels() == {"train": [10, 11, 12], "test": [32, 40]}, "from the cache"


def test_the_tasks_of_a_folder_with_lists(tmp_path):
    source = draw(tmp_path / "images", 6)
    lists = write(tmp_path / "lists", train_txt="c0\nc1", test_txt="c2\nc3")
    shots = Shots(shots=1, queries=1)
    spec = FolderConfig(source=source, split_lists=lists, ways=2, train=shots, test=shots, size=4)
    names = {name: split.class_names for name, split in spec.tasks(tmp_path / "data").splits.items()}
    assert names == {"train": ["c0", "c1"], "test": ["c2", "c3"]}


PICTURES = entries(*(f"n{c}_{i}.jpg" for c in range(6) for i in range(2)))


def spreadsheet(folder: Path, head: str, separator: str, change=str, encoding="utf-8", ending="csv", val="val") -> Path:
    """Lists of six classes of two images, as a program writes them."""
    folder.mkdir()
    for split, classes in (("train", (0, 1)), (val, (2, 3)), ("test", (4, 5))):
        rows = [separator.join((change(f"n{c}_{i}.jpg"), f"n{c}")) for c in classes for i in range(2)]
        text = "\r\n".join([*([head] if head else []), *rows, ""])
        (folder / f"{split}.{ending}").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize(
    ("head", "separator", "options"),
    [
        ("filename;label", ";", {}),
        ("filename\tlabel", "\t", {}),
        ("filename\tlabel", "\t", {"ending": "txt", "encoding": "utf-16"}),
        ("File Name;Class Name", ";", {"encoding": "utf-16"}),
        ("image,label", ",", {"encoding": "utf-8-sig"}),
        ("img,class", ",", {"val": "valid"}),
        ("path,class_name", ",", {"change": lambda name: f"images/{name}"}),
        ("filepath,category", ",", {"change": lambda name: f"C:\\Users\\me\\images\\{name}"}),
        ("filename,label", ",", {"change": lambda name: f"images\\{name}"}),
        ("filename,label", ",", {"change": lambda name: f"../images/{name}"}),
        ("image_id,label", ",", {"change": lambda name: name.removesuffix(".jpg")}),
        ('"filename","label"', ",", {"change": lambda name: f'"{name}"', "val": "validation"}),
        ("sep=;\r\nfilename;label", ";", {"val": "dev"}),
        ("", ",", {}),
        ("", ";", {"val": "meta_val"}),
        ("", "\t", {"ending": "tsv"}),
        ("\ufefffilename\tlabel", "\t", {"ending": "txt", "encoding": "utf-16-be"}),
    ],
)
def test_lists_as_spreadsheets_write_them(tmp_path, head, separator, options):
    layout = arrange_by_lists(SOURCE, PICTURES, spreadsheet(tmp_path / "lists", head, separator, **options))
    assert layout.groups == {
        (split, f"n{c}"): [f"n{c}_0.jpg", f"n{c}_1.jpg"]
        for split, classes in (("train", (0, 1)), ("validation", (2, 3)), ("test", (4, 5)))
        for c in classes
    }


def test_columns_are_found_by_their_names(tmp_path):
    lists = write(
        tmp_path,
        train_csv=",filename,size,label\n0,n0_0.jpg,9,n0\n1,n0_1.jpg,9,n0\n",
        test_csv="class_id,file,class_name\n4,n4_0.jpg,four\n",
    )
    assert arrange_by_lists(SOURCE, PICTURES, lists).groups == {
        ("train", "n0"): ["n0_0.jpg", "n0_1.jpg"],
        ("test", "four"): ["n4_0.jpg"],
    }


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (b"picture,animal\nn0_0.jpg,n0\n", "has the columns picture, animal, it should have filename and label"),
        (b"0,n0_0.jpg,n0\n", "begins with '0,n0_0.jpg,n0', but a list has a header and columns, filename,label, or"),
        (b"n0_0.jpg n0\n", "1 of 1 classes listed are not in images, e.g. n0_0.jpg n0; a list has a header"),
        (b'filename,label\n"n0_0.jpg,n0\nn0_1.jpg,n0\n', "line 2 is no row of a table (a quotation mark is not closed"),
        (
            b'filename,label\nn0_0.jpg,"n\n0"\n',
            "line 2 is no row of a table (a quotation mark is not closed before the",
        ),
        (
            b'filename,label\n"' + b"x" * 200_000 + b",n0\n",
            "line 2 is no row of a table (field larger than field limit",
        ),
        ("filename,label\nn0_0.jpg,Bär\n".encode("latin-1"), 'cannot read: .*; save it as text in UTF-8 ("CSV UTF-8"'),
        ("filename,label\nn0_0.jpg,n0\n".encode("utf-16-le"), "cannot read: it holds null characters; save it as text"),
        (b"filename,label\nother/n0_0.jpg,n0\n", "1 of 1 images listed are not in images"),
        (b"filename,label\nn4_0.jpg,n0\n", "test.csv: lists n4_0.jpg as n4, which train.csv lists too, as another"),
    ],
)
def test_what_is_wrong_with_a_spreadsheet(tmp_path, train, said):
    (tmp_path / "train.csv").write_bytes(train)
    write(tmp_path, test_csv="filename,label\nn4_0.jpg,n4\n")
    with pytest.raises(UserError) as info:
        arrange_by_lists(SOURCE, PICTURES, tmp_path)
    assert all(part in str(info.value) for part in said.split(".*"))
    assert len(str(info.value)) < 400


def test_lists_that_are_not_used_are_named(tmp_path, caplog):
    lists = write(tmp_path, train_txt="n01", test_txt="n02", novel_csv="n03", train_old_txt="n03")
    (tmp_path / "train.old.txt").rename(tmp_path / "train_old.txt")
    assert len(arrange_by_lists(SOURCE, BY_FOLDER, lists).groups) == 2
    assert "not used: novel.csv, train_old.txt; the lists are called train, val and test" in caplog.text
    (tmp_path / "train.txt").unlink()
    assert len(arrange_by_lists(SOURCE, BY_FOLDER, lists).groups) == 2, "the only list with train in its name"
    (tmp_path / "train_old.txt").rename(tmp_path / "base.txt")
    with pytest.raises(UserError, match=r"holds neither train.csv nor train.txt, only base.txt, novel.csv, test.txt"):
        arrange_by_lists(SOURCE, BY_FOLDER, lists)
