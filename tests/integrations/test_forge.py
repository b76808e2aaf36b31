"""The extension of A1111 and Forge, on a stand-in for what it imports there and how samplers are called."""

import dataclasses
import importlib.util
import inspect
import sys
import types
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from integrations import k_diffusion
from solver import NoiseSchedule, make_plan, sample
from tests.integrations.comfy_stand_in import Const, Model, Sampling
from tests.integrations.test_diffusers import learned_plan
from tests.solver.toys import FLOW, NOISE, SD, network, relative_error

FOLDER = Path(k_diffusion.__file__).parent / "forge"


@dataclasses.dataclass
class Scheduler:
    """What a schedule is registered as."""

    name: str
    label: str
    function: Any
    default_rho: float = -1
    need_inner_model: bool = False


class KDiffusionSampler:
    """Calls a sampler as theirs does: with sigmas where it names them, everything else by keyword."""

    def __init__(self, func: Any, model: Model) -> None:
        self.func, self.model = func, model

    def run(self, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        given = {"sigmas": sigmas} if "sigmas" in inspect.signature(self.func).parameters else {}
        assert given and not {"n", "sigma_min", "eta"} & inspect.signature(self.func).parameters.keys()
        return self.func(self.model.denoised, x, extra_args={}, disable=False, callback=None, **given)


@pytest.fixture(params=["A1111", "Forge"])
def web(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The extension, loaded as a script; what it registered is in `modules`."""
    settings: list[Any] = []
    options = SimpleNamespace(add_option=lambda key, info: settings.append((key, info)))
    data = namedtuple("data", ["name", "constructor", "aliases", "options"])
    entries: dict[str, dict[str, Any]] = {
        "script_callbacks": {"on_ui_settings": lambda callback: callback()},
        "sd_samplers": {"all_samplers": [], "all_samplers_map": {}, "set_samplers": lambda: None},
        "sd_samplers_common": {"SamplerData": data},
        "sd_samplers_kdiffusion": {"KDiffusionSampler": KDiffusionSampler},
        "sd_schedulers": {"Scheduler": Scheduler, "schedulers": [], "schedulers_map": {}},
        "shared": {
            "opts": options,
            "sd_model": SimpleNamespace(),
            "OptionInfo": lambda *given, **named: SimpleNamespace(given=given, **named),
        },
    }
    modules = types.ModuleType("modules")
    monkeypatch.setitem(sys.modules, "modules", modules)
    for name, attributes in entries.items():
        module = types.ModuleType(f"modules.{name}")
        module.__dict__.update(attributes)
        setattr(modules, name, module)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
    monkeypatch.syspath_prepend(str(FOLDER))  # as extensions' folders are
    path = FOLDER / "scripts" / "consistency_solver.py"
    spec = importlib.util.spec_from_file_location(path.name, path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def choose(config: dict[str, Any]) -> Model:
        S = NoiseSchedule.from_config(config)
        model = Model(network, (Const if S.is_flow else Sampling)(S, rounded=False))
        loaded = modules.shared.sd_model
        if request.param == "Forge":
            kind = "const" if S.is_flow else "epsilon"
            predictor = SimpleNamespace(prediction_type=kind)
            loaded.forge_objects = SimpleNamespace(
                unet=SimpleNamespace(model=SimpleNamespace(predictor=predictor))
            )
        else:
            loaded.is_sd3 = S.is_flow
        return model

    yield SimpleNamespace(script=script, modules=modules, choose=choose, settings=settings, options=options)
    for name in [name for name in sys.modules if name.startswith("lib_consistency_solver")]:
        del sys.modules[name]


def picture(web: Any, model: Model, steps: int) -> torch.Tensor:
    """What the program does for a picture: levels by the sampler's own schedule, then the sampler."""
    (entry,) = web.modules.sd_samplers.all_samplers
    scheduler = web.modules.sd_schedulers.schedulers_map[entry.options["scheduler"]]
    table = model.sampling.sigmas
    inner = SimpleNamespace(sigmas=table)
    sigmas = scheduler.function(
        n=steps, sigma_min=float(table[0]), sigma_max=float(table[-1]), inner_model=inner, device="cpu"
    )
    x = model.sampling.noise_scaling(sigmas[0], NOISE, torch.zeros_like(NOISE), True)
    return entry.constructor(model).run(x, sigmas)


@pytest.mark.parametrize("config", [SD, {**SD, "prediction_type": "v_prediction"}, FLOW])
def test_the_sampler_makes_the_plan_s_picture(web: Any, config: dict[str, Any]) -> None:
    model = web.choose(config)
    for steps in (4, 9):
        expected = sample(make_plan("unipc", steps, config), network, NOISE)
        assert relative_error(picture(web, model, steps), expected) < 1e-5


def test_a_chosen_file_of_plans_is_followed(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = learned_plan(SD, 6)
    plan.save(tmp_path / "mine.json")
    monkeypatch.setattr(web.script, "PLANS", tmp_path)
    setattr(web.options, web.script.OPTION, "mine")
    assert relative_error(picture(web, web.choose(SD), 6), sample(plan, network, NOISE)) < 1e-5


def test_it_registers_once_and_adds_its_setting(web: Any) -> None:
    web.script.register()
    samplers, schedules = web.modules.sd_samplers, web.modules.sd_schedulers
    assert list(samplers.all_samplers_map) == ["ConsistencySolver"] and len(samplers.all_samplers) == 1
    assert len(schedules.schedulers) == 1 and schedules.schedulers[0].need_inner_model
    assert schedules.schedulers_map["consistency_solver"] is schedules.schedulers_map["ConsistencySolver"]
    ((key, info),) = web.settings
    assert key == web.script.OPTION and info.given[3]["choices"] == ["none (UniPC)"]
