"""The synthetic data set: a moving person, drawn frame by frame together with the pose labels."""
