"""Task samplers: pure functions `rng -> Task` that JAX can trace. `rng` is a random key."""

from metajax.core.sampler import check_sampler, constant_task
from metajax.tasks.augment import chain, flip, invert, shift
from metajax.tasks.episodes import draw_without_replacement, episodes
from metajax.tasks.glyphs import glyphs
from metajax.tasks.sinusoid import sinusoid
from metajax.tasks.varied import Domain, one_domain, varied_episodes

__all__ = [
    "Domain",
    "chain",
    "check_sampler",
    "constant_task",
    "draw_without_replacement",
    "episodes",
    "flip",
    "glyphs",
    "invert",
    "one_domain",
    "shift",
    "sinusoid",
    "varied_episodes",
]
