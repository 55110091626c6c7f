"""MLflow's model registry: the versions of the registered model, and which of them is in use."""

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import UTC, datetime

import mlflow
from mlflow.entities.model_registry import ModelVersion

from twinsqueeze.errors import InputError
from twinsqueeze.registry import model_loader
from twinsqueeze.tracking import run, run_logger
from twinsqueeze.tracking.tags import TRAINED_RUN
from twinsqueeze.utils import console, signals
from twinsqueeze.utils.text import describe_error, redact_credentials

NAME = "twinsqueeze"
CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
# A registered model that is there while a process changes these.
LOCK = "twinsqueeze-being-changed"
WAIT_SECONDS = 0.05
DEAD_SECONDS = 60.0


ALREADY_THERE, NOT_THERE = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"


DEV_DIGEST = "twinsqueeze.dev_digest"
LABELS = "twinsqueeze.labels"
REPLACES = "twinsqueeze.replaces"
ROLLED_BACK = "twinsqueeze.rolled_back"
# What a database keeps of a version's description.
DESCRIPTION_LENGTH = 5000
ABOUT = "Text to short vectors that keep their cosine. In use: the alias champion; before it: previous."


@dataclass(frozen=True)
class Version:
    """A version of the registered model.

    Attributes:
        number: 1, 2, 3 and so on.
        aliases: What it is called at present.
        tags: What is known of it.
    """

    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """Its model's."""
        return f"models:/{NAME}/{self.number}"

    def __str__(self) -> str:
        return f"version {self.number}" + (f" ({', '.join(self.aliases)})" if self.aliases else "")


def check_registry() -> None:
    """Asks the registry for an answer, so that nothing long begins in vain.

    Raises:
        InputError: If it gives none.
    """
    uri = mlflow.get_registry_uri()
    run.check_tracking_server("model registry", "MLFLOW_REGISTRY_URI")
    try:
        mlflow.MlflowClient().search_registered_models(max_results=1)
    except Exception as error:  # stores that are not there answer with exceptions of many kinds
        raise InputError(
            f"the model registry {redact_credentials(uri)} can't be used ({describe_error(error)}): "
            "point MLFLOW_REGISTRY_URI, or MLFLOW_TRACKING_URI, at one that is there"
        ) from error


def champion() -> Version | None:
    """The version in use."""
    return next((version for version in versions() if CHAMPION in version.aliases), None)


def version_of(run_id: str) -> Version | None:
    """The newest version whose compressor a run trained."""
    return next((version for version in versions() if version.tags.get(TRAINED_RUN) == run_id), None)


def versions() -> list[Version]:
    """All versions, the newest first; none where the model is not registered."""
    client = mlflow.MlflowClient()
    found = client.search_registered_models(f"name = '{NAME}'")
    if not found:
        return []
    aliases: dict[int, list[str]] = {}
    for alias, number in found[0].aliases.items():
        aliases.setdefault(int(number), []).append(alias)
    listed: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{NAME}'", page_token=token)
        listed += page
        token = page.token
        if not token:
            break
    read = [Version(int(v.version), tuple(sorted(aliases.get(int(v.version), ()))), v.tags) for v in listed]
    return sorted(read, key=lambda version: -version.number)


def add_version(model_id: str, description: str, tags: Mapping[str, str]) -> Version:
    """Registers a logged model as a new version, without an alias.

    Args:
        model_id: Of the logged model.
        description: Markdown; cut where a database would cut it.
        tags: What is to be known of it; the SHA-256 of its files is added.
    """
    client = mlflow.MlflowClient()
    _make(NAME, ABOUT)
    digests = {model_loader.FILES_SHA256: model_loader.compute_model_digests(model_id)}
    client.set_logged_model_tags(model_id, digests)
    tags = {**tags, **digests}
    with redirect_stderr(io.StringIO()):  # where it says that the name exists already, of a first version too
        made = mlflow.register_model(f"models:/{model_id}", NAME, tags=tags)
    version = Version(int(made.version), (), tags)
    describe(version, description)
    return version


def describe(version: Version, description: str) -> None:
    """Sets a version's description, Markdown; cut where a database would cut it."""
    mlflow.MlflowClient().update_model_version(NAME, str(version.number), _cut(description))


def _cut(text: str) -> str:
    if len(text) <= DESCRIPTION_LENGTH:
        return text
    rest = f"\n\nCut here; the whole card is the model's extra_files/{run_logger.CARD_FILE}."
    return text[: DESCRIPTION_LENGTH - len(rest)].rpartition("\n")[0] + rest


def assign_alias_if_unchanged(version: Version, judged_against: Version | None, *, promoted: bool) -> bool:
    """Makes a version the champion or the challenger, if it was judged against what is the champion still.

    Args:
        version: Of the model that was judged.
        judged_against: The champion of that time.
        promoted: Whether the version was better.

    Returns:
        Whether it was; otherwise nothing has changed.
    """
    with _alone():
        if _number(champion()) != _number(judged_against):
            return False
        if promoted:
            promote(version, judged_against)
        else:
            set_challenger(version)
        return True


def _number(version: Version | None) -> int | None:
    return version.number if version else None


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps other processes from changing what is in use, wherever they run, for the moment that it takes us.

    Registries have no locks, but only one process can make a registered model of a name that is not there.
    """
    client = mlflow.MlflowClient()
    seen, since = None, time.monotonic()
    while not _make(LOCK, "Some process is changing which version of twinsqueeze is in use, and removes this."):
        signals.check_interrupted()
        found = client.search_registered_models(f"name = '{LOCK}'")
        made = found[0].creation_timestamp if found else None
        if made is None or made != seen:
            seen, since = made, time.monotonic()
        elif time.monotonic() - since > DEAD_SECONDS:
            console.info(f"the process that was changing the champion for {DEAD_SECONDS:.0f} seconds is taken for dead")
            _remove(LOCK)
        time.sleep(WAIT_SECONDS)
    with signals.defer_signals(then_stop=True):
        try:
            yield
        finally:
            _remove(LOCK)


def _make(name: str, description: str) -> bool:
    """Makes a registered model; tells whether it did, or another process has one there."""
    client = mlflow.MlflowClient()
    if client.search_registered_models(f"name = '{name}'"):
        return False
    try:
        client.create_registered_model(name, description=description)
    except mlflow.MlflowException as error:
        # Where one was there, MLflow looks it up, and doesn't find it if it was removed in between.
        if error.error_code not in (ALREADY_THERE, NOT_THERE):
            raise
        return False
    return True


def _remove(name: str) -> None:
    try:
        mlflow.MlflowClient().delete_registered_model(name)
    except mlflow.MlflowException as error:
        if error.error_code != NOT_THERE:
            raise


def promote(version: Version, former: Version | None) -> None:
    """Makes a version the champion; the former one keeps `previous`."""
    client = mlflow.MlflowClient()
    with signals.defer_signals(then_stop=True):
        if former:
            client.set_model_version_tag(NAME, str(version.number), REPLACES, str(former.number))
            client.set_registered_model_alias(NAME, PREVIOUS, str(former.number))
        client.set_registered_model_alias(NAME, CHAMPION, str(version.number))


def set_challenger(version: Version) -> None:
    """Makes a version the challenger, in the place of any other."""
    mlflow.MlflowClient().set_registered_model_alias(NAME, CHALLENGER, str(version.number))


def roll_back() -> tuple[Version | None, Version]:
    """Makes the previous champion the champion again.

    `previous` then goes to the one before it, where that is still there, so that rolling back again goes back further.

    Returns:
        The version that was champion, and the one that is now.

    Raises:
        InputError: If there is no previous champion.
    """
    with _alone():
        known = versions()
        if not known:
            store = redact_credentials(mlflow.get_registry_uri())
            raise InputError(f"there is no registered model {NAME!r} in {store}: `register` makes one of the best run")
        former = next((version for version in known if CHAMPION in version.aliases), None)
        back = next((version for version in known if PREVIOUS in version.aliases), None)
        if back is None:
            raise InputError(f"the registered model {NAME!r} has no version `{PREVIOUS}` to go back to")
        before = next((v for v in known if str(v.number) == back.tags.get(REPLACES)), None)
        client = mlflow.MlflowClient()
        client.set_registered_model_alias(NAME, CHAMPION, str(back.number))
        if before:
            client.set_registered_model_alias(NAME, PREVIOUS, str(before.number))
        else:
            client.delete_registered_model_alias(NAME, PREVIOUS)
        if former:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            client.set_model_version_tag(NAME, str(former.number), ROLLED_BACK, now)
    return former, back
