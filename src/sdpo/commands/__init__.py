"""Commands of `sdpo` that are long enough for a file of their own; `cli.py` has the others."""
