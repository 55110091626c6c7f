"""What the tags of runs and models are called."""

KIND = "twinsqueeze.kind"
DATASET = "twinsqueeze.dataset"
DATASET_DIGEST = "twinsqueeze.dataset_digest"
NOTICE = "twinsqueeze.notice"
TEST_DIGEST = "twinsqueeze.test_digest"
RECIPE_DIGEST = "twinsqueeze.recipe_digest"
TRAINED_RUN = "twinsqueeze.trained_run"
GRID_DIGEST = "twinsqueeze.grid_digest"
# Who writes the run, so that others see whether it still lives.
PROCESS = "twinsqueeze.process"
# From which epoch an interrupted training was gone on with, and the runs that had been at it.
RESUMED_FROM = "twinsqueeze.taken_up"
RESUMES_RUN = "twinsqueeze.continues"


# Before the name of one file, of a run or its model: its SHA-256.
FILE_SHA256 = "twinsqueeze.sha256."
