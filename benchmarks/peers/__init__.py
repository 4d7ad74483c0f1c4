"""Other libraries doing the meta-step of a workload, each in a module of its own.

Every module has one function, `prepare(workload, params, tasks) -> (step, gradient)`, of the initial values and the
tasks as NumPy arrays. `step` does one meta-step: the meta-gradient averaged over the tasks, then an update by Adam;
it returns once that is done. `gradient`, called before any step, returns the averaged meta-gradient in the names and
layouts of `params`. `prepare` raises `Unsupported` where the library has no such learner.
"""

PEERS = {
    "torch loop": "torch_loop",
    "torch.func": "torch_func",
    "higher": "higher_",
    "learn2learn": "learn2learn_",
    "parallel-metalearn": "parallel_metalearn",
}
"""Module by the name to show."""


class Unsupported(Exception):
    """A library cannot do a workload, or is not set up; says why."""
