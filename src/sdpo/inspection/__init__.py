"""Looking at one attempt: what its teacher reads, and which tokens the difference is about."""
