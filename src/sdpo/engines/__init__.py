"""Sampling: the engine that shares the trained weights, vLLM, and what samples when the fast path
does not fit a model."""
