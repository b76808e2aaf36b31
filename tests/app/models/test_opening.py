"""From a choice to a model that runs: names, folders, what does not fit, other solvers, offloading."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.catalogue import name_of
from app.jobs.job import Done
from app.models import Choice, ImageModel, ModelError, open_model
from app.models.offloading import offload
from app.worker import Worker
from solver import ConsistencySolverScheduler, Policy
from tests.conftest import make_job


@pytest.fixture
def solver(tmp_path: Path) -> Path:
    """The folder of a policy for another noise schedule, and for other guidance scales."""
    folder = tmp_path / "another"
    ConsistencySolverScheduler(beta_start=0.002, beta_end=0.05).save_pretrained(folder)
    Policy(steps=(3, 9), guidance=(6.0, 9.0)).save(folder / "policy.safetensors")
    config = (folder / "scheduler_config.json").read_text()
    config = config.replace('"policy_file": null', '"policy_file": "policy.safetensors"')
    (folder / "scheduler_config.json").write_text(config)
    return folder


def test_a_folder_opens_under_its_own_name(tiny_folder: Path) -> None:
    model = open_model(Choice(str(tiny_folder), "cpu"))
    assert model.facts.name == name_of(str(tiny_folder)) == "tiny"
    assert model.facts.warnings == ()


def test_names_are_those_that_models_open_under(tmp_path: Path) -> None:
    assert name_of("landscapes") == "landscapes"
    assert name_of("black-forest-labs/FLUX.1-dev") == "flux-dev"
    assert name_of("somebody/something") == "somebody/something"
    (tmp_path / "mine.safetensors").write_bytes(b"")
    assert name_of(str(tmp_path / "mine.safetensors")) == "mine"


def test_solver_weights_of_another_schedule_work_with_a_warning(tiny_folder: Path, solver: Path) -> None:
    facts = open_model(Choice(str(tiny_folder), "cpu", solver=solver)).facts
    (warning,) = facts.warnings
    assert "another noise schedule" in warning and "guidance scales of 6 to 9, and 3" in warning
    assert "Previews may be worse" in warning


def test_a_damaged_solver_is_refused_in_words(tiny_folder: Path, solver: Path) -> None:
    weights = solver / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="another can't be used"):
        open_model(Choice(str(tiny_folder), "cpu", solver=solver))
    with pytest.raises(ModelError, match=r"no solver folder .*--solver"):
        open_model(Choice(str(tiny_folder), "cpu", solver=solver / "none"))


def test_what_does_not_fit_is_refused_before_loading(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.catalogue.fitting.free_memory", lambda device: 1000)
    monkeypatch.setattr("app.models.opening.load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"tiny needs .* of memory on this cpu device, and 0.0 GiB are free"):
        open_model(Choice(str(tiny_folder), "cpu"))


def test_offloading_is_for_gpus(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="--offload model needs a GPU"):
        open_model(Choice(str(tiny_folder), "cpu", offload="model"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_cut_off_weights_are_refused_in_words(part: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"{part}.*is cut off: it has .* bytes of"):
        open_model(Choice(str(folder), "cpu"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_in_words(
    part: str, value: float, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = list(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=rf"1 of \d+ weights of the {part} in .*: {name}, for example.*download the model again",
    ):
        open_model(Choice(str(folder), "cpu"))


def test_tokenizers_without_words_or_with_too_many_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    words = json.loads(tokenizer.read_text())
    words["model"]["vocab"]["zeppelin"] = len(words["model"]["vocab"])
    tokenizer.write_text(json.dumps(words))
    with pytest.raises(ModelError, match="the tokenizer has 33 tokens, but its text encoder 32"):
        open_model(Choice(str(folder), "cpu"))
    for path in tokenizer.parent.iterdir():
        path.unlink()
    with pytest.raises(ModelError, match=r"tokenizer has no vocabulary: .* is needed\. Download it again"):
        open_model(Choice(str(folder), "cpu"))


def test_renamed_pickles_and_missing_indexes_are_refused_in_words(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = next((folder / "unet").glob("*.safetensors"))
    torch.save({"x": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match="a PyTorch pickle under another name"):
        open_model(Choice(str(folder), "cpu"))
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"it has no model_index\.json"):
        open_model(Choice(str(folder), "cpu"))


def test_one_part_at_a_time_makes_the_same_pictures(
    tiny_folder: Path, model: ImageModel, worker: Worker
) -> None:
    mine = open_model(Choice(str(tiny_folder), "cpu"))
    moved: list[tuple[str, str]] = []
    for name, part in mine.diffusion.parts.items():
        if isinstance(part, torch.nn.Module):
            _note_moves(name, part, moved)
    offload(mine.diffusion.parts, torch.device("cpu"))
    assert mine.offloaded and not model.offloaded
    moved.clear()
    job = make_job(model, steps=3)
    offloaded = Worker(mine, costs=replace(worker.costs, decode_s=60.0))  # too dear for pictures on the way
    try:
        made, plain = (list(each.submit(job).events())[-1] for each in (offloaded, worker))
    finally:
        offloaded.close()
    assert isinstance(made, Done) and isinstance(plain, Done)
    assert np.array_equal(np.asarray(made.picture), np.asarray(plain.picture))
    # Each is there for its turn, and leaves for the next.
    assert [name for name, _ in moved] == ["text_encoder", "text_encoder", "unet", "unet", "vae"]


def _note_moves(name: str, part: torch.nn.Module, moved: list[tuple[str, str]]) -> None:
    to: Any = part.to

    def noted(*args: Any, **kwargs: Any) -> Any:
        moved.append((name, str(args[:1])))
        return to(*args, **kwargs)

    part.to = noted  # type: ignore[method-assign]
