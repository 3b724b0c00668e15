"""What a recipe says: a frozen dataclass for each of its tables. `config` fills them, `limits` checks their values.

The texts under the fields are what `fastmtl train RECIPE --help` shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .paper import PaperConfig


@dataclass(frozen=True)
class DataConfig:
    """What is read, and in which batches."""

    generator: Literal["", "colon", "slides"] = ""
    """Make this synthetic data set when no data folder is given: tiles of colon, or whole slides with polygons."""
    format: str = "auto"
    """How the data lie on disk: manifest, tile_folder, ...; auto looks."""
    root: str = ""
    """Folder that no path of a manifest may leave; the manifest's own when empty."""
    index_folder: str = ""
    """Where `fastmtl prepare --index-folder` put the slides' indexes; beside the slides when empty."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Kinds of a manifest's columns where they are not to be inferred: picture, label, number, vector, box, ..."""
    classes: dict[str, Any] = field(default_factory=dict)
    """Classes of label columns in order, for example grade = ["G1", "G2"]; sorted where they are not given."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the model sees beside the image: name in `Batch.metadata` -> columns."""
    tile_size: int = 256
    """Side of the tiles that whole slides are cut into, pixels at mpp."""
    mpp: float = 0.0
    """Micrometres per pixel of those tiles; 0 takes level 0."""
    overlap: int = 0
    """Pixels that neighbouring tiles of a slide share."""
    min_tissue: float = 0.5
    """Least share of such a tile that must be tissue."""
    polygon_classes: list[str] = field(default_factory=list)
    """Classes of polygons for maps of classes, the background first; empty draws all polygons as foreground."""
    polygon_offset: list[float] = field(default_factory=list)
    """x and y added to polygons' coordinates: a slide's bounds, where the viewer counted from them."""
    preprocessing: str = ""
    """What makes images 8-bit: min_max stretches 16-bit grey, image by image; empty takes them as they are."""
    mask_sampling: Literal["bilinear", "nearest"] = "bilinear"
    """How masks are brought to size: interpolated and cut at half, or the nearest pixel; class maps always nearest."""
    size: int = 128
    """Side of the square images the network sees, pixels."""
    batch_size: int = 16
    """Images a step, of each rank."""
    sampler: Literal["shuffled", "balanced", "pairs"] = "shuffled"
    """Every tile once; classes equally often; or pairs of neighbours, by the columns `case` and `position`."""
    pairs_apart: str = ""
    """Of the sampler of pairs: a column of which a batch has each value in one pair at most, such as the patient where
    cases are scans; else the case."""
    balance_by: str = ""
    """Label column whose classes the balanced sampler draws equally often; the label when empty."""
    open_slides: int = 0
    """Slides that are drawn from at a time; 0: all."""
    per_slide: int = 0
    """Tiles drawn of each slide in an epoch; 0: all."""
    patches_per_slide: int = 0
    """Instead of the grid's tiles, this many random patches of each slide, anew in each epoch; 0: the grid."""
    patient: str = "[^-]+"
    """Regular expression that finds the patient at the start of a file's name: its first group, or all it matches."""
    val_fraction: float = 0.2
    """Share of the tiles held out, whole patients at a time, where no split file and no column split says more."""
    test_fraction: float = 0.0
    """Share kept for a test that training never sees; 0.1 beside val_fraction = 0.2 splits 70 / 20 / 10."""
    folds: int = 0
    """Cross-validation: this many folds, of which `fold` is held out; 0 draws by val_fraction."""
    fold: int = 0
    """Which fold is held out, from 0."""
    group_by: str = ""
    """What a split keeps together: a column, an expression such as "{case}-{day}", or "tile", which lets a patient be
    on both sides; the patient when empty."""
    stratify: str = ""
    """Label column whose classes a split shares out evenly; the label when empty."""
    split_seed: int = 0
    """Of the draw of held-out patients."""
    max_tiles: int = 0
    """Train and validate on no more than this many tiles, classes evenly, drawn by split_seed; 0 takes all."""
    on_damaged: Literal["raise", "skip"] = "raise"
    """What to do with files that cannot be used: refuse to start, or leave them out."""
    max_damaged: float = 0.0
    """Share of the tiles that may turn out damaged during an epoch, others standing in; more, or any at 0, stops."""
    num_threads: int = 2
    """Threads that decode and augment."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where images are decoded and augmented; auto follows training.device."""
    augmentation: dict[str, Any] = field(default_factory=dict)
    """Fields of `fastmtl.data.Augmentation`."""
    stain: dict[str, Any] = field(default_factory=dict)
    """Stain normalisation: method = "macenko", target = an image file, and fields of `fastmtl.data.StainNormalizer`."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move."""

    optimizer: Literal["adamw", "adam", "sgd", "apex_adam", "apex_lamb"] = "adamw"
    lr: float = 1e-3
    """Learning rate at its highest."""
    weight_decay: float = 1e-2
    """On weights of two or more dimensions."""
    momentum: float = 0.9
    """For sgd."""
    find_lr: bool = False
    """Look for the learning rate before the first step, by a sweep over a few batches; what is found replaces lr."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """What the learning rate does after the warm-up: stay, fall to 0, or fall when the score stops to rise."""
    warmup: float = 0.05
    """Share of all steps over which the learning rate rises from 0."""
    plateau_factor: float = 0.1
    """Of the schedule plateau: what the learning rate is multiplied by."""
    plateau_patience: int = 10
    """Of the schedule plateau: how many epochs without a better score it waits."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how exact, and when to stop."""

    epochs: int = 10
    """Passes over the training tiles; with stages their sum, which nobody needs to say."""
    seed: int = 0
    """Of the weights, the order of tiles and their augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 autocast where the processor multiplies it in hardware, else float32."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    fused_step: Literal["auto", True, False] = "auto"
    """Combine, clip and step in one pass (balance.FusedStep); auto: where the optimizer and the device support it."""
    patience: int = 0
    """End a stage after this many epochs without a better validation score; 0 never ends it early."""
    average: Literal["", "ema", "swa"] = ""
    """Evaluate and keep a moving (ema, of every step) or plain (swa, of every epoch) average of the weights."""
    average_decay: float = 0.999
    """Of ema: the share of the old average that a step keeps."""
    average_start: int = 0
    """Epochs of a stage before its average begins."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights the run is judged by and predicts with: those of the epoch that scored best on the held-out images,
    or of the last epoch, which these had no part in choosing; averaged ones where there is an average."""
    tta: list[str] = field(default_factory=list)
    """Views besides the image itself that final scores and predictions average: h, v, r90, r180, r270."""
    log_every: int = 20
    """Steps between looks at the losses (each waits for the device)."""
    gradient_stats_every: int = 0
    """Steps between looks at the tasks' gradients, rounded up to a multiple of log_every; each costs a backward
    of every task. 0: only what balancers of gradients see anyway."""
    compile: bool = False
    """Run the network through torch.compile."""
    epoch_scale: float = 1.0
    """Multiplies epochs and patience, those of stages too, at least 1, and average_start; 1 again once that is done."""


@dataclass(frozen=True)
class StageConfig:
    """A part of the training: which tasks, what is frozen, how long, and what is done differently."""

    name: str
    """What metrics.jsonl and the report call it."""
    epochs: int
    """Passes over the training tiles."""
    tasks: list[str] = field(default_factory=list)
    """The tasks that it trains and is judged by; empty: all."""
    freeze: list[str] = field(default_factory=list)
    """Parts of the model that rest, for example "encoder"; those of earlier stages wake unless they are named again."""
    auxiliary_stride: int = 0
    """Encoder block that auxiliary tasks read from now on; 0 leaves it."""
    balancer: dict[str, Any] = field(default_factory=dict)
    """Instead of the recipe's."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Laid over the recipe's."""
    start: Literal["last", "best"] = "last"
    """The weights it begins with: the last of the stage before, or those that scored best there."""
    keep_optimizer: bool = False
    """Go on with the moments of the stage before; with its schedule too, where this stage has the same tasks and
    optimizer, and its balancer's state, where it has the same tasks and balancer."""


@dataclass(frozen=True)
class Recipe:
    """One training run, whole."""

    name: str
    summary: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=lambda: {"name": "joint_unet"})
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    balancer: dict[str, Any] = field(default_factory=lambda: {"name": "linear"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    stages: list[StageConfig] = field(default_factory=list)
    """One after the other; none is one stage of training.epochs with everything."""
    paper: PaperConfig = field(default_factory=PaperConfig)
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Overlays for smaller machines, by name: [scales.tiny.data] size = 64."""
