"""TwinSqueeze: small vectors for sentences, trained with NEFTune-style noise and tracked in MLflow."""

__version__ = "0.1.0"
