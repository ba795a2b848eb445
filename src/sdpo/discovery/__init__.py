"""Test-time self-distillation: search for a solution of one hard task at a time (`sdpo discover`).

Three methods share model, sampling and judge: train on the task's own failures, sample
independently, or show the feedback of earlier attempts in the prompt.
"""
