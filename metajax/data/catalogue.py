"""Declare the data sets that few-shot learning papers use and TFDS provides: names, files, splits, image sizes."""

from functools import partial

from metajax.data import archives, idx, records
from metajax.data.cifar100 import CIFAR100
from metajax.data.download import RemoteFile
from metajax.data.images import ImageSet, Originals, Split, named, numbered, random_split

KANA = ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

KMNIST = ImageSet(
    store=records.Store(
        name="kmnist",
        version="3.0.1",
        description="Cursive hiragana; label = row of the syllabary, index = place in the official file.",
        homepage="http://codh.rois.ac.jp/kmnist/index.html.en",
    ),
    title="Kuzushiji-MNIST",
    licence="CC BY-SA 4.0",
    description="70,000 drawings of ten cursive hiragana, 28×28, light on black",
    splits={"by_class": Split("classes 0-4 to train, 5-9 to test, none to validate", numbered(test=range(5, 10)))},
    size=28,
    channels=1,
    mirrors=False,
    originals=Originals(
        idx.four_files(
            "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
        partial(idx.read_four, images={"train": 60_000, "test": 10_000}, class_names=KANA),
    ),
)

EMNIST = ImageSet(
    store=records.Store(
        name="emnist",
        config="byclass",
        version="3.1.0",
        description="Handwritten digits and letters; label = character, index = place in the official file.",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
    ),
    title="EMNIST",
    licence="none stated",
    description="handwritten digits and letters, 62 classes, up to 2,000 of each, 28×28, light on black",
    splits={"random": Split("40 characters to train, 10 to validate, 12 to test", random_split())},
    size=28,
    channels=1,
    mirrors=False,
    limit=1_000,
    transpose=True,
    originals=Originals(
        (
            RemoteFile(
                "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
                561_753_746,
                "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
            ),
        ),
        partial(
            idx.read_zip,
            stem="gzip/emnist-byclass",
            images={"train": 697_932, "test": 116_323},
            class_names=list(CHARACTERS),
        ),
    ),
)

# The splits called `meta_dataset` below are from Meta-Dataset (Triantafillou et al., arXiv 1903.03096), from the folder
# meta_dataset/dataset_conversion/splits of its repository.
QUICKDRAW = ImageSet(
    store=records.Store(
        name="quickdraw_bitmap",
        version="3.0.0",
        description="Drawings made in twenty seconds.",
        homepage="https://github.com/googlecreativelab/quickdraw-dataset",
    ),
    title="Quick, Draw!",
    licence="CC BY 4.0",
    description="drawings of 345 things, the first 1,000 of each in TFDS' order, 28×28, light on black",
    splits={
        "meta_dataset": Split(
            "241 things to train, 52 to validate, 52 to test",
            named(
                validation="ant, anvil, backpack, baseball, basketball, binoculars, bread, bulldozer, bus, calendar, "
                "camel, candle, carrot, church, clarinet, coffee cup, eye, firetruck, flower, golf club, grapes, hat, "
                "hot dog, ice cream, knife, lobster, matches, mermaid, microwave, nose, panda, paper clip, pond, "
                "purse, radio, roller coaster, skyscraper, smiley face, snake, steak, stethoscope, suitcase, "
                "teddy-bear, television, tennis racquet, toaster, toilet, tooth, tornado, trumpet, waterslide, "
                "wristwatch",
                test="angel, animal migration, axe, bat, beard, bee, bridge, broom, bucket, butterfly, cactus, "
                "campfire, cookie, couch, cow, diving board, donut, drill, eraser, feather, finger, fire hydrant, "
                "flashlight, frying pan, giraffe, goatee, hammer, helicopter, helmet, hockey stick, hourglass, house, "
                "kangaroo, lantern, mailbox, mouse, palm tree, parrot, rabbit, rollerskates, saw, saxophone, snowman, "
                "spider, stitches, streetlight, sweater, table, umbrella, wheel, wine bottle, yoga",
                separator=",",
            ),
        )
    },
    size=28,
    channels=1,
    limit=1_000,
)

CUB = ImageSet(
    store=records.Store(
        name="caltech_birds2011",
        version="0.2.0",
        description="Photographs of birds.",
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    ),
    title="CUB-200-2011",
    licence="non-commercial research",
    description="11,788 photographs of 200 kinds of birds, about 60 each",
    splits={
        # From Chen et al., A closer look at few-shot classification (arXiv 1904.04232), folder filelists/CUB.
        # Classes 0, 2, 4, ... are for training, 1, 5, 9, ... for validation and 3, 7, 11, ... for the test.
        "closer_look": Split(
            "100 kinds to train, 50 to validate, 50 to test",
            numbered(validation=range(1, 200, 4), test=range(3, 200, 4)),
        ),
    },
    size=84,
    channels=3,
    originals=Originals(
        (
            RemoteFile(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
                1_150_585_339,
                "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                ("CUB_200_2011", "images"),
            ),
        ),
        partial(archives.class_folders, classes=200, images=11_788),
    ),
)

FLOWERS = ImageSet(
    store=records.Store(
        name="oxford_flowers102",
        version="2.1.1",
        description="Photographs of flowers.",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    title="Oxford Flowers 102",
    licence="none stated",
    description="8,189 photographs of 102 kinds of flowers, 40 to 258 each",
    splits={
        "meta_dataset": Split(
            "71 kinds to train, 15 to validate, 16 to test",
            numbered(
                validation=[n - 1 for n in (10, 16, 17, 23, 26, 47, 53, 56, 57, 62, 82, 83, 86, 97, 102)],
                test=[n - 1 for n in (5, 9, 15, 19, 35, 40, 41, 42, 45, 46, 65, 85, 89, 94, 96, 98)],
            ),
        )
    },
    size=84,
    channels=3,
    originals=Originals(
        (
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
                344_862_509,
                "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
                ("jpg",),
            ),
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
                502,
                "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            ),
        ),
        partial(archives.flowers, classes=102, images=8_189),
    ),
)

DTD = ImageSet(
    store=records.Store(
        name="dtd",
        version="3.0.1",
        description="Photographs of textures.",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    title="Describable Textures",
    licence="research",
    description="5,640 photographs of 47 kinds of textures, 120 each",
    splits={
        "meta_dataset": Split(
            "33 textures to train, 7 to validate, 7 to test",
            named(
                validation="gauzy grid lined paisley porous scaly spiralled",
                test="banded bumpy crosshatched knitted sprinkled stratified woven",
            ),
        )
    },
    size=84,
    channels=3,
    originals=Originals(
        (
            RemoteFile(
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                625_239_812,
                "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
                ("dtd", "images"),
            ),
        ),
        partial(archives.class_folders, classes=47, images=5_640),
    ),
)

IMAGE_SETS = {images.store.name: images for images in (CIFAR100, EMNIST, KMNIST, QUICKDRAW, CUB, FLOWERS, DTD)}
"""The declaration of each data set in this module, by the name of the data set in TFDS."""
