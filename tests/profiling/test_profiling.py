"""What benchmarks measure: that implementations compute the same, and that operations are counted right."""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import metajax as mj
from benchmarks import peers, throughput
from benchmarks.peers import PEERS, jax_obvious
from benchmarks.throughput import JAX, Settings, flattened, measurements
from metajax.cli import bench, configs, main, tune
from metajax.core.parallel import task_mesh
from metajax.experiment.devices import device_name
from metajax.profiling import WORKLOADS, make_tasks, matrix_flops, meta_gradient, standard, time_calls


@pytest.mark.parametrize("module", [*PEERS.values(), *JAX.values()])
def test_every_peer_is_there(module):
    """Those of PyTorch are read, not imported: the tests need none of it."""
    tree = ast.parse(Path(peers.__file__).with_name(f"{module}.py").read_text())
    arguments = {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert arguments["prepare"] == ["workload", "params", "tasks"]


def test_plain_jax_has_every_model_but_the_residual_network():
    with pytest.raises(peers.Unsupported, match="residual"):
        jax_obvious.prepare(WORKLOADS["ResNet-12 84×84, 5w5s, 5 queries, 1 step"], {}, {})
    assert {workload.model for workload in WORKLOADS.values()} == {"mlp", "conv4", "conv4_pool", "resnet12"}


@pytest.mark.parametrize(  # each model and each learner, small
    ("name", "changes"),
    [
        ("sinusoid, 5 steps", {"steps": 5}),
        ("Omniglot 5w1s, 1 query, 1 step", {}),
        ("Omniglot 5w1s, 15 queries, 5 steps, first order", {"steps": 1}),
        ("Omniglot 5w1s, 15 queries, 5 steps, Reptile", {"steps": 1}),
        pytest.param("mini-ImageNet 5w1s", {"steps": 1, "ways": 2, "side": 16}, marks=pytest.mark.slow),
    ],
)
def test_the_obvious_way_gives_the_same_meta_gradient(name, changes):
    workload = dataclasses.replace(WORKLOADS[name], tasks=2, queries=1, **changes)
    with jax.enable_x64(True):
        params = in_float64(standard(workload).params)
        tasks = in_float64(make_tasks(workload))
        ours = flattened(meta_gradient(workload, task_mesh(jax.devices()[:1]), params, tasks))
        theirs = jax_obvious.prepare(workload, flattened(params), tasks)[1]()
    assert sorted(ours) == sorted(theirs)
    for leaf in ours:
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=1e-7, atol=1e-9, err_msg=leaf)


@pytest.mark.parametrize(
    "at_once", [pytest.param(1, marks=pytest.mark.slow), 2]
)  # one after the other, or made ready together
def test_implementations_are_checked_and_then_timed(tmp_path, at_once):
    settings = Settings(tmp_path, seconds=0.01, patience=300, at_once=at_once)
    measured = list(measurements([("sinusoid, 1 step", name) for name in ("metajax", *JAX)], settings))
    assert [cell[:2] for cell in measured] == [("sinusoid, 1 step", name) for name in ("metajax", *JAX)]
    for _, name, result in measured:
        assert result["seconds"] > 0, result
        assert result["difference"] == 0 if name == "metajax" else 0 < result["difference"] < 1e-6


def test_what_differs_is_not_timed_and_its_process_ends(tmp_path, monkeypatch):
    started, start = [], throughput._start
    monkeypatch.setattr(throughput, "TOLERANCE", -1.0)
    monkeypatch.setattr(throughput, "_start", lambda *args: started.append(start(*args)) or started[-1])
    cells = [("sinusoid, 1 step", "metajax")] * 2
    results = measurements(cells, Settings(tmp_path, seconds=0.01, patience=300, at_once=1))
    assert next(results) == (*cells[0], {"error": "its meta-gradient differs by 0.0e+00"})
    assert len(started) == 2, "to check it, and to be timed"
    assert all(process.popen.returncode is not None for process in started)
    results.close()


def test_a_measurement_that_takes_too_long_is_given_up(tmp_path):
    with pytest.raises(SystemExit, match="sinusoid, 1 step: metajax: not done after 0 s"):
        next(measurements([("sinusoid, 1 step", "metajax")], Settings(tmp_path, 0.01, patience=0.01, at_once=1)))


def in_float64(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, tree)


def test_operations_of_a_convolution_and_its_derivatives_are_counted():
    apply, params = mj.functional(mj.models.Conv(2, 4, kernel_size=3, padding=1, rngs=nnx.Rngs(0)))
    x = jnp.ones((3, 8, 8, 2))
    forward = 2 * (3 * 8 * 8 * 4) * (3 * 3 * 2)
    assert matrix_flops(apply, params, x) == forward
    assert matrix_flops(jax.grad(lambda p, x: apply(p, x).sum(), argnums=(0, 1)), params, x) == 2 * forward
    assert matrix_flops(
        jax.vmap(apply), jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), params), x[None].repeat(5, 0)
    ) == (5 * forward)


def test_operations_of_a_fully_connected_layer_and_its_derivatives_are_counted():
    apply, params = mj.functional(mj.models.MLP(2, 3, hidden=(), rngs=nnx.Rngs(0)))
    forward = 2 * 5 * 2 * 3

    def loss(params, x):
        return jnp.sin(apply(params, x)).sum()

    assert matrix_flops(loss, params, jnp.ones((5, 2))) == forward
    assert matrix_flops(jax.grad(loss), params, jnp.ones((5, 2))) == 2 * forward, "and the kernel's"
    assert matrix_flops(jax.grad(loss, argnums=(0, 1)), params, jnp.ones((5, 2))) == 3 * forward, "and the input's"


def test_operations_of_a_loop_count_for_every_turn():
    a = jnp.ones((4, 4))
    loop = lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=7)[0]  # noqa: E731
    assert matrix_flops(loop, a) == 7 * 2 * 4**3


def test_a_slow_call_is_timed_once():
    calls = []
    timing = time_calls(lambda: calls.append(sum(range(200_000))), seconds=1e-9, at_least=5)
    assert timing.repeats == 1
    assert len(calls) == 3, "compiled, warmed up, timed"


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        "from metajax.experiment import *\n"
        "config = Experiment(task=Sinusoid(), model=MLP(hidden=(8,)), learner=MAML(),\n"
        "    inner=Inner(learning_rate=0.01, steps=2), outer=Outer(learning_rate=1e-3),\n"
        "    training=TrainingSettings(steps=4, tasks_per_step=4, steps_per_call=2, checkpoint_every=4),\n"
        "    validation=Validation(num_tasks=0), evaluation=EvaluationSettings(steps=1, num_tasks=4))\n"
    )
    return path


@pytest.mark.parametrize(("hidden", "tasks", "devices"), [
    ((8,), 4, {4, 2, 1}),  # tiny: two by default
    ((8,), 25, {7, 2, 1}),  # seven have as few as all eight
    ((128, 128), 4, {4, 1}),
])  # fmt: skip
def test_tuning_tries_all_devices_those_of_the_default_and_one(small, hidden, tasks, devices):
    experiment = configs.load(str(small))
    training = dataclasses.replace(experiment.training, tasks_per_step=tasks)
    params = {"w": np.zeros((*hidden, 100))}
    assert {way.devices for way in tune._ways(dataclasses.replace(experiment, training=training), params)} == devices


@pytest.mark.slow
def test_what_is_tuned_is_kept_beside_the_config_and_taken_by_later_runs(small, capsys, monkeypatch):
    monkeypatch.chdir(small.parent)
    assert main(["tune", str(small), "--seconds", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "fastest: " in said
    found = tune.load(small)
    assert found.chunk_size in (1, 2, 4)
    assert main(["train", str(small)]) == 0
    execution = json.loads((small.parent / "runs" / "small" / "config.json").read_text())["execution"]
    assert (execution["chunk_size"], execution["unroll"]) == (found.chunk_size, found.unroll)
    assert main(["train", str(small), "--execution.chunk-size", "3", "--workdir", "other"]) == 0
    other = json.loads((small.parent / "other" / "config.json").read_text())
    assert other["execution"]["chunk_size"] == 3, "what the user says holds"


def test_what_was_tuned_gives_way_to_what_the_user_says(small, monkeypatch, capsys):
    monkeypatch.chdir(small.parent)
    tune.store(small, tune.Tuned(devices=2, chunk_size=2, unroll=True))
    assert main(["train", str(small), "--execution.remat", "--devices", "3"]) == 0
    assert "3 cpu devices" in capsys.readouterr().out
    execution = json.loads((small.parent / "runs" / "small" / "config.json").read_text())["execution"]
    assert (execution["chunk_size"], execution["unroll"], execution["remat"]) == (2, None, True)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"DEVICE": 3}', '{"DEVICE": {"chunk_size": "4"}}', '{"DEVICE": {"depth": 1}}']
)
def test_a_damaged_file_of_what_was_tuned_is_named_and_tuning_again_mends_it(small, capsys, text):
    path = small.with_name("small.tuned.json")
    path.write_text(text.replace("DEVICE", device_name()))
    assert main(["train", str(small)]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    tune.store(small, tune.Tuned(chunk_size=2))
    assert tune.load(small).chunk_size == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["bench", "--only", "MNIST"], "no workload's name contains 'MNIST': choose from sinusoid, 1 step"),
        (["bench", "--only", "sinusoid, 1 step", "--devices", "0"], "--devices must be at least 1, got 0"),
        (["bench", "sinusoid_maml", "--only", "mini"], "--only selects among the standard workloads: remove --only"),
        (["bench", "--only", "mini", "sinusoid_maml"], "Unrecognized options: sinusoid_maml"),
        (["bench", "--only", "sinusoid, 1 step", "--output", "gone/x.json"], "--output: there is no folder gone"),
        (["bench", "--data-dir", "x"], "--data-dir is for a CONFIG, which comes first"),
        (["bench", "sinusoid_mamal"], "did you mean 'sinusoid_maml'?"),
        (["bench", "sinusoid_maml", "--devices", "99"], "--devices is 99, but there are only 8"),
        (["tune"], "tune needs a CONFIG"),
        (["tune", "nothing.py"], "there is no config file nothing.py"),
    ],
)
def test_mistakes_get_one_line(command, said, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_bench_says_how_fast_an_experiment_is(small, tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert main(["bench", str(small), "--seconds", "0.01", "--output", str(output)]) == 0
    assert "tasks/s" in capsys.readouterr().out
    row = json.loads(output.read_text())["results"]["small"]
    assert row["tasks_per_second"] > 0
    # 1 → 8 → 1 units on 10 points, two inner steps of plain reverse mode and their derivatives
    assert row["gflop_per_task"] * 1e9 == pytest.approx(matrix_flops_of_small(), rel=1e-6)


@pytest.mark.parametrize(("repeats", "said"), [(1, "one call"), (5, "quartiles 1.0 to 3.0")])
def test_bench_gives_no_quartiles_of_one_call(repeats, said):
    rates = {"tasks_per_second": 2.0, "quartiles": [1.0, 3.0], "gflops": 1.0, "matrix_gflops": 4.0}
    line = bench._line({**rates, "compile_seconds": 0.5, "peak_bytes": 2**20, "repeats": repeats})
    assert line.startswith(f"2.0 tasks/s ({said}), ")


def matrix_flops_of_small():
    apply, params = mj.functional(mj.models.MLP(1, 1, hidden=(8,), rngs=nnx.Rngs(0)))
    inner = mj.inner_loop(optax.sgd(0.01), 2, mixed_mode=False)
    learner, sampler = mj.maml(mj.regression_loss(apply), inner), mj.sinusoid()
    key = jax.random.key(0)
    return matrix_flops(lambda p, t: learner.gradient(p, t, key, ()).gradient, params, sampler(key))
