"""Environments of other libraries, by duck typing: nothing of theirs is imported.

`reward_functions.py` takes reward functions of TRL and verl, `verifiers.py` environments of the
verifiers library, `datasets.py` rows of Hugging Face `datasets`. None of them has feedback, so each
adapter takes a function that writes it.
"""
