"""Code that MLflow stores with every logged model."""
