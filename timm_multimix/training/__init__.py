"""The parts of train.py: what it builds, checks, keeps, writes and says."""
