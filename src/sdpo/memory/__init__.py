"""What a run takes on every GPU before it is started: counted from the model's config alone."""

from sdpo.memory.advice import advice
from sdpo.memory.cards import Cards
from sdpo.memory.plan import MemoryPlan, plan_memory

__all__ = ["Cards", "MemoryPlan", "advice", "plan_memory"]
