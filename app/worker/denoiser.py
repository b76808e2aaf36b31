"""Call the network for a batch of samples."""

import logging
from collections.abc import Sequence

import torch

from app.models import ImageModel
from app.models.memory import split_on_oom
from app.worker.sample import Sample
from solver.diffusion import Conditions, SampleError

log = logging.getLogger(__name__)

# After memory ran out, batches grow again after so many calls.
CAREFUL_CALLS = 200


class BatchDenoiser:
    """Calls a model's network with a batch; with smaller ones where memory runs out, for a while.

    Attributes:
        max_rows: limit on the rows of the next batch, or None for no limit.
    """

    def __init__(self, model: ImageModel) -> None:
        self.max_rows: int | None = None
        self._model = model
        self._calls = self._too_many = 0

    def denoise(self, batch: Sequence[Sample]) -> list[torch.Tensor | SampleError]:
        """The network's guided output [C, H, W] for each sample, at its own timestep and guidance scale.

        A sample that fails alone gets its error instead.
        """
        fitting = rows = _rows(batch)

        def call(part: Sequence[Sample]) -> list[torch.Tensor | SampleError]:
            nonlocal fitting
            if not part:
                return []
            try:
                outputs = self._model.diffusion.denoise(
                    torch.stack([sample.state.model_input() for sample in part]),
                    torch.tensor([sample.state.timestep for sample in part]),
                    Conditions.cat([sample.prompt for sample in part]),
                    Conditions.cat([sample.negative for sample in part]),
                    torch.tensor([sample.job.guidance for sample in part]),
                )
            except SampleError as error:
                others = call([*part[: error.row], *part[error.row + 1 :]])
                return [*others[: error.row], error, *others[error.row :]]
            wait_for_device(self._model.device)
            fitting = min(fitting, _rows(part))
            return list(outputs)

        outputs = split_on_oom(call, batch)
        if fitting < rows:
            self.max_rows, self._too_many = fitting, rows
            log.warning("Memory ran out with %d rows; going on with %d at a time", rows, fitting)
        elif self.max_rows and self._calls % CAREFUL_CALLS == 0:
            self.max_rows = 2 * self.max_rows if 2 * self.max_rows < self._too_many else None
        self._calls += 1
        return outputs


def _rows(batch: Sequence[Sample]) -> int:
    return sum(sample.rows for sample in batch)


def wait_for_device(device: torch.device) -> None:
    """Wait until the device has done all its work; otherwise times are wrong and cancelling comes late."""
    if device.type != "cpu":
        torch.accelerator.current_stream(device).synchronize()
