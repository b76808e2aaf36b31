"""The mean of the weights of several runs: `python -m checkpoints.recipe.average UNET UNET … --out UNET`.

Networks that were trained on from one start lie in one basin, and their mean often predicts noise better than
each of them (Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel


@torch.no_grad()
def average(unets: Sequence[UNet2DConditionModel]) -> UNet2DConditionModel:
    """A network with the mean of the weights of `unets`, which must be built alike.

    Raises:
        ValueError: there are none, or they are not built alike.
    """
    states = [unet.state_dict() for unet in unets]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if not states or any(some != shapes[0] for some in shapes):
        raise ValueError("only networks that are built alike have a mean")
    mean = UNet2DConditionModel.from_config(unets[0].config)
    mean.load_state_dict(
        {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}
    )
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unets", type=Path, nargs="+", metavar="UNET", help="folders of trained networks")
    parser.add_argument("--out", type=Path, required=True, help="folder for their mean")
    args = parser.parse_args()
    try:
        mean = average([UNet2DConditionModel.from_pretrained(folder).float() for folder in args.unets])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    mean.save_pretrained(args.out)


if __name__ == "__main__":
    main()
