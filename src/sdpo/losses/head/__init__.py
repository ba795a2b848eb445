"""The numbers of `losses/reference.py`, fast: one pass over the head in chunks gives loss and
gradient."""
