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
# The epoch that an interrupted training was resumed from, and the interrupted runs that a run resumes or repeats.
RESUMED_FROM = "twinsqueeze.resumed_from"
RESUMES_RUN = "twinsqueeze.resumes_run"


# Before the name of one file, of a run or its model: its SHA-256.
FILE_SHA256 = "twinsqueeze.sha256."
