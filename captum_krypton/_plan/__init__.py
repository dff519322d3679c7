"""TODO."""

from .analysis import Analysis, analyse
from .fuse import fused
from .plan import GroupPlan, Plan, make_plan

__all__ = ["Analysis", "GroupPlan", "Plan", "analyse", "fused", "make_plan"]
