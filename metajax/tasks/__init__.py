"""Where tasks come from: pure, traceable samplers `rng -> Task`."""

from metajax.tasks.augment import chain, flip, invert, shift
from metajax.tasks.episodes import draw_without_replacement, episodes
from metajax.tasks.glyphs import glyphs
from metajax.tasks.sinusoid import sinusoid

__all__ = ["chain", "draw_without_replacement", "episodes", "flip", "glyphs", "invert", "shift", "sinusoid"]
