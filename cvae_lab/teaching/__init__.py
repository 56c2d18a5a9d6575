"""Tools for students and teachers: exercise checks, copies of notebooks, check of trainer code, grading, reports."""
