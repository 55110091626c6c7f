"""Fields of a recipe, and messages for wrong values."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from twinsqueeze.errors import suggest, truncate_repr


def recipe_field(default: Any, description: str, allowed: str = "", **bounds: Any) -> Any:
    """Returns a field; `allowed` completes the message "NAME must be …" if its type and bounds do not say it all."""
    if allowed:
        bounds["json_schema_extra"] = {"allowed": allowed}
    return Field(default, description=description, **bounds)


def format_error(error: ValidationError, fields: Mapping[str, Any]) -> str:
    """Returns the message of the first error, given the JSON schema of each field."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    if name not in fields:
        hint = suggest(name, fields)
        return f"{truncate_repr(name)} is not a field of the recipe{hint}; the fields are {', '.join(fields)}"
    return f"{name} must be {_describe_allowed(fields[name])}, not {truncate_repr(first['input'])}"


def _describe_allowed(schema: Mapping[str, Any]) -> str:
    """Describes the allowed values of a field by its JSON schema."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return f"{', '.join(schema['enum'][:-1])} or {schema['enum'][-1]}"
    number = "a whole number" if schema["type"] == "integer" else "a finite number"
    if "exclusiveMinimum" in schema:
        return f"{number} above {schema['exclusiveMinimum']}"
    if "maximum" in schema:
        return f"{number} from {schema['minimum']} to {schema['maximum']}"
    return f"{number} of at least {schema['minimum']}"
