"""The latency command's file has a key for each figure that the docs show."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.models import ImageModel
from tools import latency
from tools.latency import Figure


@pytest.mark.slow
def test_the_file_has_each_figure_in_basic_units(
    model: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_app(*_: Any) -> Iterator[Figure]:
        yield Figure("peak_memory_bytes", "peak memory", 2**30, "GiB", 2, scale=2**-30)

    monkeypatch.setattr(latency, "open_model", lambda choice: model)
    monkeypatch.setattr(latency, "measure_app", measure_app)
    file = tmp_path / "latency.json"
    monkeypatch.setattr("sys.argv", ["latency", "--repeats", "1", "--json", str(file)])
    latency.main()
    results = json.loads(file.read_text())
    about = {"processor", "cores", "threads", "torch", "date", "device", "model"}
    assert set(results.pop("machine")) == about
    worker = {"previews_s", "refinement_s", "step_s", "decoding_s", "solver_share"}
    assert set(results) == worker | {"peak_memory_bytes"}
    assert 0 < results["step_s"] < results["previews_s"]
    assert 0 < results["solver_share"] < 1
    assert "1.00 GiB   (at most 2)" in capsys.readouterr().out
