"""The drawings on disk: `python -m checkpoints.recipe.data` renders them once for every later stage.

Picture i of a split is a pure function of (split, i), so that rendering can be cut off and resumed, and a
fresh drawing is simply an index that no training has seen.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.recipe.drawing import draw, draw_with_layout
from checkpoints.recipe.drawing.canvas import LAYOUT_SIZE, SIZE
from checkpoints.recipe.scenes import ATTRIBUTES, Scene, sample_scene

SPLITS = {"train": 0, "fresh": 1}
"""Split -> the first entropy word of its generators. `fresh` is for measuring only."""
CHUNK = 64


def scene_of(split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """The scene of picture `index`, and the generator that draws its layout."""
    rng = np.random.default_rng((SPLITS[split], index))
    return sample_scene(rng), rng


def picture_of(split: str, index: int) -> tuple[np.ndarray, Scene]:
    """Picture `index`, (256, 256, 3) uint8, and its scene."""
    scene, rng = scene_of(split, index)
    return draw(scene, rng), scene


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The rendered training pictures (n, 256, 256, 3) uint8, memory-mapped, and their labels (n, 15).

    Raises:
        FileNotFoundError: nothing was rendered in `folder` yet.
        RuntimeError: rendering was cut off; run it again to finish.
    """
    if not (folder / "labels.npy").exists():
        raise FileNotFoundError(f"no drawings in {folder}: run `python -m checkpoints.recipe.data` first")
    if not np.load(folder / "done.npy").all():
        raise RuntimeError(
            f"the drawings in {folder} are incomplete: run `python -m checkpoints.recipe.data` again"
        )
    return np.load(folder / "pictures.npy", mmap_mode="r"), np.load(folder / "labels.npy")


def load_layouts(folder: Path) -> np.ndarray:
    """What is where in the training pictures (n, 32, 32) uint8, memory-mapped; see `draw_with_layout`."""
    load(folder)  # says what to do where nothing or too little was rendered
    return np.load(folder / "layouts.npy", mmap_mode="r")


def to_pixels(pictures: np.ndarray, device: torch.device | None = None) -> Tensor:
    """Drawings (n, h, w, 3) uint8 as the networks see them, (n, 3, h, w) in -1..1."""
    return torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr_db(pictures: Tensor, others: Tensor, span: float = 2.0) -> Tensor:
    """PSNR in dB of each picture, (n,), where values span `span`: 2 for -1..1, 1 for 0..1."""
    return -10 * torch.log10((pictures - others).square().mean((1, 2, 3)) / span**2)


def _draw_chunk(folder: Path, chunk: int) -> int:
    """Draw one chunk into the files of `folder`: pictures need not travel between processes."""
    files = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("pictures", "layouts", "labels"))
    pictures, layouts, labels = files
    for i in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        scene, rng = scene_of("train", i)
        pictures[i], layouts[i] = draw_with_layout(scene, rng)
        labels[i] = scene.labels()
    return chunk


def render(folder: Path, count: int, workers: int) -> None:
    """Render `count` training pictures (rounded up to whole chunks of 64), skipping what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    n = chunks * CHUNK

    def open_array(name: str, dtype: str, shape: tuple[int, ...]) -> np.memmap:
        path = folder / f"{name}.npy"
        if path.exists() and np.load(path, mmap_mode="r").shape == shape:
            return np.lib.format.open_memmap(path, mode="r+")
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    if not (folder / "layouts.npy").exists():  # rendered before there were layout maps
        (folder / "done.npy").unlink(missing_ok=True)
    done = open_array("done", "bool", (chunks,))
    open_array("pictures", "uint8", (n, SIZE, SIZE, 3))
    open_array("labels", "int64", (n, len(ATTRIBUTES)))
    open_array("layouts", "uint8", (n, LAYOUT_SIZE, LAYOUT_SIZE))
    todo = np.flatnonzero(~done).tolist()
    with mp.Pool(workers) as pool:
        drawn = pool.imap_unordered(partial(_draw_chunk, folder), todo)
        for chunk in tqdm(drawn, total=len(todo), unit="chunk", desc="drawings"):
            done[chunk] = True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/landscapes"), help="where all stages keep their files"
    )
    parser.add_argument("--count", type=int, default=28_672, help="number of training pictures")
    parser.add_argument("--workers", type=int, default=mp.cpu_count(), help="processes that draw")
    args = parser.parse_args(argv)
    render(args.work / "drawings", args.count, args.workers)


if __name__ == "__main__":
    main()
