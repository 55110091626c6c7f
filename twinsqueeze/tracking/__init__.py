"""Records runs in MLflow."""
