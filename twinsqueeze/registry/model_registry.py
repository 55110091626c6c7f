"""The registered model `twinsqueeze` in MLflow's model registry: its versions and their aliases."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import mlflow

from twinsqueeze.errors import InputError
from twinsqueeze.registry import model_loader
from twinsqueeze.reporting.formats import truncate_lines
from twinsqueeze.tracking import model_files
from twinsqueeze.tracking.store import canonical_uri
from twinsqueeze.tracking.tags import TRAINED_RUN
from twinsqueeze.utils import signals

NAME = "twinsqueeze"
DESCRIPTION = (
    "Sentence embedding models with short vectors. Alias `champion`: in use. Alias `previous`: used before it."
)
CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
# Tags of versions.
DEV_DIGEST = "twinsqueeze.dev_digest"
LABEL_TRANSFORM = "twinsqueeze.label_transform"
REPLACES = "twinsqueeze.replaces"
ROLLED_BACK = "twinsqueeze.rolled_back"
MAX_DESCRIPTION_LENGTH = 5000  # databases store at most this many characters
SETTLE_SECONDS = 1.0  # longer than a process takes from reading the champion to setting the alias


@dataclass(frozen=True)
class Version:
    """A version of the registered model; the first one has number 1."""

    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"version {self.number}" + (f" ({', '.join(self.aliases)})" if self.aliases else "")


def list_versions() -> list[Version]:
    """List all versions, the newest first; an empty list if the model is not registered."""
    client = mlflow.MlflowClient()
    models = client.search_registered_models(f"name = '{NAME}'")
    if not models:
        return []
    versions = []
    for found in client.search_model_versions(f"name = '{NAME}'"):  # their own aliases are empty
        aliases = sorted(alias for alias, number in models[0].aliases.items() if int(number) == int(found.version))
        versions.append(Version(int(found.version), tuple(aliases), found.tags))
    return sorted(versions, key=lambda version: version.number, reverse=True)


def find_alias(alias: str) -> Version | None:
    """Return the version that has an alias."""
    return next((version for version in list_versions() if alias in version.aliases), None)


def find_trained_by(run_id: str) -> Version | None:
    """Return the newest version whose compressor was trained by a run."""
    return next((version for version in list_versions() if version.tags.get(TRAINED_RUN) == run_id), None)


def add_version(model_id: str, description: str, tags: Mapping[str, str]) -> Version:
    """Register a logged model as a new version without an alias; its source is the run that the tags name.

    The digests of its files become a file of the model, whose digest becomes a tag.
    """
    client = mlflow.MlflowClient()
    digests = {model_loader.DIGESTS_SHA256: model_loader.store_model_digests(model_id)}
    client.set_logged_model_tags(model_id, digests)
    tags = {**tags, **digests}
    with suppress(mlflow.MlflowException):  # it exists
        client.create_registered_model(NAME, description=DESCRIPTION)
    # `mlflow.register_model` would record no run.
    source = f"models:/{model_id}"
    registered = client.create_model_version(NAME, source, tags.get(TRAINED_RUN), tags, model_id=model_id)
    version = Version(int(registered.version), (), tags)
    set_description(version, description)
    return version


def set_description(version: Version, description: str) -> None:
    """Set a version's description (Markdown), truncated at a line break to `MAX_DESCRIPTION_LENGTH`."""
    note = f"Truncated. Full model card: extra_files/{model_files.CARD_FILE} of the model."
    text = truncate_lines(description, MAX_DESCRIPTION_LENGTH, note)
    mlflow.MlflowClient().update_model_version(NAME, str(version.number), text)


def assign_alias_if_unchanged(version: Version, champion: Version | None, *, promoted: bool) -> bool:
    """Make a version the champion or the challenger; return False if the champion has changed: compare and call again.

    A registry has no atomic compare-and-set. The champion is therefore checked before and after the alias is set:
    if two processes set it at once, the first one finds its alias overwritten.
    """
    if _number(find_alias(CHAMPION)) != _number(champion):
        return False
    if not promoted:
        _set_alias(CHALLENGER, version)
        return True
    with signals.defer_signals(then_stop=True):
        promote(version, champion)
        time.sleep(SETTLE_SECONDS)
        return _confirm_promotion(version)


def promote(version: Version, former: Version | None) -> None:
    """Make a version the champion; the former champion gets the alias `previous`."""
    if former:
        mlflow.MlflowClient().set_model_version_tag(NAME, _number(version), REPLACES, _number(former))
        _set_alias(PREVIOUS, former)
    _set_alias(CHAMPION, version)


def _number(version: Version | None) -> str:
    """The number as MLflow writes it; empty without a version."""
    return str(version.number) if version else ""


def _set_alias(alias: str, version: Version) -> None:
    client = mlflow.MlflowClient()
    try:
        client.set_registered_model_alias(NAME, alias, _number(version))
    except mlflow.MlflowException:  # another process inserted the alias at once: the second call updates it
        client.set_registered_model_alias(NAME, alias, _number(version))


def _confirm_promotion(version: Version) -> bool:
    """Return whether a version is the champion or one of its predecessors; if not, remove its tag `REPLACES`."""
    replaced = {_number(other): other.tags.get(REPLACES, "") for other in list_versions()}
    number = _number(find_alias(CHAMPION))
    while number in replaced:
        if number == _number(version):
            return True
        number = replaced.pop(number)
    mlflow.MlflowClient().delete_model_version_tag(NAME, _number(version), REPLACES)
    return False


def roll_back() -> tuple[Version | None, Version]:
    """Make the previous champion the champion again; return the champion before the call, and the restored one."""
    client = mlflow.MlflowClient()
    versions = {_number(version): version for version in list_versions()}
    if not versions:
        store = canonical_uri(mlflow.get_registry_uri())
        raise InputError(f"registered model {NAME!r} not found in {store}: create it with `register`")
    by_alias = {alias: version for version in versions.values() for alias in version.aliases}
    replaced, restored = by_alias.get(CHAMPION), by_alias.get(PREVIOUS)
    if restored is None:
        raise InputError(f"registered model {NAME!r} has no alias `{PREVIOUS}` to roll back to")
    before = versions.get(restored.tags.get(REPLACES, ""))
    with signals.defer_signals(then_stop=True):
        _set_alias(CHAMPION, restored)
        if before:
            _set_alias(PREVIOUS, before)
        else:
            client.delete_registered_model_alias(NAME, PREVIOUS)
        if replaced:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            client.set_model_version_tag(NAME, _number(replaced), ROLLED_BACK, now)
    return replaced, restored
