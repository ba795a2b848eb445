"""Environments and rewards of other libraries, and models as judges.

`reward_functions.py` takes reward functions of TRL and verl, `trl_environments.py` TRL's
environments, `openenv.py` servers of OpenEnv, `verifiers.py` tasksets and environments of
verifiers, `reasoning_gym.py` any set of Reasoning Gym by name, `datasets.py` rows of Hugging Face
`datasets`, `llm_judge.py` a model behind an endpoint. Their libraries are imported where they are
used. Few have feedback, so most adapters take a function that writes it.
"""
