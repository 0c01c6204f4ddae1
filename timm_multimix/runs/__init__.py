"""What a run of train.py is told and what it leaves behind: flags, YAML, checkpoints, summary.csv."""
