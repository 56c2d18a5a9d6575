"""Static check of a student's trainer: `examine` applies rules to the syntax tree of its source code."""

from cvae_lab.teaching.doctor.examine import CANNOT_SEE, Finding, examine, examine_source

__all__ = ["CANNOT_SEE", "Finding", "examine", "examine_source"]
