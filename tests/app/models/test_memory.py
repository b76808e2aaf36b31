"""What is free is returned to the system."""

import platform

import psutil
import pytest
import torch

from app.models.memory import release_free_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_gaps_between_tensors_are_returned() -> None:
    gap, count = 2**16, 2000
    tensors = [torch.ones(gap // 4) for _ in range(count)]
    kept = tensors[::2]
    del tensors
    process = psutil.Process()
    before = process.memory_info().rss
    release_free_memory()
    assert before - process.memory_info().rss > gap * count / 2 * 0.7
    assert all(tensor.sum() == gap // 4 for tensor in kept)
