"""Bytes of stored vectors. Apart from `precision`, whose NumPy a `--help` would wait for."""

# Numbers that product codes make one byte of.
PART = 4
# Said of rows where queries that are not quantised are compared with stored vectors, as in a search of codes.
FLOAT_QUERIES = "float queries"
# The product quantiser of FAISS's whose search is timed.
TIMED_QUANTISER = 32


def bytes_a_vector(precision: str, dim: int) -> int:
    """Bytes of a compressed vector of `dim` numbers."""
    bits = {"float32": 32, "int8": 8, "product": 8 // PART, "binary": 1, "ubinary": 1}[precision]
    return -(-bits * dim // 8)
