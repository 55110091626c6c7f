"""The compressor: layers, quantizers, initialization, files."""
