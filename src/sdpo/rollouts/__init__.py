"""Environment and engine to judged groups, multi-turn attempts, the order of tasks, and the record
of every attempt."""
