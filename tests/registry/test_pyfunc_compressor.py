"""The model from code, which runs where this package is not installed."""

from tests.helpers.commands import ROOT


def test_the_model_from_code_imports_nothing_of_this_package():
    lines = (ROOT / "twinsqueeze" / "tracking" / "pyfunc" / "compressor.py").read_text().splitlines()
    assert not [line for line in lines if line.lstrip().startswith(("import ", "from ")) and "twinsqueeze" in line]
