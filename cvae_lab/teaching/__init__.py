"""Tools for students and teachers: exercise checks, a working copy of the notebooks, the trainer check."""
