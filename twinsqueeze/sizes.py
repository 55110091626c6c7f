"""Bytes of stored vectors. Apart from `precision`, whose NumPy a `--help` would wait for."""

# Said of rows where queries that are not quantised are compared with stored vectors, as in a search of codes.
FLOAT_QUERIES = "float queries"
# The product quantiser of FAISS's whose search is timed.
TIMED_QUANTISER = 32


def bytes_a_vector(precision: str, dim: int, part: int | None = None) -> int:
    """Bytes of a compressed vector.

    Args:
        precision: What it is stored as.
        dim: Its numbers.
        part: How many of them product codes make one byte of; needed for product alone.
    """
    if precision == "product":
        assert part
        return dim // part
    bits = {"float32": 32, "int8": 8, "binary": 1, "ubinary": 1}[precision]
    return -(-bits * dim // 8)
