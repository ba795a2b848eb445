"""From a name to a policy, what a model is like, its weights, and packed sequences to hidden
states."""
