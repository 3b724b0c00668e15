"""`fastmtl bench --codegen`: compiles the GPU kernels for Hopper without a GPU (table in benchmarks/README.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .hopper import Compiled, compile_cases

README = Path(__file__).resolve().parent / "README.md"
_BEGIN, _END = "<!-- codegen: begin -->", "<!-- codegen: end -->"
_LOSSES = (  # as benchmarks/inductor.py prints them: name, inputs, our kernels that read the inputs, and their case
    ("Dice + BCE", "[8, 1, 1024, 1024]", "dice_bce_sums", "dice_bce_gradient", "f32-u8"),
    ("softmax Dice + CE", "[4, 6, 512, 512]", "softmax_sums", "softmax_gradient", "f32-u8-6"),
    ("softmax Dice + CE", "[2, 14, 64, 64, 64]", "softmax_sums", "softmax_gradient", "f32-u8-14"),
    ("focal", "[8, 1, 1024, 1024]", "sigmoid_focal_sums", "sigmoid_focal_gradient", "f32-u8"),
)
_HEADER = (
    "| kernel | bytes per element | instructions per element | barriers, shuffles | 16-byte loads | registers | "
    "warps per SM | full waves | predicted TB/s | bound by |"
)
_SMALL = "| kernel | registers | shared bytes | stack bytes |"


def main() -> int:
    """Compile, print the tables and write them between the markers; returns 1 if a kernel does not compile."""
    print("Compiling all cases for sm_90, a minute or two ...", file=sys.stderr, flush=True)
    try:
        found = compile_cases()
    except RuntimeError as error:
        print(f"fastmtl bench --codegen: {error}", file=sys.stderr)
        return 1
    text = tables(found)
    print(text)
    if README.exists():  # an installed package has none
        write(text, README)
    broken = [name for name, code in found.items() if code.error]
    for name in broken:
        print(f"{name} does not compile: {found[name].error}", file=sys.stderr)
    return int(bool(broken))


def tables(found: dict[str, Compiled]) -> str:
    """The kernels whose time depends on the size of the inputs, the others, and below them Inductor's."""
    import torch
    import triton

    large = [row(name, code) for name, code in found.items() if code.prediction]
    small = {}  # many cases launch the same code
    for name, code in found.items():
        if not code.prediction:
            small.setdefault((name.split("-")[0], code), row(name, code))
    lines = [f"Triton {triton.__version__}, target sm_90, 16-byte aligned inputs.", ""]
    lines += [
        _HEADER,
        "|---" * 10 + "|",
        *large,
        "",
        "Kernels that read little:",
        "",
        _SMALL,
        "|---" * 4 + "|",
        *small.values(),
    ]
    return "\n".join([*lines, "", f"Inductor of torch {torch.__version__}: {_inductor(found)}"])


def row(name: str, code: Compiled) -> str:
    """One line of a table."""
    if code.usage is None:
        return f"| `{name}` | does not compile | | |"
    if code.loop is None or code.prediction is None:
        return f"| `{name}` | {code.usage.registers} | {code.usage.shared_bytes} | {code.usage.stack_bytes} |"
    loop, wide = code.loop, sum(size == 16 for size in code.loop.loads)
    figures = [
        f"{code.bytes_per_element:.4g}",
        f"{code.instructions_per_element:.1f}",
        f"{loop.barriers}, {loop.shuffles}",
        f"{wide} of {len(loop.loads)}",
        f"{code.usage.registers}{f', stack of {code.usage.stack_bytes} bytes' * bool(code.usage.stack_bytes)}",
        f"{code.warps}",
        f"{code.prediction.full_waves:.0%}",
        f"{code.prediction.bandwidth / 1e12:.2f}",
        code.prediction.bound,
    ]
    return f"| `{name}` | {' | '.join(figures)} |"


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


def _inductor(found: dict[str, Compiled]) -> str:
    """Lines for Inductor's kernels of the same losses, from a separate process that fakes a driver."""
    command = [sys.executable, "-m", "fastmtl.benchmarks.inductor"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return f"its code could not be had without a GPU ({reason})."
    theirs = [line.split() for line in done.stdout.splitlines()[-2 * len(_LOSSES) :]]
    lines = ["bytes per logit of the plain formulas on float32 logits and uint8 targets."]
    for (loss, shape, *ours, case), forward, backward in zip(_LOSSES, theirs[::2], theirs[1::2], strict=True):
        sums, gradient = (found[f"{name}-{case}"] for name in ours)
        launches = gradient.launches.index(ours[1]), len(gradient.launches) - gradient.launches.index(ours[1])
        lines.append(
            f"- {loss} {shape}: {_kernels(forward[0])} forward ({forward[1]}) and {_kernels(backward[0])} backward "
            f"({backward[1]}); ours {_kernels(launches[0])} ({sums.bytes_per_element:.4g}) and "
            f"{_kernels(launches[1])} ({gradient.bytes_per_element:.4g})."
        )
    return "\n".join([*lines, "", "Inductor's registers are not known before it has timed block sizes on a GPU."])


def _kernels(number: str | int) -> str:
    return f"{number} kernel{'' if str(number) == '1' else 's'}"


if __name__ == "__main__":
    sys.exit(main())
