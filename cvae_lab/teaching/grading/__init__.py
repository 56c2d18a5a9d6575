"""Score predictions against answers, and grade a class; nothing in a submission is executed or unpickled."""

from cvae_lab.teaching.grading.prediction_files import read_clips, read_pair
from cvae_lab.teaching.grading.scores import averages, score
from cvae_lab.teaching.grading.submissions import grade_class, submissions

__all__ = ["averages", "grade_class", "read_clips", "read_pair", "score", "submissions"]
