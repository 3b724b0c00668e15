"""The tables of a recipe as frozen dataclasses; `validation` checks their values.

`fastmtl train RECIPE --help` shows the texts under the fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .paper import PaperConfig
from .sets import SetConfig


@dataclass(frozen=True)
class DataConfig:
    """The data and their batches."""

    generator: Literal["", "colon", "slides"] = ""
    """Synthetic data set to generate without --data: colon tiles, or whole slides with polygons."""
    format: str = "auto"
    """Format of the data: manifest, tile_folder, ...; auto detects it."""
    root: str = ""
    """Folder that contains all paths of a manifest; the manifest's own if empty."""
    index_folder: str = ""
    """Folder of slide indexes (`fastmtl prepare --index-folder`), and of the record of sound files, which need no check
    at the next start; beside the slides and in the run folder if empty."""
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    """Kinds of a manifest's columns instead of the inferred ones: picture, label, number, vector, box, ..."""
    classes: dict[str, Any] = field(default_factory=dict[str, Any])
    """Classes of label columns in order, for example grade = ["G1", "G2"]; sorted if not given."""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """Input of the model besides the image: name in `Batch.metadata` -> columns."""
    tile_size: int = 256
    """Side of the tiles of whole slides, pixels at mpp."""
    mpp: float = 0.0
    """Micrometres per pixel of those tiles; 0 takes level 0."""
    overlap: int = 0
    """Overlap of neighbouring tiles of a slide, pixels."""
    min_tissue: float = 0.5
    """Smallest share of tissue in a tile."""
    polygon_classes: list[str] = field(default_factory=list[str])
    """Classes of polygons for maps of classes, the background first; empty draws all polygons as foreground."""
    polygon_rename: dict[str, str] = field(default_factory=dict[str, str])
    """Class of polygons -> the class to draw it by; "" is no class, and "background" is the background."""
    polygon_ignore: list[str] = field(default_factory=list[str])
    """Classes whose area counts in no loss and no metric; requires polygon_classes."""
    polygon_region: str = ""
    """Class of the areas that are annotated: outside them nothing counts, and tiles have no mask; requires
    polygon_classes."""
    unannotated: Literal["background", "unlabelled"] = "background"
    """What files without any polygon mean: an empty mask, or no mask."""
    polygon_offset: list[float] = field(default_factory=list[float])
    """x and y added to polygon coordinates, for viewers that measure from the slide's bounds."""
    preprocessing: str = ""
    """Conversion to 8 bits: min_max stretches 16-bit grey per image; empty: none."""
    mask_sampling: Literal["bilinear", "nearest"] = "bilinear"
    """How masks are resized: interpolated and thresholded at 0.5, or nearest pixel; class maps always use nearest."""
    size: int = 128
    """Side of the network's square input images, pixels."""
    mean: list[float] = field(default_factory=list[float])
    """Subtracted from the images, RGB in 0..1; that of model.weights or of the encoder's published weights if empty."""
    std: list[float] = field(default_factory=list[float])
    """Then divided by."""
    other_normalization: bool = False
    """Accept a mean and std other than those of the images that model.weights were trained on."""
    batch_size: int = 16
    """Images per step, on each rank."""
    val_batch_size: int = 0
    """Images per batch in evaluation; 0: batch_size."""
    sampler: Literal["shuffled", "balanced", "pairs"] = "shuffled"
    """Every tile once, classes equally often, or pairs of neighbours by the columns `case` and `position`."""
    pairs_apart: str = ""
    """For the pairs sampler: a column whose values occur in at most one pair of a batch, for example the patient if a
    case is a scan; the case if empty."""
    balance_by: str = ""
    """Label column whose classes the balanced sampler draws equally often; the label if empty."""
    balance_power: float = 1.0
    """For the balanced sampler: a class of n tiles is drawn in proportion to n^(1 - balance_power). 1: equally often;
    0.5: by the square root of its size, which repeats rare tiles less often."""
    open_slides: int = 0
    """Number of slides that tiles are drawn from at the same time; 0: all."""
    tile_cache: int = 256
    """MiB of decoded slide tiles that each process keeps, of tiles much larger than the regions read from them."""
    per_slide: int = 0
    """Tiles drawn from each slide per epoch; 0: all."""
    patches_per_slide: int = 0
    """Number of random patches per slide, new in each epoch, instead of the grid's tiles; 0: the grid."""
    patient: str = "[^-]+"
    """Regular expression for the patient at the start of a file name: its first group, or the whole match."""
    val_fraction: float = 0.2
    """Fraction of the tiles held out, by whole patients, if there is no split file and no column split."""
    test_fraction: float = 0.0
    """Fraction of the tiles for a test set, never used in training; 0.1 with val_fraction = 0.2 splits 70 / 20 / 10."""
    inner_fraction: float = 0.0
    """Fraction of the training tiles, by whole patients, that watches the training: it chooses the epoch and stops, and
    the held-out images choose nothing. 0: the held-out images watch."""
    folds: int = 0
    """Number of folds for cross-validation, of which `fold` is held out; 0 splits by val_fraction."""
    fold: int = 0
    """The fold that is held out, from 0."""
    group_by: str = ""
    """What a split keeps together: a column, an expression such as "{case}-{day}", or "tile" (a patient may then be on
    both sides); the patient if empty."""
    site: str = ""
    """Where images come from, for splits by whole sites (hospitals): a column, an expression over columns, or
    "tcga_site", read from TCGA barcodes; empty: a site may be on both sides."""
    stratify: str = ""
    """Label column whose classes a split distributes evenly; the label if empty."""
    split_seed: int = 0
    """Random seed for choosing the held-out patients."""
    max_tiles: int = 0
    """Train and validate on at most this many tiles, drawn evenly from the classes by split_seed; 0: all."""
    require: list[str] = field(default_factory=list[str])
    """Columns that a tile must have: "mask", "label" or a further column; tiles without one are left out."""
    on_damaged: Literal["raise", "skip"] = "raise"
    """What to do with damaged files: refuse to start, or skip them."""
    on_duplicates: Literal["raise", "keep"] = "raise"
    """What to do with images or slides that are equal, byte for byte, and on two sides of the split: refuse to start,
    or keep them, with a notice."""
    max_damaged: float = 0.0
    """Fraction of tiles that may fail during an epoch and are replaced by others; more failures stop the training."""
    sets: list[SetConfig] = field(default_factory=list[SetConfig])
    """Data sets side by side, [[data.sets]], instead of one; each is read with the other keys of this table."""
    sets_temperature: float = 1.0
    """Sets of n training tiles are drawn in proportion to n^(1 / sets_temperature). 1: all tiles equally often."""
    sets_batches: Literal["one", "mixed"] = "one"
    """A step's batch is of one set, and only the tasks of this set are computed; or of all sets."""
    sets_zeta: list[float] = field(default_factory=list[float])
    """Zeta1 and zeta2 of PiKE: after each epoch the sets' shares follow the size and the noise of their gradients.
    Empty: constant shares."""
    sets_floor: float = 0.1
    """With sets_zeta: the least share of a set, relative to equal shares."""
    sets_probe_every: int = 10
    """With sets_zeta: gradients are measured on every n-th batch of a set, from the first of each epoch on."""
    num_threads: int = 2
    """Threads that decode and augment."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where images are decoded and augmented; auto: on training.device."""
    augmentation: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of `fastmtl.data.Augmentation`."""
    stain: dict[str, Any] = field(default_factory=dict[str, Any])
    """Stain normalisation: method = "macenko", target = an image file, and fields of `fastmtl.data.StainNormalizer`."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    optimizer: Literal["adamw", "adam", "sgd", "apex_adam", "apex_lamb"] = "adamw"
    lr: float = 1e-3
    """Highest learning rate."""
    encoder_lr_factor: float = 1.0
    """Learning rate of the encoder relative to lr, for example 0.1 with pretrained weights."""
    layer_decay: float = 1.0
    """Further factor for each of the encoder's feature maps that a layer comes before: earlier layers learn more
    slowly."""
    weight_decay: float = 1e-2
    """For weights of two or more dimensions."""
    momentum: float = 0.9
    """For sgd."""
    find_lr: bool = False
    """Find the learning rate before the first step by a sweep over a few batches; it replaces lr."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """Learning rate after the warm-up: constant, decaying to 0 (cosine), or reduced when training.monitor stops
    improving."""
    warmup: float = 0.05
    """Fraction of all steps in which the learning rate rises from 0."""
    plateau_factor: float = 0.1
    """For the schedule plateau: factor by which the learning rate is multiplied."""
    plateau_patience: int = 10
    """For the schedule plateau: epochs without a better training.monitor before the rate is reduced."""


@dataclass(frozen=True)
class TrainingConfig:
    """The length, the precision and the evaluation of the training."""

    epochs: int = 10
    """Passes over the training tiles; with stages, the sum of their epochs (set automatically)."""
    seed: int = 0
    """Seed of the weights, the order of tiles and their augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 autocast if the hardware supports it natively, else float32."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    fused_step: Literal["auto", True, False] = "auto"
    """Combine, clip and step in one pass (balance.FusedStep); auto: if the optimizer and the device support it."""
    monitor: Literal["score", "loss"] = "score"
    """What chooses the best epoch, stops early and reduces the rate of the schedule plateau: the mean of the tasks'
    primary metrics, or the sum of their validation losses with the balancer's constant weights (1 if it has none)."""
    monitor_tasks: list[str] = field(default_factory=list[str])
    """For monitor = "loss": the tasks whose losses count; empty: all."""
    patience: int = 0
    """Stop a stage after this many epochs without a better `monitor`; 0: never stop early."""
    average: Literal["", "ema", "swa"] = ""
    """Evaluate and keep a moving (ema, of every step) or plain (swa, of every epoch) average of the weights."""
    average_decay: float = 0.999
    """For ema: weight of the old average in each step."""
    average_start: int = 0
    """Epochs of a stage before its average begins."""
    checkpoint: Literal["best", "last"] = "best"
    """Weights for evaluation and prediction: of the epoch with the best `monitor` on the held-out images, or of the
    last epoch, which does not depend on these images; averaged weights if `average` is set."""
    tta: list[str] = field(default_factory=list[str])
    """Test-time views that final scores and predictions average with the image itself: h, v, r90, r180, r270."""
    freeze_random: bool = False
    """Accept frozen modules with random weights, which learn nothing: for trials of a recipe without its weights."""
    on_nonfinite: Literal["raise", "skip", "restore"] = "raise"
    """After a step whose loss or gradient is NaN or infinite, which never changes a weight: stop, continue, or go back
    to the last checkpoint and leave the batch out."""
    spike_factor: float = 0.0
    """A step in which the loss of a task is above this many times its median over the last 100 steps is skipped, and
    `on_nonfinite` says what follows, as for a loss that is NaN. 0: no limit."""
    max_skipped: float = 0.05
    """For on_nonfinite = "skip": fraction of an epoch's steps that may be skipped; more, or 10 in a row, stop the
    training."""
    max_restores: int = 3
    """For on_nonfinite = "restore", which max_skipped does not limit: how often a stage may go back; the next time the
    training stops."""
    log_every: int = 20
    """Steps between reads of the losses (each waits for the device)."""
    gradient_stats_every: int = 0
    """Steps between measurements of the tasks' gradients, rounded up to a multiple of log_every; each costs a backward
    pass per task. 0: only what gradient balancers measure anyway."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; 0: only at its end, before and after the validation."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch; 0: only by checkpoint_minutes."""
    keep_checkpoints: int = 2
    """Checkpoints to keep, besides the best one: if the newest is damaged, the run resumes from the one before it."""
    on_disk_error: Literal["stop", "continue"] = "stop"
    """When a checkpoint or a record cannot be written because the disk is full, read-only or failing: stop, or continue
    the training and try again at the next save."""
    compile: bool = False
    """Run the network through torch.compile."""
    rank_timeout: float = 300.0
    """With several ranks: seconds to wait for one that does not answer; then all end and name it."""
    epoch_scale: float = 1.0
    """Factor for epochs and patience (also of stages, at least 1) and for average_start; 1 after it is applied."""


@dataclass(frozen=True)
class DistributedConfig:
    """How several ranks train one model; with one rank, none of it has an effect."""

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """ddp: every rank has the whole model, and the balancer averages the gradients. fsdp2: every rank has a part of
    each parameter, gradient and moment, for models whose gradients and moments do not fit one GPU."""
    replicas: int = 1
    """For fsdp2: copies of the model, each divided among ranks / replicas ranks (HSDP)."""
    sync_batchnorm: bool = False
    """Normalise with the batch of all ranks (torch.nn.SyncBatchNorm, on GPUs only) instead of each rank's own."""


@dataclass(frozen=True)
class StageConfig:
    """A part of the training with its own tasks, frozen modules, length and options."""

    name: str
    """The stage's name in metrics.jsonl and in the report."""
    epochs: int
    """Passes over the training tiles."""
    tasks: list[str] = field(default_factory=list[str])
    """The tasks that are trained and scored in this stage; empty: all."""
    freeze: list[str] = field(default_factory=list[str])
    """Modules to freeze, for example "encoder"; those of earlier stages are unfrozen unless listed again."""
    auxiliary_stride: int = 0
    """Encoder block that auxiliary tasks read from this stage on; 0: no change."""
    balancer: dict[str, Any] = field(default_factory=dict[str, Any])
    """Replaces the recipe's balancer."""
    optimizer: dict[str, Any] = field(default_factory=dict[str, Any])
    """Merged into the recipe's optimizer."""
    start: Literal["last", "best"] = "last"
    """The initial weights: the last or the best ones of the previous stage."""
    keep_optimizer: bool = False
    """Keep the optimizer moments of the previous stage; also its schedule, if tasks and optimizer are the same, and its
    balancer's state, if tasks and balancer are the same."""


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    name: str
    summary: str = ""
    protocol: Literal["", "unbiased", "published"] = ""
    """Which images may choose the epoch: "unbiased" refuses to start if the scored images would, "published" ignores
    data.inner_fraction, as most papers do; "" does neither."""
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=lambda: {"name": "joint_unet"})
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    balancer: dict[str, Any] = field(default_factory=lambda: {"name": "linear"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    stages: list[StageConfig] = field(default_factory=list[StageConfig])
    """Stages run one after the other; without any there is one stage of training.epochs with all tasks."""
    paper: PaperConfig = field(default_factory=PaperConfig)
    scales: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Overlays for smaller machines, by name: [scales.tiny.data] size = 64."""
