"""`python -m metajax`: the command line."""

from metajax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
