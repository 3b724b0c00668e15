"""`fastmtl bench --codegen`: compiles the GPU kernels for Hopper without a GPU (table in benchmarks/README.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .hopper import KERNELS, Code, Kernel, compile_kernels

README = Path(__file__).resolve().parent / "README.md"
_BEGIN, _END = "<!-- codegen: begin -->", "<!-- codegen: end -->"
_LOSSES = (  # as benchmarks/inductor.py prints them: name, inputs, the label of our kernels, our kernels
    ("Dice + BCE", "[8, 1, 1024, 1024]", "f32-u8", "dice_bce_sums", "dice_bce_gradient"),
    ("softmax Dice + CE", "[4, 6, 512, 512]", "f32-u8-6", "softmax_sums", "softmax_gradient"),
    ("softmax Dice + CE", "[2, 14, 64, 64, 64]", "f32-u8-14", "softmax_sums", "softmax_gradient"),
    ("focal", "[8, 1, 1024, 1024]", "f32-u8", "sigmoid_focal_sums", "sigmoid_focal_gradient"),
)
_HEADER = "| kernel | registers | spilled bytes | shared bytes | widest load | 16-byte loads | bytes per element |"


def main() -> int:
    """Compile, print the table and write it between the markers; returns 1 if a kernel does not compile or spills."""
    print(f"Compiling {len(KERNELS)} kernels for sm_90, half a minute or more ...", file=sys.stderr, flush=True)
    try:
        found = compile_kernels(KERNELS)
    except RuntimeError as error:
        print(f"fastmtl bench --codegen: {error}", file=sys.stderr)
        return 1
    text = table(found)
    print(text)
    if README.exists():  # an installed package has none
        write(text, README)
    broken = [name for name, code in found.items() if code.error or code.spilled_bytes]
    for name in broken:
        print(f"{name}: {found[name].error or 'spills registers'}", file=sys.stderr)
    return int(bool(broken))


def table(found: dict[str, Code]) -> str:
    """All kernels, and below them Inductor's."""
    import torch
    import triton

    rows = [row(kernel, found[str(kernel)]) for kernel in KERNELS]
    head = [f"Triton {triton.__version__}, target sm_90, 16-byte aligned inputs.", "", _HEADER, "|---" * 7 + "|"]
    return "\n".join([*head, *rows, "", f"Inductor of torch {torch.__version__}: {_inductor()}"])


def row(kernel: Kernel, code: Code) -> str:
    """One line of the table; the tests look for it in the README."""
    if code.error:
        return f"| `{kernel}` | does not compile | | | | | |"
    widest = max(code.loads, default=0)
    figures = [code.registers, code.spilled_bytes, code.shared_bytes, widest, f"{code.wide_loads} of {len(code.loads)}"]
    return f"| `{kernel}` | {' | '.join(map(str, figures))} | {kernel.bytes_per_element or ''} |"


def write(text: str, path: Path) -> None:
    """Put `text` between the markers of `path`.

    Raises:
        ValueError: the markers are not there.
    """
    page = path.read_text(encoding="utf-8")
    if _BEGIN not in page or _END not in page:
        raise ValueError(f"{path} has lost its markers {_BEGIN} and {_END}; put them back where the table belongs.")
    before, rest = page.split(_BEGIN, 1)
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.split(_END, 1)[1]}", encoding="utf-8")


def _inductor() -> str:
    """Lines for Inductor's kernels of the same losses, from a separate process that fakes a driver."""
    command = [sys.executable, "-m", "fastmtl.benchmarks.inductor"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return f"its code could not be had without a GPU ({reason})."
    found = [line.split() for line in done.stdout.splitlines()[-2 * len(_LOSSES) :]]
    ours = {(kernel.label, kernel.name): kernel.bytes_per_element for kernel in KERNELS}
    lines = ["bytes per logit of the plain formulas on float32 logits and uint8 targets."]
    for (loss, shape, label, sums, gradient), forward, backward in zip(_LOSSES, found[::2], found[1::2], strict=True):
        lines.append(
            f"- {loss} {shape}: {_kernels(forward[0])} forward ({forward[1]}) and {_kernels(backward[0])} backward "
            f"({backward[1]}); ours 2 kernels ({ours[label, sums]}) and 1 kernel ({ours[label, gradient]})."
        )
    return "\n".join([*lines, "", "Inductor's registers are not known before it has timed block sizes on a GPU."])


def _kernels(number: str) -> str:
    return f"{number} kernel{'' if number == '1' else 's'}"


if __name__ == "__main__":
    sys.exit(main())
