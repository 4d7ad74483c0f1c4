"""The plan as a table: from the shapes of an operation to its algorithm and its block."""

import pytest

from metajax.kernels import Plan, plan

MAIN = ((80, 14, 14, 64), (3, 3, 64, 64))
"""The images and the kernel of the second convolution of Conv4 on Omniglot."""
FIRST = ((80, 28, 28, 1), (3, 3, 1, 64))
MINI = ((75, 42, 42, 32), (3, 3, 32, 32))
"""The images and the kernel of the second convolution of Conv4 on mini-ImageNet."""
WIDE = ((25, 42, 42, 160), (3, 3, 160, 160))
"""The images and the kernel of the second block of ResNet-12 on mini-ImageNet."""

CONV_ON_CPU = [
    # role, shapes, stride, rounded, expected
    ("output", FIRST, 2, False, Plan("native", 80)),
    ("output", MAIN, 2, False, Plan("native", 80)),
    ("output", MAIN, 2, True, Plan("im2col_by_rows", 80)),
    ("input", MAIN, 2, False, Plan("im2col", 80)),
    ("input", MAIN, 2, True, Plan("im2col", 80)),
    ("kernel", FIRST, 2, False, Plan("im2col", 80)),
    ("kernel", MAIN, 2, False, Plan("im2col_by_rows", 10)),
    ("kernel", MAIN, 2, True, Plan("im2col_by_rows", 20)),
    ("output", MINI, 1, False, Plan("winograd", 5)),
    ("output", MINI, 1, True, Plan("winograd", 5)),
    ("input", MINI, 1, True, Plan("winograd", 5)),
    ("kernel", MINI, 1, False, Plan("shifts", 1)),
    ("kernel", MINI, 1, True, Plan("shifts", 5)),
    ("output", WIDE, 1, False, Plan("winograd", 1)),
    ("output", WIDE, 1, True, Plan("winograd", 1)),
    ("input", WIDE, 1, True, Plan("winograd", 1)),
    ("kernel", WIDE, 1, False, Plan("winograd", 1)),
    ("kernel", WIDE, 1, True, Plan("shifts", 1)),
]


@pytest.mark.parametrize(("role", "shapes", "stride", "rounded", "expected"), CONV_ON_CPU)
def test_convolutions_of_the_standard_workloads_on_a_cpu(role, shapes, stride, rounded, expected):
    options = {"role": role, "stride": stride, "padding": 1, "rounded": rounded}
    assert plan("conv", shapes, "float32", "cpu", **options) == expected


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("role", ["output", "input", "kernel"])
@pytest.mark.parametrize(
    ("shapes", "options", "algorithm"),
    [
        (MAIN, {"stride": 2, "padding": 1}, "native"),
        (MAIN, {"stride": 2, "padding": 1, "rounded": True}, "im2col"),
        (MAIN, {"stride": 2, "padding": 1, "per_task": True}, "im2col"),
        (MINI, {"padding": 1}, "native"),
        (MINI, {"padding": 1, "rounded": True}, "native"),
        (WIDE, {"padding": 1, "rounded": True}, "native"),
        (((80, 14, 14, 64), (1, 1, 64, 64)), {}, "im2col"),
        (((80, 14, 14, 64), (1, 1, 64, 64)), {"padding": 1}, "native"),
        (((80, 14, 14, 64), (1, 1, 64, 64)), {"padding": 1, "rounded": True}, "im2col"),
    ],
)
def test_convolutions_on_accelerators(platform, role, shapes, options, algorithm):
    """Accelerators process all examples at once, and compute every role by the same algorithm."""
    assert plan("conv", shapes, "float32", platform, role=role, **options) == Plan(algorithm, shapes[0][0])


@pytest.mark.parametrize(
    ("shape", "channels", "padding", "roles"),
    [
        ((5, 40, 40), (32, 32), 1, ["output", "input"]),
        ((5, 40, 40), (64, 64), 1, ["output", "input", "kernel"]),
        ((5, 40, 40), (64, 32), 1, ["output", "input"]),  # the cotangent of a kernel only from 64 channels on
        ((1, 100, 100), (64, 64), 1, ["output", "input", "kernel"]),
        ((5, 40, 40), (32, 32), 3, []),
        ((5, 40, 40), (16, 32), 1, []),
        ((5, 40, 40), (32, 16), 1, []),
        ((5, 8, 8), (32, 32), 1, []),  # few tiles
        ((25, 10, 10), (640, 640), 1, []),  # more channels than tiles
        ((101, 10, 10), (64, 64), 1, []),  # a prime number of images goes one by one
        ((8_000, 1, 1), (32, 32), 1, []),  # tiles that are mostly outside of the images
        ((2_000, 3, 3), (32, 32), 1, []),
        ((2_000, 3, 3), (32, 32), 0, []),
        ((0, 40, 40), (32, 32), 1, []),
    ],
)
def test_winograd_is_for_large_convolutions(shape, channels, padding, roles):
    shapes = ((*shape, channels[0]), (3, 3, *channels))
    plans = {r: plan("conv", shapes, "float32", "cpu", role=r, padding=padding) for r in ("output", "input", "kernel")}
    assert [role for role, each in plans.items() if each.algorithm == "winograd"] == roles


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_winograd_is_for_exact_types(dtype):
    """In half precision the sums of pixels lose digits, and integers have no halves."""
    assert plan("conv", MINI, dtype, "cpu", padding=1).algorithm == "native"
    assert plan("conv", MINI, "float64", "cpu", padding=1).algorithm == "winograd"


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("images", "kernel", "stride", "algorithm"),
    [
        ((8, 16), (3, 4), 1, "shifts"),
        ((8, 3), (3, 4), 1, "im2col"),  # few channels
        ((8, 16), (3, 4), 2, "im2col_by_rows"),  # a stride
        ((8, 16), (1, 4), 1, "im2col"),  # a kernel of one weight
        ((4, 16), (3, 4), 1, "im2col_by_rows"),  # few rows
        ((8, 16), (3, 17), 1, "im2col_by_rows"),  # more outputs than inputs
        ((8, 257), (3, 4), 1, "im2col_by_rows"),  # very many channels
        ((40, 16), (3, 17), 1, "im2col"),  # wide images
    ],
)
def test_the_cotangent_of_a_kernel_uses_shifts_where_they_save_copies(images, kernel, stride, algorithm, rounded):
    (side, channels), (size, features) = images, kernel
    shapes, options = ((2, side, side, channels), (size, size, channels, features)), {"stride": stride}
    chosen = plan("conv", shapes, "float32", "cpu", role="kernel", padding=size // 2, rounded=rounded, **options)
    assert chosen.algorithm == algorithm


@pytest.mark.parametrize(
    ("shapes", "options", "expected"),
    [
        (((5, 3, 3, 8), (3, 3, 8, 8)), {"padding": 1}, "im2col"),  # images no larger than the kernel
        (((5, 9, 9, 8), (3, 3, 8, 8)), {"padding": 1}, "native"),
        (((5, 9, 9, 8), (3, 3, 8, 8)), {"padding": 1, "role": "input"}, "native_reversed"),
        (((5, 9, 9, 3), (3, 3, 3, 8)), {"padding": 1}, "native_padded_channels"),
        (((5, 9, 9, 3), (3, 3, 3, 8)), {"padding": 1, "role": "input"}, "native_reversed"),
        (((5, 9, 9, 3), (3, 3, 3, 8)), {"padding": 1, "role": "kernel"}, "im2col"),
        (((5, 9, 9, 8), (1, 1, 8, 8)), {}, "im2col"),
        (((5, 9, 9, 8), (1, 1, 8, 8)), {"padding": 1}, "native"),
        (((25, 10, 10, 640), (3, 3, 640, 640)), {"padding": 1, "rounded": True}, "im2col_by_rows"),
        (((25, 10, 10, 640), (3, 3, 640, 640)), {"padding": 1, "rounded": True, "role": "input"}, "im2col"),
        (((25, 10, 10, 640), (3, 3, 640, 640)), {"padding": 1}, "native"),
        (MINI, {"padding": 1, "per_task": True}, "im2col"),
        (MAIN, {"padding": 1, "per_task": True}, "im2col_by_rows"),
        (MAIN, {"padding": 1, "per_task": True, "role": "input"}, "im2col"),
    ],
)
def test_other_convolutions_on_a_cpu(shapes, options, expected):
    assert plan("conv", shapes, "float32", "cpu", **options).algorithm == expected


@pytest.mark.parametrize("role", ["output", "input", "kernel"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("per_task", [False, True])
def test_dense_products(role, platform, per_task):
    slow = (role, platform, per_task) == ("kernel", "cpu", True)
    expected = Plan("transpose" if slow else "native", 10)
    assert plan("dense", ((10, 40), (40, 1)), "float32", platform, role=role, per_task=per_task) == expected
