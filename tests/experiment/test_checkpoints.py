"""Checkpoints: exact, the right ones kept, damage noticed."""

import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from command_line import damage

from metajax.core.trainer import TrainState
from metajax.errors import UserError
from metajax.experiment import checkpoints


def some_state(step: int, seed: int = 0, width: int = 3) -> TrainState:
    """A state with many kinds of leaves."""
    a, b, c = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)
    params = {
        "w": jax.random.normal(a, (width, 1000)),
        "half": jax.random.normal(b, (2,), jnp.bfloat16),
        "special": jnp.array([jnp.nan, -jnp.inf, -0.0]),
        "scalar": jnp.float32(step),
    }
    return TrainState(params, optax.adam(1e-3).init(params), (jnp.arange(3), {}), jnp.int32(step), c)


def flat(state: TrainState) -> list[tuple[str, str, bytes]]:
    leaves = jax.tree.leaves_with_path(state._replace(key=jax.random.key_data(state.key)))
    return [(jax.tree_util.keystr(path), str(leaf.dtype), np.asarray(leaf).tobytes()) for path, leaf in leaves]


def save_all(folder, losses: dict[int, float | None], keep: int = 3) -> None:
    with checkpoints.open_checkpoints(folder, keep=keep) as manager:
        for step, loss in losses.items():
            checkpoints.save(manager, some_state(step), loss)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    save_all(tmp_path / "c", {7: None})
    found, problems = checkpoints.restore(tmp_path / "c", some_state(0, seed=1))
    assert problems == []
    assert flat(found) == flat(some_state(7))
    assert jax.tree.structure(found) == jax.tree.structure(some_state(7))
    expected = jax.random.normal(some_state(7).key)
    assert float(jax.random.normal(found.key)) == float(expected)


def test_what_is_saved_is_the_state_at_the_time(tmp_path):
    state = some_state(7)
    w = np.array(state.meta_params["w"])
    before = flat(state)
    with checkpoints.open_checkpoints(tmp_path / "c") as manager:
        checkpoints.save(manager, state._replace(meta_params={**state.meta_params, "w": w}))
        w[:] = 0  # training reuses its buffers while the save is under way
    assert flat(checkpoints.restore(tmp_path / "c", state)[0]) == before


def test_the_last_few_and_the_best_are_kept(tmp_path):
    save_all(tmp_path / "c", {1: 3.0, 2: 1.0, 3: 5.0, 4: 4.0, 5: 6.0}, keep=2)
    assert checkpoints.saved_steps(tmp_path / "c") == [2, 4, 5]
    assert checkpoints.best_step(tmp_path / "c") == 2


def test_the_best_is_known_after_a_restart(tmp_path):
    save_all(tmp_path / "c", {1: 3.0, 2: 1.0, 3: 5.0}, keep=1)
    save_all(tmp_path / "c", {4: 4.0, 5: None, 6: 2.0}, keep=1)
    assert checkpoints.saved_steps(tmp_path / "c") == [2, 6]
    save_all(tmp_path / "c", {7: 0.5, 8: 7.0}, keep=1)
    assert checkpoints.saved_steps(tmp_path / "c") == [7, 8]
    assert checkpoints.best_step(tmp_path / "c") == 7


def test_a_loss_can_be_saved_later(tmp_path):
    save_all(tmp_path / "c", {1: 3.0, 2: None, 3: None}, keep=3)
    (tmp_path / "c/3/metrics").mkdir()
    (tmp_path / "c/3/metrics/metrics").write_text("{")
    checkpoints.set_loss(tmp_path / "c", 2, 1.0)
    checkpoints.set_loss(tmp_path / "c", 3, float("inf"))
    assert [checkpoints.loss(tmp_path / "c", step) for step in (1, 2, 3)] == [3.0, 1.0, float("inf")]
    save_all(tmp_path / "c", {4: 2.0}, keep=1)
    assert checkpoints.saved_steps(tmp_path / "c") == [2, 4]
    assert checkpoints.best_step(tmp_path / "c") == 2


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({1: None, 2: None}, None),
        ({1: 2.0, 2: None}, 1),
        ({1: 2.0, 2: 2.0, 3: 3.0}, 2),
        ({1: 2.0, 2: float("inf")}, 1),
        ({1: float("inf")}, 1),
    ],
)
def test_the_best_has_the_lowest_loss(tmp_path, losses, best):
    save_all(tmp_path / "c", losses)
    assert checkpoints.best_step(tmp_path / "c") == best


def test_a_step_is_saved_once(tmp_path):
    with checkpoints.open_checkpoints(tmp_path / "c") as manager:
        checkpoints.save(manager, some_state(7), wait=True)
        checkpoints.save(manager, some_state(7, seed=1))
    assert flat(checkpoints.restore(tmp_path / "c", some_state(0))[0]) == flat(some_state(7))


def test_wait_means_written(tmp_path):
    with checkpoints.open_checkpoints(tmp_path / "c") as manager:
        checkpoints.save(manager, some_state(7), wait=True)
        assert flat(checkpoints.restore(tmp_path / "c", some_state(0))[0]) == flat(some_state(7))


@pytest.mark.parametrize("how", ["garbled", "truncated", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capfd, how):
    save_all(tmp_path / "c", {1: None, 2: None, 3: None})
    for step in (2, 3):
        damage(tmp_path / "c" / str(step), how)
    found, problems = checkpoints.restore(tmp_path / "c", some_state(0))
    assert flat(found) == flat(some_state(1))
    assert len(problems) == 2
    for step, problem in zip((3, 2), problems, strict=True):
        assert problem.startswith(f"checkpoint {tmp_path / 'c' / str(step)} cannot be read (")
        assert len(problem.splitlines()) == 1
    time.sleep(0.2)  # Orbax's other reads would print now
    assert capfd.readouterr() == ("", "")


def test_no_bit_can_change_unnoticed(tmp_path):
    """The files below Orbax carry no checksum of an array's numbers."""
    save_all(tmp_path / "c", {1: None, 2: None})
    path = max((tmp_path / "c" / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    fell_back = 0
    for at in range(20, len(data), len(data) // 12):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        found, problems = checkpoints.restore(tmp_path / "c", some_state(0))
        assert flat(found) == flat(some_state(int(found.step)))
        fell_back += len(problems)
    assert fell_back > 6


@pytest.mark.parametrize("step", [2, 3])
def test_no_file_of_a_checkpoint_can_be_damaged_unnoticed(tmp_path, step):
    """Whatever happens to any one file, a state is found and is exactly that of its step."""
    save_all(tmp_path / "c", {1: 5.0, 2: 4.0, 3: 3.0})
    files = [path for path in sorted((tmp_path / "c" / str(step)).rglob("*")) if path.is_file()]
    assert len(files) > 5
    fell_back = 0
    for path in files:
        data = path.read_bytes()
        path.write_bytes(bytes(byte ^ 0x5A for byte in data))
        found, problems = checkpoints.restore(tmp_path / "c", some_state(0))
        assert flat(found) == flat(some_state(int(found.step)))
        fell_back += len(problems)
        with checkpoints.open_checkpoints(tmp_path / "c"):
            pass
        assert checkpoints.best_step(tmp_path / "c") in (2, 3)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert (fell_back > 0) == (step == 3)


def test_half_written_ones_do_not_count(tmp_path):
    save_all(tmp_path / "c", {1: 1.0})
    half = tmp_path / "c" / "2.orbax-checkpoint-tmp-0"
    (half / "default").mkdir(parents=True)
    (tmp_path / "c" / "3").mkdir()  # begun, and nothing in it
    found, problems = checkpoints.restore(tmp_path / "c", some_state(0))
    assert int(found.step) == 1
    assert len(problems) == 1
    assert checkpoints.best_step(tmp_path / "c") == 1
    assert half.is_dir(), "asking for the best step may not touch what a training is writing"
    checkpoints.discard_after(tmp_path / "c", 1)
    save_all(tmp_path / "c", {2: 2.0})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2", "3.damaged"]


def test_a_named_step_is_restored_and_no_other(tmp_path):
    save_all(tmp_path / "c", {1: None, 2: None})
    assert int(checkpoints.restore(tmp_path / "c", some_state(0), 1)[0].step) == 1
    damage(tmp_path / "c" / "2", "truncated")
    with pytest.raises(UserError, match=r"c/2 cannot be read"):
        checkpoints.restore(tmp_path / "c", some_state(0), 2)


def test_another_shape_is_refused_with_both(tmp_path):
    save_all(tmp_path / "c", {1: None})
    with pytest.raises(UserError, match=r"float32\[3, 1000\] where float32\[4, 1000\] is expected"):
        checkpoints.restore(tmp_path / "c", some_state(0, width=4))


def test_nothing_to_restore(tmp_path):
    (tmp_path / "c").mkdir()
    for folder in (tmp_path / "c", tmp_path / "gone"):
        assert checkpoints.saved_steps(folder) == []
        assert checkpoints.best_step(folder) is None
        with pytest.raises(UserError, match="has no checkpoint"):
            checkpoints.restore(folder, some_state(0))


def test_discard_after(tmp_path):
    save_all(tmp_path / "c", {1: None, 2: None, 3: None})
    checkpoints.discard_after(tmp_path / "c", 1)
    assert checkpoints.saved_steps(tmp_path / "c") == [1]
    assert {path.name for path in (tmp_path / "c").iterdir()} >= {"2.damaged", "3.damaged"}, "nothing is lost"
    save_all(tmp_path / "c", {2: None})
    checkpoints.discard_after(tmp_path / "c", 1)
    assert {path.name for path in (tmp_path / "c").iterdir()} >= {"2.damaged", "2.damaged_2", "3.damaged"}


def test_damaged_checkpoints_are_pruned_except_the_last(tmp_path):
    folder = tmp_path / "c"
    save_all(folder, {1: None})
    others = ["0.damaged_x", "4.damaged_", "x.damaged"]
    for name in ("2.damaged", "3.damaged", "3.damaged_2", "3.damaged_10", *others):
        (folder / name).mkdir()
    (folder / "9.damaged").symlink_to(tmp_path)
    checkpoints.prune(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["1", "3.damaged_10", "9.damaged", *others])


def test_a_save_that_fails_is_one_line(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: driver\nmore: No space left on device")

    with checkpoints.open_checkpoints(tmp_path / "c") as manager:
        monkeypatch.setattr(manager, "save", refuse)
        with pytest.raises(UserError, match=r"c: a checkpoint cannot be written \(no space left on device\)"):
            checkpoints.save(manager, some_state(1))


@pytest.mark.parametrize(
    "raised", [TimeoutError("x"), ValueError("Barrier timed out"), RuntimeError("DEADLINE_EXCEEDED")]
)
def test_a_save_that_timed_out_is_tried_once_more(tmp_path, monkeypatch, raised):
    with checkpoints.open_checkpoints(tmp_path / "c") as manager:
        save, calls = manager.save, []

        def late(*args, **options):
            calls.append(args)
            if len(calls) % 2:
                raise raised
            return save(*args, **options)

        monkeypatch.setattr(manager, "save", late)
        checkpoints.save(manager, some_state(1), wait=True)
        assert len(calls) == 2
    assert checkpoints.saved_steps(tmp_path / "c") == [1]


def test_a_save_that_timed_out_twice_says_so(tmp_path, monkeypatch):
    def never(*args, **options):
        raise TimeoutError("in Orbax's words")

    with checkpoints.open_checkpoints(tmp_path / "c") as manager:
        monkeypatch.setattr(manager, "save", never)
        with pytest.raises(UserError, match=r"c: a checkpoint cannot be written \(it timed out twice\)$"):
            checkpoints.save(manager, some_state(1))


def test_paths_may_be_texts_and_losses_scalars_of_jax(tmp_path):
    folder = str(tmp_path / "new" / "c")
    with checkpoints.open_checkpoints(folder) as manager:
        checkpoints.save(manager, some_state(1), jnp.float32(2))
        checkpoints.save(manager, some_state(2), np.float64(1))
    assert checkpoints.saved_steps(folder) == [1, 2]
    assert checkpoints.best_step(folder) == 2
    assert flat(checkpoints.restore(folder, some_state(0))[0]) == flat(some_state(2))
    checkpoints.discard_after(folder, 1)
    assert checkpoints.saved_steps(folder) == [1]


def test_other_parameters_name_the_first_that_differs(tmp_path):
    save_all(tmp_path / "c", {1: None, 2: None})
    like = some_state(0)
    more = like._replace(meta_params={**like.meta_params, "tail": jnp.ones(2)})
    with pytest.raises(UserError) as caught:
        checkpoints.restore(tmp_path / "c", more)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'c' / '2'}: the model's parameters differ from the checkpoint: it has nothing "
        "where float32[2] is expected, at meta_params/tail"
    )
    other = like._replace(opt_state=optax.sgd(1.0).init(like.meta_params))
    with pytest.raises(
        UserError, match=r"it has int32\[\] where nothing is expected, at opt_state/0/count \(and 8 more"
    ):
        checkpoints.restore(tmp_path / "c", other)


def test_a_damaged_checkpoint_is_told_in_our_own_words(tmp_path):
    save_all(tmp_path / "c", {1: None})
    (tmp_path / "c" / "1" / "default" / "_METADATA").write_text("{")
    path = tmp_path / "c" / "1"
    with pytest.raises(UserError) as caught:
        checkpoints.restore(tmp_path / "c", some_state(0))
    assert str(caught.value) == f"checkpoint {path} cannot be read (its files are damaged or incomplete)"
    with pytest.raises(UserError, match=r"c/7 cannot be read \(it is not there\)"):
        checkpoints.restore(tmp_path / "c", some_state(0), 7)


def test_all_but_the_last_and_the_best_are_pruned(tmp_path):
    save_all(tmp_path / "c", {1: 3.0, 2: 1.0, 3: 5.0, 4: None, 5: 6.0}, keep=9)
    checkpoints.prune(tmp_path / "c", 2)
    assert checkpoints.saved_steps(tmp_path / "c") == [2, 4, 5]


def test_names_that_are_no_steps(tmp_path):
    for name in ("²", "٣", "-1", "x", "7.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert checkpoints.saved_steps(tmp_path) == []


def test_names_with_leading_zeros_are_no_steps(tmp_path):
    for name in ("0200", "00", "7", "9" * 200):
        (tmp_path / name).mkdir()
    assert checkpoints.saved_steps(tmp_path) == [7]


def test_a_loss_that_is_not_a_number_is_not_the_best(tmp_path):
    for step, loss in ((1, "NaN"), (2, "0.5"), (3, "Infinity")):
        (tmp_path / str(step) / "metrics").mkdir(parents=True)
        (tmp_path / str(step) / "metrics" / "metrics").write_text(f'{{"loss": {loss}}}')
    assert checkpoints.best_step(tmp_path) == 2


def _change_array(checkpoint, **changes) -> None:
    """Change what a checkpoint says of the array `w`."""
    place = f"file://{checkpoint.resolve()}/default/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": place}).result()
    name = "meta_params.w/.zarray"
    store[name] = json.dumps({**json.loads(store[name]), **changes})


def _enlarge(path) -> None:
    with path.open("ab") as file:
        file.truncate(2**42)  # sparse: no disk


OVERSIZED = {
    "shape": (
        lambda path: _change_array(path, shape=[10**6, 10**6]),
        r"float32\[1000000, 1000000\] where float32\[3, 1000\]",
    ),
    "chunks": (lambda path: _change_array(path, chunks=[3, 10**9]), "a chunk is larger than its array"),
    "tree": (lambda path: _enlarge(path / "default/_METADATA"), "_METADATA is larger than 32 MB"),
    "store": (lambda path: _enlarge(path / "default/manifest.ocdbt"), "manifest.ocdbt is larger than 32 MB"),
    "checkpoint": (lambda path: _enlarge(path / "_CHECKPOINT_METADATA"), "_CHECKPOINT_METADATA is larger than 32 MB"),
    "sharding": (lambda path: _enlarge(path / "default/_sharding"), "_sharding is larger than 32 MB"),
    "arrays": (lambda path: _enlarge(next(path.rglob("d/*"))), "it has 4,194,304 MB where at most 32 MB are expected"),
}


@pytest.mark.parametrize("name", OVERSIZED)
def test_sizes_that_a_checkpoint_claims_are_refused_before_they_are_allocated(tmp_path, name):
    change, said = OVERSIZED[name]
    save_all(tmp_path / "c", {4: None, 7: None})
    change(tmp_path / "c" / "7")
    found, problems = checkpoints.restore(tmp_path / "c", some_state(0))
    assert int(found.step) == 4
    (problem,) = problems
    assert re.search(said, problem)
    assert "\n" not in problem
    with pytest.raises(UserError, match=said):
        checkpoints.restore(tmp_path / "c", some_state(0), 7)


def test_an_old_checkpoint_whose_description_is_too_large_is_named_before_orbax_reads_it(tmp_path):
    save_all(tmp_path / "c", {4: None, 7: None})
    _enlarge(tmp_path / "c/4/_CHECKPOINT_METADATA")
    with (
        pytest.raises(UserError, match=r"c/4 cannot be read \(_CHECKPOINT_METADATA is larger than 32 MB\): remove it"),
        checkpoints.open_checkpoints(tmp_path / "c"),
    ):
        pass
