"""Checks of the notebooks' exercises. Only the notebooks and the tests import this subpackage."""
