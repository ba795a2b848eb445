"""Values that know how to reduce, canaries, and where metrics are written."""
