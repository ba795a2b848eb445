"""How many sequences run through a transformer at once; `plan.py` is the seam. No algorithm, no
settings."""
