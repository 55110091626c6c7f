"""Fields of a recipe with defaults, bounds and help texts, and messages for wrong values."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinsqueeze.errors import suggest, truncate_repr

# Value of `base` without a base.
NO_BASE = "none"
LabelTransform = Literal["tanh", "linear"]
LABEL_TRANSFORMS: tuple[str, ...] = get_args(LabelTransform)
MAX_UNLABELED_SENTENCES = 24_000  # as many come with the package


def recipe_field(default: Any, description: str, allowed: str = "", **bounds: Any) -> Any:
    """Returns a field; `allowed` completes the message "NAME must be …" if its type and bounds do not say it all."""
    if allowed:
        bounds["json_schema_extra"] = {"allowed": allowed}
    return Field(default, description=description, **bounds)


class RecipeFields(BaseModel):
    """The fields of `Recipe`, in the order of options and tables."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alpha: float = recipe_field(
        0.75,
        "Strength of the NEFTune-style noise. Every training step adds U(-1, 1) * alpha / sqrt(d) to each of the d "
        "components of a sentence's unit vector: noise of norm about alpha / sqrt(3). 0 trains without noise.",
        ge=0,
    )
    dim: int = recipe_field(32, "Output dimension; at most the encoder's dimension.", ge=2)
    base: str = recipe_field(
        NO_BASE,
        "Trained compressor to start from: a run id, a model URI such as models:/twinsqueeze@champion, or a folder; "
        "none for the initial weights of init. Its architecture, dim, quantizer, subvector_dim and codes_per_subvector "
        "are used. Codebooks are fitted again to the train vectors. A run records 16 hex digits of the SHA-256 of its "
        "weights.",
        "none, a run id, a model URI or the path of a folder",
        min_length=1,
    )
    epochs: int = recipe_field(
        200,
        "Passes over the training pairs. The last epoch's weights are used. 0 only fits the codebooks of a base again.",
        "a whole number of at least 1, or 0 with a base",
        ge=0,
    )
    batch_size: int = recipe_field(32, "Sentence pairs per training step.", ge=1)
    lr: float = recipe_field(2e-4, "Adam's learning rate.", gt=0)
    lr_schedule: Literal["constant", "cosine", "linear"] = recipe_field(
        "constant",
        "Learning rate schedule, where t is the fraction of steps done. constant: lr; cosine: "
        "lr * (1 + cos(pi * t)) / 2; linear: lr * (1 - t).",
    )
    weight_decay: float = recipe_field(
        0.0,
        "Decoupled weight decay as in AdamW: every step subtracts lr * weight_decay of each weight. 0 is Adam.",
        ge=0,
    )
    seed: int = recipe_field(
        0,
        "Seeds the initial weights, the order of pairs, the noise and the sampled neighborhoods, each in a random "
        "stream of its own.",
        ge=0,
        le=2**31 - 1,
    )
    architecture: Literal["mlp", "linear"] = recipe_field(
        "mlp",
        "Layers of the compressor. mlp: d -> 128 -> 64 -> dim with ReLU between; linear: d -> dim.",
    )
    init: Literal["random", "pca", "teacher"] = recipe_field(
        "random",
        "Initial weights. random: PyTorch's default for mlp, orthogonal rows otherwise; pca: the first principal "
        "components of the train sentences' vectors; teacher: the first principal components of the teacher, which is "
        "a projection if teacher is encoder. Not used with a base.",
        "random, or for a linear compressor pca or teacher",
    )
    subvector_dim: int = recipe_field(
        4, "Dimensions that the product quantizer encodes together (FAISS: dsub). Ignored by other quantizers.", ge=1
    )
    codes_per_subvector: int = recipe_field(
        1,
        "Bytes per subvector of the product quantizer. Each byte after the first encodes what those before it leave "
        "(residual quantization).",
        ge=1,
        le=8,
    )
    quantizer: Literal["none", "product", "sign"] = recipe_field(
        "none",
        "Quantizer that the vectors are trained and evaluated with. none: float32; product: each subvector becomes "
        "one of 256 centroids, a byte, or the sum of several; sign: the signs, one bit each.",
        "none or sign, or product for a linear compressor whose dim is a multiple of subvector_dim",
    )
    codebook_lr: float = recipe_field(
        0.0,
        "Adam's learning rate for the centroids of a product quantizer, with the schedule of lr; for losses "
        "without scores. 0 keeps those that k-means finds before the training.",
        ge=0,
    )
    loss: Literal["mse", "pearson", "infonce", "none"] = recipe_field(
        "mse",
        "Training loss. mse: mean squared error of the pair's cosine to the label; pearson: 1 - Pearson correlation "
        "of cosines and labels in the batch; infonce: cross-entropy of a query's passage among the passages of the "
        "batch; none: the neighborhood loss alone, over sentences without pairs if the pairs have scores.",
    )
    infonce_temperature: float = recipe_field(0.05, "Temperature of infonce: softmax(cosine / temperature).", gt=0)
    neighbor_weight: float = recipe_field(
        0.0,
        "Weight of the neighborhood loss: the KL divergence between the softmax of the teacher's cosines and that of "
        "the compressed cosines. 0 disables it.",
        ge=0,
    )
    num_neighbors: int = recipe_field(
        0,
        "Sentences that the neighborhood loss compares. With a loss on scores, 0: those of the batch; n: 512 sampled "
        "train sentences, each sampled with its n nearest neighbors by the encoder. With another, each query of the "
        "batch adds n of its 20 nearest train vectors to the candidates.",
        ge=0,
        le=100,
    )
    num_candidates: int = recipe_field(
        0,
        "Random train vectors among which the queries of every batch are searched, besides the passages of the batch. "
        "For losses without scores.",
        ge=0,
        le=65_536,
    )
    unlabeled_sentences: int = recipe_field(
        0,
        "Sentences of WordNet that come with the package. They join the train sentences where no scores are needed: "
        "initial weights, centroids, and the neighborhoods.",
        ge=0,
        le=MAX_UNLABELED_SENTENCES,
    )
    neighbor_temperature: float = recipe_field(
        0.05, "Temperature of the neighborhood loss: softmax(cosine / temperature).", gt=0
    )
    teacher: Literal["encoder", "whitened", "projection"] = recipe_field(
        "encoder",
        "Teacher of the neighborhood loss. encoder: the encoder's vectors; whitened: the same with partly whitened "
        "principal components; projection: a d -> d linear projection that is first trained on the pairs.",
    )
    teacher_whitening: float = recipe_field(
        0.0,
        "Power of its variance by which each principal component of a whitened teacher, or of a projection before its "
        "training, is divided. 0.5 whitens.",
        ge=0,
        le=0.5,
    )
    teacher_alpha: float = recipe_field(
        2.0, "Strength of the noise while that projection is trained. Ignored if the recipe needs none.", ge=0
    )
    teacher_interpolation: float = recipe_field(
        1.0,
        "Weights of that projection: 0: its initial ones, a rotation of the centered encoder; 1: its trained ones; "
        "between: their weighted mean (WiSE-FT, arXiv 2109.01903). Less keeps more neighbors of the encoder.",
        ge=0,
        le=1,
    )
    label_transform: LabelTransform = recipe_field(
        "tanh", "Label y of a score s from 0 to 5. tanh: (tanh(4 * (s/5 - 0.5)) + 1) / 2; linear: s/5."
    )
    encoder: str = recipe_field(
        "all-MiniLM-L6-v2",
        "Frozen sentence encoder: a sentence-transformers name or a folder. The default's weights are installed with "
        "the package. With `:bfloat16` behind the name, its matrix products are in bfloat16, which is faster on GPUs "
        "and CPUs with AMX or avx512_bf16.",
        "the name of a sentence-transformers model or the path of its folder",
        min_length=1,
    )
    dataset: str = recipe_field(
        "auto",
        "What to train on. stsb: STS-B from the Hub; demo: bundled pairs, not a benchmark; a Hub id; a file or folder "
        "of scored pairs, of queries with passages, of texts, or of vectors, as .npy, .parquet, .csv, .tsv, .jsonl or "
        ".txt. auto: stsb if it is cached or the Hub answers within 5 s, demo otherwise.",
        "auto, stsb, demo, a Hub id or the path of a file or folder",
        min_length=1,
    )
    device: Literal["auto", "cpu", "cuda"] = recipe_field(
        "auto", "Training device. auto: cuda if available, cpu otherwise."
    )


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
