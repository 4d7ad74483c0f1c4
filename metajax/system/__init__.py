"""Files, output streams and signals of the operating system. The modules of this package do not import JAX."""
