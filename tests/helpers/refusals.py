"""What users are told of input that cannot be used."""

from collections.abc import Callable
from typing import Any

import pytest

from twinsqueeze.errors import InputError


def refusal(load: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Returns the message of the `InputError` that a function raises, which is one line."""
    with pytest.raises(InputError) as refused:
        load(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)
