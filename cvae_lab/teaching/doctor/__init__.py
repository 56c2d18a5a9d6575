"""A check of a student's trainer: `examine` reads the syntax tree and applies the rules."""

from cvae_lab.teaching.doctor.examine import CANNOT_SEE, Finding, examine, examine_source

__all__ = ["CANNOT_SEE", "Finding", "examine", "examine_source"]
