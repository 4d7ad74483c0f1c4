"""Scripts that measure metajax, and the records of runs."""
