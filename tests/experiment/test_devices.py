"""What the command line chooses by device."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.errors import UserError
from metajax.experiment import devices as device
from metajax.kernels.conv import conv


@pytest.mark.parametrize(("units", "asked", "rounds"), [
    (True, "default", True),
    (False, "default", False),
    (True, "float32", False),
    (False, "bfloat16", True),
])  # fmt: skip
def test_a_cpu_rounds_to_bfloat16_when_asked_or_when_it_multiplies_bfloat16(key, monkeypatch, units, asked, rounds):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: units)
    x, kernel = jax.random.normal(key, (2, 8, 8, 16)), jax.random.normal(key, (3, 3, 16, 16))
    exact = conv(x, kernel, stride=2)
    device.use_precision(asked)
    assert bool(jnp.any(conv(x, kernel, stride=2) != exact)) == rounds
    product = jax.jit(jnp.matmul)(x, kernel[0, 0])
    np.testing.assert_allclose(product, np.matmul(x, kernel[0, 0]), atol=1e-5)  # convolutions only


@pytest.mark.parametrize(("flags", "multiplies", "units"), [
    ("fpu avx512_bf16 amx_bf16 amx_tile", True, True),
    ("fpu avx512f avx512_bf16", True, False),
    ("fpu avx2 avx512f not_amx_bf16", False, False),
])  # fmt: skip
def test_what_a_cpu_multiplies_is_in_its_flags(monkeypatch, flags, multiplies, units):
    monkeypatch.setattr(device, "_cpu_description", lambda: f"model name\t: A\nflags\t\t: {flags}\n")
    assert device.multiplies_bfloat16() == multiplies
    assert device.has_matrix_units() == units


@pytest.mark.parametrize(("parameters", "tasks", "devices"), [
    (10_000, 25, 2),  # tiny
    (10_000, 1, 1),
    (10_001, 25, 7),  # 4 each, as with 8 devices
    (10_001, 32, 8),
])  # fmt: skip
def test_devices_share_the_tasks_evenly_and_a_tiny_model_has_two(parameters, tasks, devices):
    assert device.choose_mesh(None, {"w": np.zeros(parameters)}, tasks).size == devices


def test_devices_that_share_a_core_are_named(monkeypatch, caplog):
    monkeypatch.setattr(device, "_cores", lambda: 2)
    params = {"w": np.zeros(10_001)}
    assert device.choose_mesh(None, params, 4).size == 4
    assert device.choose_mesh(2, params, 4).size == 2
    assert not caplog.records
    assert device.choose_mesh(4, params, 4).size == 4
    assert [each.getMessage() for each in caplog.records] == [
        "4 devices on 2 cores: those that share a core are no faster"
    ]


@pytest.mark.parametrize(("platforms", "error", "said"), [
    ("cuda", AssertionError(), "JAX_PLATFORMS is cuda; unset it, or install jax[cuda13], and check the driver"),
    ("gpu", RuntimeError("Unable to initialize backend 'rocm': not in the list of known backends"), "gpu; unset"),
    ("cpu,tpu", RuntimeError("Unable to initialize backend 'tpu':\nno file (set JAX_PLATFORMS='')"), "no file);"),
    ("cuad", RuntimeError("Unable"), "JAX_PLATFORMS is 'cuad'; unset it, or choose from cpu, cuda, rocm and tpu"),
    ("", RuntimeError("INTERNAL: no\nsupported devices"), "JAX finds no device (INTERNAL: no supported devices)"),
])  # fmt: skip
def test_platforms_that_are_not_there_are_named(monkeypatch, platforms, error, said):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setattr(device, "_platforms", lambda: platforms)
    with pytest.raises(UserError) as caught:
        device.check_devices()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_jax_says_of_its_devices_is_a_line(monkeypatch, caplog):
    logger = logging.getLogger("jax._src.xla_bridge")
    monkeypatch.setattr(jax, "devices", lambda: logger.warning("An NVIDIA GPU may be present.\nFalling back to cpu."))
    device.check_devices()
    assert [each.getMessage() for each in caplog.records] == ["JAX: An NVIDIA GPU may be present."]
    assert logger.propagate
    assert not logger.handlers


def test_a_model_larger_than_the_memory_is_refused():
    params = {"w": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)}
    with pytest.raises(UserError, match=r"1,099,511,627,776 parameters: training needs 16,384.0 GiB or more"):
        device.check_memory(params)
