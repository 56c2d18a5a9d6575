"""Measure speed and memory of the reference loops and of the fast paths on the same network, data and machine.

`table` compares reference loops and fast paths. `scaling` measures how time grows with the size of the work. `gpu`
runs all measurements and checks on one GPU.
"""

from cvae_lab.bench.measure import flops_per_frame, machine
from cvae_lab.bench.scaling import exponent, growth
from cvae_lab.bench.table import HEAD, Row, bench, fractions_by_kind, read, time_by_kind, write

__all__ = [
    "HEAD",
    "Row",
    "bench",
    "exponent",
    "flops_per_frame",
    "fractions_by_kind",
    "growth",
    "machine",
    "read",
    "time_by_kind",
    "write",
]
