"""One module per command: it computes with the library, records in MLflow and prints."""
