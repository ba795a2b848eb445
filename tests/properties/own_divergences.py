"""Divergences as a user writes them, in both forms that the head takes."""

from __future__ import annotations


def alpha(log_p, log_q, *, alpha):
    """The alpha divergence, differentiated by autograd."""
    shared = ((1 - alpha) * log_p + alpha * log_q).exp().sum(-1)
    return (1 - shared) / (alpha * (1 - alpha))


def reverse_kl(log_p, log_q):
    """KL(p|q) with its derivative."""
    p, gap = log_p.exp(), log_p - log_q
    return (p * gap).sum(-1), p * (gap + 1)
