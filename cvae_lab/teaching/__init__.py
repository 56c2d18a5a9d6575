"""Tools for students and teachers: exercise checks, copies of the notebooks, check of a trainer's code, grading,
reports."""
