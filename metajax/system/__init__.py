"""Files, output streams and signals of the operating system. Nothing here imports JAX."""
