"""Compare the speed of previews with the stock pipeline's: python -m tools.speed [--json FILE]

Measures the embedded model, or with --shapes the networks of a published model with random weights, from
prompt embeddings to pictures in memory. Encoding a prompt, once for a grid, is left out on both sides.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tqdm import tqdm

from app.catalogue.table import ROOT
from tools.speed.measure import PREVIEWS, STEPS, build, load, matmul_rate, rows
from tools.speed.shapes import SHAPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = {"sd15": 512, "sdxl": 1024, "flux": 1024}
MATRIX_EDGE = {"cpu": 2048, "cuda": 8192, "mps": 4096}


def measure(
    shapes: str | None, size: int | None, device: torch.device, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """Measure and print all rows; return them with a description of the machine."""
    rate = matmul_rate(device, dtype, MATRIX_EDGE[device.type])
    place = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    precision = str(dtype).removeprefix("torch.")
    print(f"{shapes or 'landscapes'} on {device.type} ({place}), {precision}")
    print(f"Matrix products of {MATRIX_EDGE[device.type]}²: {rate:.2f} TFLOP/s")
    print(f"{PREVIEWS} previews of {STEPS} steps, from embeddings to pictures; shares of the time\n")
    print(f"{'':28}{'seconds':>9}{'first':>9}{'denoiser':>10}{'decoder':>9}{'of matmul rate':>16}")

    def make(precision: torch.dtype) -> Any:
        if shapes is None:
            return load(ROOT / "checkpoints" / "landscapes", device, precision)
        return build(SHAPES[shapes], size or SIZES[shapes], device, precision)

    found = []
    for row in tqdm(rows(make, dtype, repeats, rate), unit="row", disable=None, leave=False):
        found.append(row)
        line = f"{row['name']:28}{row['seconds']:9.3f}{row['first_preview_s']:9.3f}"
        if "denoiser_s" in row:
            line += f"{row['denoiser_share']:10.0%}{row['decoder_share']:9.0%}"
            line += f"{row['of_matmul_rate']:16.0%}"
        if "compiling_s" in row:
            waited, first = row["compiling_s"], row["first_while_compiling_s"]
            line += f"   compiled in {waited:.0f} s; first preview meanwhile in {first:.3f} s"
        tqdm.write(line)
    return {
        "shapes": shapes or "landscapes",
        "device": place,
        "dtype": precision,
        "torch": torch.__version__,
        "previews": PREVIEWS,
        "steps": STEPS,
        "matmul_tflop_per_s": rate,
        "rows": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", choices=SHAPES, help="published model (default: the embedded one)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help=f"edge of the pictures ({SIZES})")
    parser.add_argument("--device", choices=MATRIX_EDGE, help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs per median (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = DTYPES[arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    if arguments.size and (arguments.shapes is None or arguments.size % 64 or arguments.size < 64):
        parser.error("--size goes with --shapes and is a multiple of 64")
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        found = measure(arguments.shapes, arguments.size, device, dtype, arguments.repeats)
    except torch.OutOfMemoryError:
        print(f"These networks do not fit into the memory of this {device.type} device.", file=sys.stderr)
        return 2
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        print(f"Can't measure on this machine's {device.type} in {dtype}: {reason}", file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
