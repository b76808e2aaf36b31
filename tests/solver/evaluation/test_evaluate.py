"""The comparison is fair, its rows follow from what was measured, and it resumes."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from solver import NoiseSchedule, Policy, make_plan, psnr
from solver.diffusion import load_diffusion
from solver.evaluation import evaluate, page, report
from solver.evaluation.evaluate import (
    CANDIDATE_GRIDS,
    TRAINING_FREE,
    Bench,
    batches,
    check_fair,
    learned,
    with_its_grid,
)
from solver.evaluation.results import read_json, write_json
from solver.evaluation.summary import Measured, paired_difference, summarize
from solver.scheduler import ConsistencySolverScheduler
from solver.training.pairs import Prompt, Target, load_pairs, make_pairs
from tests.solver.toys import SD

S = NoiseSchedule.from_config(SD)
TARGET = make_plan("dpm++2m", 40, S)
SEEDS = 4


@pytest.mark.parametrize("grid", CANDIDATE_GRIDS)
def test_every_training_free_solver_is_compared_fairly_on_every_grid(grid: str) -> None:
    for solver in TRAINING_FREE:
        check_fair(make_plan(solver, 6, S, grid=grid), 6, TARGET)


def test_unfair_comparisons_are_refused() -> None:
    with pytest.raises(ValueError, match="heun takes 11 evaluations where 6 are compared"):
        check_fair(make_plan("heun", 6, S), 6, TARGET)
    with pytest.raises(ValueError, match=r"runs from \(t, σ\)"):
        check_fair(make_plan("ddim", 6, S, grid="leading"), 6, TARGET)
    early = dataclasses.replace(make_plan("ddim", 6, S), sigma=(*make_plan("ddim", 6, S).sigma[:-1], 0.1))
    with pytest.raises(ValueError, match=r"ends at σ = 0\.1, its target at 0"):
        check_fair(early, 6, TARGET)


@pytest.mark.parametrize(
    ("count", "border", "batch"), [(10, 3, 4), (8, 8, 4), (5, 0, 16), (20, 7, 7), (1, 1, 1)]
)
def testbatches_cover_everything_once_and_respect_the_border(count: int, border: Any, batch: Any) -> None:
    runs = batches(count, border, batch)
    assert [i for run in runs for i in run] == list(range(count))
    assert all(len(run) <= batch and not run.start < border < run.stop for run in runs)


def cell(quality: float, n: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """Made-up measurements around a quality; harder pictures are harder for everyone."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.randn(n, generator=torch.Generator().manual_seed(99))
    noise = 0.3 * torch.randn(n, generator=generator)
    return {
        "psnr_db": quality + 3 * hard + noise,
        "ssim": 0.9 + quality / 1000 + 0.01 * hard,
        "sharpness": torch.ones(n),
        "reader_distance": 0.2 - quality / 1000 - 0.001 * hard,
        "faithfulness": torch.rand(n, generator=generator).round(),
        "goal_distance": torch.rand(n, generator=generator),
        "features": torch.randn(n, 2, 3, generator=generator) + 40 / quality,
        "estimate": -hard,
    }


QUALITIES = {
    ("ddim", "trailing", 5): 20.0,
    ("ddim", "trailing", 10): 26.0,
    ("dpm++2m", "linspace", 5): 24.0,
    ("dpm++2m", "linspace", 10): 34.0,
    ("unipc", "trailing", 5): 27.0,
    ("unipc", "trailing", 10): 35.0,
    ("consistency", "learned", 5): 31.0,
    ("consistency", "learned", 10): 41.0,
}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    cells = {key: cell(quality, seed=i) for i, (key, quality) in enumerate(QUALITIES.items())}
    rows = summarize(Measured(cells, cell(60, seed=50), cell(60, seed=51), Target(), SEEDS))
    return [row | {"validation_pairs": 64, "finer_pairs": 0} for row in rows]


def test_rows_have_what_was_promised(rows: Any) -> None:
    assert len(rows) == len(QUALITIES) + 1
    promised = {"solver", "grid", "nfe", "psnr_db", "psnr_db_ci", "reader_distance", "kid", "faithfulness"}
    for row in rows:
        assert promised | {"sharpness", "top1_agreement"} <= row.keys()
        low, high = row["psnr_db_ci"]
        assert low < row["psnr_db"] < high
    assert json.loads(json.dumps(rows)) == rows
    final = rows[-1]
    assert (final["solver"], final["nfe"], final["top1_agreement"], final["regret"]) == ("dpm++2m", 40, 1, 0)


def test_leads_are_over_the_best_training_free_solver_at_the_same_evaluations(rows: Any) -> None:
    row = next(r for r in rows if (r["solver"], r["nfe"]) == ("consistency", 5))
    assert row["lead_psnr_db_over"] == "unipc" and row["lead_psnr_db"] == pytest.approx(4, abs=0.3)
    low, high = row["lead_psnr_db_ci"]
    assert 3 < low < row["lead_psnr_db"] < high < 5  # paired: far tighter than the spread over pictures
    assert row["lead_reader_distance"] > 0


def test_decisions_and_kernel_distances_are_compared_in_pairs(rows: Any) -> None:
    row = next(r for r in rows if (r["solver"], r["nfe"]) == ("consistency", 5))
    others = [r for r in rows if r["nfe"] == 5 and r["solver"] != "consistency"]
    for name, sign in (("top1_agreement", 1), ("regret", -1), ("kid", -1)):
        best = max(others, key=lambda other: sign * other[name])
        assert row[f"lead_{name}_over"] == best["solver"]
        assert row[f"lead_{name}"] == pytest.approx(sign * (row[name] - best[name]), abs=1e-9)
        low, high = row[f"lead_{name}_ci"]
        assert low <= row[f"lead_{name}"] <= high
    assert re.fullmatch(r"[\d.≤> ]+ \[.*, .*\]", row["equivalent_kid"]), "a crossing has its interval"


def test_a_solver_is_not_told_from_itself() -> None:
    same = {("ddim", "trailing", 5): cell(20), ("mine", "learned", 5): cell(20)}
    measured = Measured(same, cell(60, seed=50), cell(60, seed=51), Target(), SEEDS)
    row = next(row for row in summarize(measured) if row["solver"] == "mine")
    for name in ("psnr_db", "kid", "top1_agreement", "regret"):
        assert row[f"lead_{name}"] == 0 and row[f"lead_{name}_ci"] == [0, 0]
    assert paired_difference(measured, ("mine", 5), ("ddim", 5))["psnr_db_ci"] == [0, 0]


def test_a_paired_difference_has_the_sign_of_the_better_one(rows: Any) -> None:
    cells = {("a", "learned", 5): cell(31, seed=1), ("b", "learned", 5): cell(27, seed=2)}
    measured = Measured(cells, cell(60, seed=50), cell(60, seed=51), Target(), SEEDS)
    row = paired_difference(measured, ("a", 5), ("b", 5))
    assert row["psnr_db"] == pytest.approx(4, abs=0.3) and row["psnr_db_ci"][0] > 3
    assert row["reader_distance"] > 0, "a distance counts as better where it is lower"


def test_equivalent_evaluations_are_read_off_the_rivals_curves(rows: Any) -> None:
    row = next(r for r in rows if (r["solver"], r["nfe"]) == ("consistency", 5))
    best = 5 * 2 ** ((31 - 27) / (35 - 27))  # linear in the logarithm of the evaluations
    assert row["equivalent_psnr_db_nfe"] == pytest.approx(best, rel=0.05)
    assert row["equivalent_psnr_db_dpm++2m_nfe"] == pytest.approx(5 * 2 ** (7 / 10), rel=0.05)
    assert not any("equivalent" in name for r in rows if r["solver"] == "unipc" for name in r)


def test_best_by_chance_is_a_quarter() -> None:
    """A preview that knows nothing of its final picks the best of four in one of four prompts."""
    n = 4 * 4000
    random = {"psnr_db": torch.rand(n), "ssim": torch.rand(n), "sharpness": torch.ones(n)}
    scores = [random | {"goal_distance": torch.rand(n)} for _ in range(2)]
    row = summarize(Measured({("ddim", "trailing", 5): scores[0]}, scores[1], scores[1], Target(), SEEDS))[0]
    assert row["goal_agreement"] == pytest.approx(0.25, abs=0.03)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder's solver with a policy that has learned something, for two steps."""
    folder = tmp_path_factory.mktemp("solver")
    policy = Policy(3, "unipc", ("rows", "grid"), hidden=8, steps=(2, 2))
    torch.manual_seed(0)
    for parameter in policy.mlp[-1].parameters():
        parameter.data = 0.02 * torch.randn(parameter.shape)
    scheduler = ConsistencySolverScheduler.from_config(SD)
    scheduler.policy = policy
    scheduler.save_pretrained(folder)
    scheduler.save_pretrained(folder / "grid")
    return folder


def test_rows_are_compared_with_classical_ones_on_the_same_grid(trained: Path) -> None:
    model: Any = SimpleNamespace(schedule=S)
    solver, classical, alone = with_its_grid(learned("mine", trained, model, 3.0), trained, model, 3.0)
    assert [c.name for c in (solver, classical, alone)] == ["mine", "mine, dpm++2m rows", "mine, grid alone"]
    one, other = solver.plan(2), classical.plan(2)
    assert other.timestep == one.timestep and other.b != one.b
    for name in ("alpha", "sigma"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=1e-9)
    assert alone.plan(2) == one  # the file there


def test_a_solver_that_learned_no_grid_has_no_twin(tmp_path: Path) -> None:
    scheduler = ConsistencySolverScheduler.from_config(SD)
    scheduler.policy = Policy(3, "unipc", hidden=8, steps=(2, 2))
    scheduler.save_pretrained(tmp_path)
    model: Any = SimpleNamespace(schedule=S)
    assert len(with_its_grid(learned("mine", tmp_path, model, 3.0), tmp_path, model, 3.0)) == 1


def test_the_lead_of_rows_is_paired() -> None:
    names = {"mine": 31.0, "mine, dpm++2m rows": 30.0, "other": 29.0}
    cells = {(name, "learned", 5): cell(quality, seed=i) for i, (name, quality) in enumerate(names.items())}
    measured = Measured(cells, cell(60), cell(60, seed=1), Target(), SEEDS)
    by_name = {r["solver"]: r for r in summarize(measured)[:-1]}
    row = by_name["mine"]
    assert row["rows_lead_psnr_db"] == pytest.approx(1, abs=0.3)
    low, high = row["rows_lead_psnr_db_ci"]
    assert 0.5 < low < high < 1.5
    assert not any(
        name.startswith("rows_lead") for r in ("other", "mine, dpm++2m rows") for name in by_name[r]
    )


def test_cells_measure_pictures_against_their_own_targets(tmp_path: Path) -> None:
    model = load_diffusion("checkpoints/landscapes")
    prompts = [Prompt("a lake at dusk", {"water": "lake"}), Prompt("a desert", {"terrain": "dunes"})]
    make_pairs(model, prompts, tmp_path / "pairs", count=4, target=Target(steps=4), batch=4)
    pairs = load_pairs(tmp_path / "pairs")
    bench = Bench(model, pairs, pairs.take([0, 1]), None, None, batch=3)
    same = bench.cell(make_plan("dpm++2m", 4, model.schedule), tmp_path / "same.safetensors")
    assert float(same["psnr_db"].min()) > 60 and float((same["sharpness"] - 1).abs().max()) < 1e-3
    assert len(same["finer_psnr_db"]) == 2
    other = bench.cell(make_plan("ddim", 2, model.schedule), tmp_path / "other.safetensors")
    assert float(other["psnr_db"].max()) < 40
    latents, moved = bench.run(make_plan("ddim", 2, model.schedule), pairs)
    with torch.no_grad():
        a, b = (model.decode(z).clamp(0, 1) for z in (latents, pairs.latents))
    torch.testing.assert_close(other["psnr_db"], psnr(a, b), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(other["estimate"], moved, rtol=1e-4, atol=1e-5)


def test_command_compares_and_resumes_and_draws(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_file, plots = tmp_path / "rows.json", tmp_path / "plots"
    arguments = [
        "--pairs",
        "8",
        "--nfe",
        "2",
        "3",
        "--solvers",
        "ddim",
        "--learned",
        f"consistency={trained}",
    ]
    arguments += ["--validation-pairs", "2", "--finer-pairs", "2", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(evaluate, "CANDIDATE_GRIDS", ("trailing", "logsnr"))
    monkeypatch.setattr(
        sys, "argv", ["evaluate", *arguments, "--json", str(rows_file), "--plots", str(plots)]
    )
    shorter = lambda *args, **options: make_pairs(*args, **options | {"target": Target(steps=3)})  # noqa: E731
    monkeypatch.setattr(evaluate, "make_pairs", shorter)
    evaluate.main()
    rows = json.loads(rows_file.read_text())
    assert [(r["solver"], r["nfe"]) for r in rows] == [
        ("consistency", 2),
        ("consistency, dpm++2m rows", 2),
        ("consistency, grid alone", 2),
        ("ddim", 2),
        ("ddim", 3),
        ("dpm++2m", 3),
    ], "and nothing where nothing was learned"
    assert rows[0]["grid"] == "learned" and "lead_psnr_db" in rows[0]
    assert (plots / "quality.png").stat().st_size > 10_000

    def made_again(*_: Any) -> None:
        raise AssertionError("what is there is not made again")

    monkeypatch.setattr(Bench, "run", made_again)
    evaluate.main()
    assert json.loads(rows_file.read_text()) == rows
    assert "dB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--pairs", "100000"), "100000 pairs need 25000 prompts; there are"),
        (("--pairs", "4"), "at least --pairs 8"),
        (("--finer-pairs", "0"), "--finer-pairs 2"),
    ],
)
def test_impossible_numbers_of_pairs_are_refused(
    option: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *option, "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert message in capsys.readouterr().err


def test_page_states_the_measured_figures(rows: Any, tmp_path: Path) -> None:
    report.ship(report.collect(rows, "a test's machine"), tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.solver_page(read_json(tmp_path / "evaluation.json.gz"), tmp_path) == text, "shipped with it"
    best = next(r for r in rows if (r["solver"], r["nfe"]) == ("consistency", 5))
    assert f"{best['lead_psnr_db']:+.2f} [" in text and "over unipc" in text
    assert "a test's machine" in text
    for row in rows:
        assert f"{row['psnr_db']:.2f}" in text


def test_the_page_says_in_which_measures_it_is_not_better() -> None:
    row = {"solver": "consistency", "nfe": 4, "lead_psnr_db": 2.0}
    row |= {"lead_psnr_db_ci": [1, 3], "lead_kid_ci": [-0.1, 0.1], "lead_sharpness_ci": [-0.2, -0.1]}
    told = page.verdicts([row])
    assert told == "- 4 evaluations: better in PSNR; not told apart in KID; worse in sharpness."


def test_a_crossing_without_an_interval_is_no_column(rows: Any) -> None:
    assert "KID, best other" in page.equivalents(rows)
    old = [row | ({"equivalent_kid": "≤ 4"} if "equivalent_kid" in row else {}) for row in rows]
    assert "KID, best other" not in page.equivalents(old) and "PSNR" in page.equivalents(old)


def test_the_page_and_its_plot_are_rebuilt_without_the_model(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report.ship(report.collect(rows, "a test's machine"), tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").unlink()
    monkeypatch.setattr(report, "load_diffusion", lambda *_: pytest.fail("the model is not needed"))
    monkeypatch.setattr(sys, "argv", ["report", "--rebuild", "--out", str(tmp_path)])
    report.main()
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", ["report", "--rebuild", "--out", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        report.main()
    assert "evaluation.json.gz" in capsys.readouterr().err


def test_results_are_read_as_they_were_written_compressed_or_not(rows: Any, tmp_path: Path) -> None:
    for name in ("rows.json", "rows.json.gz"):
        write_json(tmp_path / name, rows)
        assert read_json(tmp_path / name) == rows
    first = (tmp_path / "rows.json.gz").read_bytes()
    write_json(tmp_path / "rows.json.gz", rows)
    assert (tmp_path / "rows.json.gz").read_bytes() == first, "equal results make an equal file"
    assert len(first) < len((tmp_path / "rows.json").read_bytes()) / 3


def test_a_solver_can_be_compared_at_some_numbers_alone() -> None:
    assert evaluate.parse_solver("unipc") == ("unipc", ())
    name, only = evaluate.parse_solver("dpm++2m@5,8")
    assert (name, only) == ("dpm++2m", (5, 8))
    for text in ("unipc@", "unipc@five", "unipc@5,,8"):
        with pytest.raises(ValueError, match="Write unipc@5,8"):
            evaluate.parse_solver(text)


def test_page_names_the_command_that_made_its_rows(rows: Any) -> None:
    told = page.command(rows)
    assert {"unipc", "consistency"} <= set(told.split("--solvers ")[1].split(" --")[0].split())
    twin = {**rows[0], "solver": "consistency, dpm++2m rows", "grid": "learned"}
    assert page.command([twin, *rows]) == told
    fewer = [row for row in rows if (row["solver"], row["nfe"]) != ("unipc", 5)]
    left = ",".join(str(row["nfe"]) for row in fewer[:-1] if row["solver"] == "unipc")
    assert f"unipc@{left}" in page.command(fewer)


def test_page_says_which_measures_tell_a_poor_preview_from_a_final(rows: Any) -> None:
    poor = {"solver": "ddim", "nfe": 5, "faithfulness": 0.9, "faithfulness_lost_ci": [-0.01, 0.03]}
    poor |= {"top1_agreement": 0.7, "top1_agreement_ci": [0.6, 0.8]}
    final = rows[-1] | {"faithfulness": 0.91, "top1_agreement": 1.0}
    told, dropped = page.separation([poor, final]).split("These do not")
    assert "top-1 agreement (0.700 [0.600, 0.800] and 1.000)" in told
    assert re.search(r"faithfulness \(0.900 .*and 0.910\)", dropped)
    assert page.separation([final]) == ""


def test_page_says_how_well_distances_are_guessed_and_what_each_part_is_worth(
    rows: Any, tmp_path: Path
) -> None:
    results = report.collect(rows, "a test's machine", rows, "python -m solver ablate", "A note.")
    text = page.solver_page(results, tmp_path)
    assert "A note." in text
    row = next(row for row in rows if row["solver"] == "consistency")
    assert f"{row['error_estimate_spearman']:.2f} [" in text
    table = text.split("python -m solver ablate\n```")[1].split("##")[0]
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]
    means = {name: sum(r["psnr_db"] for r in rows[:-1] if r["solver"] == name) for name in names}
    assert names == sorted(means, key=lambda name: means[name]) and "consistency" in names


def test_measured_rows_make_a_picture(rows: Any, tmp_path: Path) -> None:
    report.draw(rows, tmp_path)
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "quality.png").convert("L"))
    assert picture.shape[0] > 400 and picture.std() > 10


def test_help_of_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (evaluate, report):
        monkeypatch.setattr(sys, "argv", [module.__name__, "--help"])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 0 and "usage" in capsys.readouterr().out
