"""Peak memory and processor time of nnU-Net's training and validation steps with many labels, by its trainer and ours:

    python -m benchmarks.nnunet_step nnUNetTrainerFastmtl 64,96,96      # prints one line of JSON

Needs nnunetv2. One process measures one trainer, on the CPU, on a data set that it makes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmtl.integrations import nnunet
from fastmtl.utils.torchvision_guard import make_torchvision_importable

LABELS = 100
_PLAN = (
    "from fastmtl.utils.torchvision_guard import make_torchvision_importable as m; m(); "
    "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as p; p()"
)


def main(trainer_name: str, patch: list[int]) -> dict[str, Any]:
    make_torchvision_importable()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
        os.environ |= {"nnUNet_extTrainer": str(nnunet.TRAINERS), "nnUNet_compile": "f"}
        write_data_set(root / "raw" / "Dataset001_Boxes", (6, 8, 8))
        command = [sys.executable, "-c", _PLAN, "-d", "1", "-c", "3d_fullres", "-np", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return _measured(trainer_name, patch)


def write_data_set(base: Path, boxes: tuple[int, int, int]) -> None:
    """A data set in nnU-Net's raw format, of `LABELS` labels: six volumes of so many boxes of 4 x 4 x 4 voxels."""
    import nibabel

    random = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (base / name).mkdir(parents=True)
    for case in range(6):
        labels = random.integers(0, LABELS, boxes).repeat(4, 0).repeat(4, 1).repeat(4, 2)
        image = labels + random.normal(0, 1, labels.shape)
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)), base / f"imagesTr/c{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)), base / f"labelsTr/c{case}.nii.gz")
    names = {"background": 0} | {f"label {index}": index for index in range(1, LABELS)}
    facts = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 6, "file_ending": ".nii.gz"}
    (base / "dataset.json").write_text(json.dumps(facts))


def _measured(trainer_name: str, patch: list[int]) -> dict[str, Any]:
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer: Any = get_trainer_from_args("1", "3d_fullres", 0, trainer_name, device=torch.device("cpu"))
    trainer.configuration_manager.configuration["patch_size"] = patch
    trainer.print_to_log_file = lambda *words, **options: None
    torch.manual_seed(0)
    trainer.initialize()
    drawn = torch.Generator().manual_seed(0)
    sizes = [[int(size * scale) for size, scale in zip(patch, scales, strict=True)] for scales in _scales(trainer)]
    target = [torch.randint(0, LABELS, (2, 1, *size), generator=drawn).to(torch.int16) for size in sizes]
    batch = {"data": torch.randn((2, 1, *patch), generator=drawn), "target": target}
    trainer.network.train()
    before, steps = _peak(), []
    for _ in range(2):
        start = time.process_time()
        loss = float(trainer.train_step(dict(batch))["loss"])
        steps.append({"loss": loss, "processor_s": round(time.process_time() - start, 2)})
    result = {"trainer": trainer_name, "labels": LABELS, "patch": patch, "batch": 2, "steps": steps}
    result |= {"MiB_before": before, "MiB_more": _peak() - before}
    trainer.network.eval()
    start = time.process_time()
    with torch.no_grad():
        found = trainer.validation_step(dict(batch))
    result["validation"] = {"loss": float(found["loss"]), "processor_s": round(time.process_time() - start, 2)}
    result["validation"] |= {name: int(found[name].sum()) for name in ("tp_hard", "fp_hard", "fn_hard")}
    return result | {"MiB_more_with_validation": _peak() - before}


def _scales(trainer: Any) -> list[list[float]]:
    return trainer._get_deep_supervision_scales()


def _peak() -> int:
    """MiB of this process at most until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], [int(size) for size in sys.argv[2].split(",")])))
