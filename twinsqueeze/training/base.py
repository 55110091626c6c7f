"""The base of a training: a trained compressor that it starts from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from twinsqueeze.data.encoder import SentenceEncoder
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import CheckpointMetadata, weights_digest
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import BASE_FIELDS, Recipe
from twinsqueeze.task import NO_ENCODER


@dataclass(frozen=True, eq=False)
class Base:
    """A trained compressor that trainings start from; `load` makes one.

    Attributes:
        name: What the user called it.
        run_id: MLflow's id of the run that trained it, if it is known.
    """

    name: str
    network: CompressorNetwork
    metadata: CheckpointMetadata
    run_id: str | None = None

    @classmethod
    def load(
        cls, name: str, network: CompressorNetwork, metadata: CheckpointMetadata | None, run_id: str | None = None
    ) -> Self:
        """Returns the base; raises an `InputError` for weights of another program."""
        if metadata is None:
            raise InputError(f"base {name!r} does not record its recipe: pass a compressor that twinsqueeze trained")
        return cls(name, network, metadata, run_id)

    @cached_property
    def digest(self) -> str:
        """The value of `Recipe.base` in records: a digest, since an alias may name another model tomorrow."""
        return weights_digest(self.network)

    @property
    def description(self) -> str:
        """What it is, such as "best-a0-s0, trained on stsb in run 0123…"."""
        run = f" in run {self.run_id}" if self.run_id else ""
        return f"{self.metadata.recipe.name}, trained on {self.metadata.dataset}{run}"

    def adapt_recipe(self, recipe: Recipe) -> Recipe:
        """Returns a recipe with the fields that the base fixes, and its digest as `base`.

        The default of a field stands for the base's value, since `mlflow run` passes the defaults of MLproject on.
        Raises an `InputError` for any other value.
        """
        own, defaults = self.metadata.recipe, Recipe()
        changes = {"base": self.digest, "init": defaults.init}
        for field in BASE_FIELDS:
            value, fixed = getattr(recipe, field), getattr(own, field)
            if value not in (fixed, getattr(defaults, field)):
                raise InputError(f"{field} must be {fixed}, as in base {self.name!r}, not {value}: leave it out")
            changes[field] = fixed
        if recipe.encoder == defaults.encoder and own.encoder != NO_ENCODER:
            changes["encoder"] = own.encoder
        return recipe.model_copy(update=changes)

    def check_input(self, encoder: SentenceEncoder | None, dim: int) -> None:
        """Raises an `InputError` unless the base compresses vectors of an encoder, None if unknown, of `dim` floats."""
        if dim != self.network.input_dim:
            raise InputError(f"base {self.name!r} takes vectors of {self.network.input_dim} floats, not of {dim}")
        known = self.metadata.encoder_fingerprint
        if encoder and known not in (encoder.fingerprint, NO_ENCODER):
            raise InputError(
                f"base {self.name!r} was trained with encoder {self.metadata.recipe.encoder!r}, whose files are not "
                f"those of {encoder.name!r}: pass the encoder of the base"
            )


def resolve_bases(recipes: Sequence[Recipe], load: Callable[[str], Base]) -> tuple[list[Recipe], dict[str, Base]]:
    """Returns the recipes adapted to their bases, which `load` loads by name, and the bases by digest."""
    loaded = {name: load(name) for name in dict.fromkeys(recipe.base for recipe in recipes if recipe.has_base)}
    adapted = [loaded[recipe.base].adapt_recipe(recipe) if recipe.has_base else recipe for recipe in recipes]
    return adapted, {base.digest: base for base in loaded.values()}
