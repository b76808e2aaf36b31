"""Call the network for a batch of samples."""

import logging
from collections.abc import Sequence

import torch

from app.models import ImageModel
from app.models.memory import split_on_oom
from app.worker.sample import Sample
from solver.diffusion import Conditions

log = logging.getLogger(__name__)

# After memory ran out, batches grow again after so many calls.
CAREFUL_CALLS = 200


class BatchDenoiser:
    """Calls a model's network with a batch; with smaller ones where memory runs out, for a while.

    Args:
        knee: the most rows that a batch has where memory is not short.

    Attributes:
        max_rows: limit on the rows of the next batch, or None for no limit.
    """

    def __init__(self, model: ImageModel, knee: int) -> None:
        self.max_rows: int | None = None
        self._model, self._knee = model, knee
        self._calls = 0

    def denoise(self, batch: Sequence[Sample]) -> list[torch.Tensor]:
        """The network's guided output [C, H, W] for each sample, at its own timestep and guidance scale."""
        fitting = len(batch)

        def call(part: Sequence[Sample]) -> list[torch.Tensor]:
            nonlocal fitting
            outputs = self._model.diffusion.denoise(
                torch.stack([sample.state.model_input() for sample in part]),
                torch.tensor([sample.state.timestep for sample in part]),
                Conditions.cat([sample.prompt for sample in part]),
                Conditions.cat([sample.negative for sample in part]),
                torch.tensor([sample.job.guidance for sample in part]),
            )
            wait_for_device(self._model.device)
            fitting = min(fitting, len(part))
            return list(outputs)

        outputs = split_on_oom(call, batch)
        if fitting < len(batch):
            self.max_rows = 2 * fitting
            log.warning("Memory ran out at %d pictures; going on with %d at a time", len(batch), fitting)
        elif self.max_rows and self._calls % CAREFUL_CALLS == 0:
            self.max_rows = 2 * self.max_rows if self.max_rows < self._knee else None
        self._calls += 1
        return outputs


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has done all its work; otherwise times are wrong and cancelling comes late."""
    if device.type != "cpu":
        torch.accelerator.current_stream(device).synchronize()
