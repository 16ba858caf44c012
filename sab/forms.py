"""The forms of a checkpoint that is made from a run, and the folders inside the run where it keeps its own of each."""

FORMS = {"packed": "checkpoint", "dense": "dense"}
