"""Environments of other libraries, by duck typing: nothing of theirs is imported.

`reward_functions` takes reward functions of TRL and verl, `verifiers_env` environments of the
verifiers library, `dataset_rows` rows of Hugging Face `datasets`. What they all lack is feedback;
each adapter has a place to add it.
"""
