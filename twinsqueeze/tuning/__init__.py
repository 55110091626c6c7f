"""Search for hyperparameters: search spaces, studies, and trials. Needs Optuna."""
