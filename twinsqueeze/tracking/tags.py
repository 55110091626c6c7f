"""Names of the tags of runs and models."""

KIND = "twinsqueeze.kind"
DATASET = "twinsqueeze.dataset"
DATASET_DIGEST = "twinsqueeze.dataset_digest"
NOTICE = "twinsqueeze.notice"
TEST_DIGEST = "twinsqueeze.test_digest"
TASK = "twinsqueeze.task"  # name of a `Task`; runs without it are of similarity
RECIPE_DIGEST = "twinsqueeze.recipe_digest"
# JSON of the recipe fields whose value is not that of the parameter, which `mlflow run` logged as it was typed.
ADAPTED_FIELDS = "twinsqueeze.adapted_fields"
# A parameter: id of the run that trained the base of a training.
BASE_RUN = "base_run"
TRAINED_RUN = "twinsqueeze.trained_run"
GRID_DIGEST = "twinsqueeze.grid_digest"
STUDY = "twinsqueeze.study"  # digest of a study, of its run and its trials
TRIAL = "twinsqueeze.trial"  # a trial's number
TRIAL_STATE = "twinsqueeze.trial_state"  # complete, pruned or failed
# The process that records the run, a `ProcessIdentity` as JSON.
PROCESS = "twinsqueeze.process"
# The epoch from which an interrupted training was resumed, and the runs that it resumes.
RESUMED_FROM = "twinsqueeze.resumed_from"
RESUMES_RUN = "twinsqueeze.resumes_run"
# Prefix of a file's name: SHA-256 of that file of the run or model.
FILE_SHA256 = "twinsqueeze.sha256."
