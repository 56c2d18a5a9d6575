"""Tools for students and teachers: exercise checks, working copies, the trainer check, grading, reports."""
