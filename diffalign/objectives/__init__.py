"""How to align: one file a paper. Every public name is a final frozen dataclass with a call, under the laws of the tests."""

from diffalign.objectives.dpo import DPO

__all__ = ["DPO"]
