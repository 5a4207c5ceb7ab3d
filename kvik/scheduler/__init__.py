"""Who computes which tokens next, and in which KV blocks.

This room holds integers only: it knows nothing of weights, devices or text. Its one door is `Scheduler`, whose plan()
and commit() bracket every step of the model; the other modules are its parts.
"""

from kvik.scheduler.invariants import InvariantError, check_invariants
from kvik.scheduler.scheduler import Scheduler
from kvik.scheduler.stats import SchedulerStats

__all__ = ["InvariantError", "Scheduler", "SchedulerStats", "check_invariants"]
