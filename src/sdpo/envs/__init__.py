"""Environments: where tasks come from and who judges the attempts. `opening.py` turns the `env`
section of a recipe into one; `base.py` is the contract."""
