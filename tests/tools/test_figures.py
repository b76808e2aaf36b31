"""The page of figures says what the files of results say, and nothing else."""

import re

import pytest

from solver.evaluation.page import solver_page
from solver.evaluation.report import EVALUATION_FILE
from solver.evaluation.results import read_json
from tools import figures


def test_the_page_is_what_the_results_give() -> None:
    assert figures.PAGE.read_text(encoding="utf-8") == figures.render(), "run python -m tools.figures"


def test_other_results_give_another_page(monkeypatch: pytest.MonkeyPatch) -> None:
    read = figures.read

    def slower(name: str) -> object:
        results = read(name)
        return results | {"previews_s": 123.456} if name == "latency" else results

    monkeypatch.setattr(figures, "read", slower)
    assert "| 123.46 s |" in figures.render()


def test_nobody_leads_by_being_compared_with_itself() -> None:
    rows = figures.read("solvers")
    best = {
        nfe: max(r["psnr_db"] for r in rows if r["nfe"] == nfe and r["solver"] != "consistency")
        for nfe in (4, 8)
    }
    for row in rows:
        if row["solver"] == "consistency" and row["nfe"] in best:
            assert row["lead_psnr_db"] == pytest.approx(row["psnr_db"] - best[row["nfe"]], abs=1e-6)


def test_the_solvers_own_page_agrees() -> None:
    """Both pages give PSNR with the same two digits for the same solver and number of evaluations."""
    own = (figures.ROOT / "checkpoints/landscapes/solver/README.md").read_text(encoding="utf-8")
    rows = [row for row in figures.read("solvers") if row["solver"] == "consistency"]
    assert rows
    for row in rows:
        section = own.split(f"## {row['nfe']} evaluations")[1]
        (psnr,) = re.findall(r"\| \*\*consistency\*\* \| learned \| ([\d.]+)", section)[:1]
        assert float(psnr) == pytest.approx(row["psnr_db"], abs=0.01)


def test_the_solvers_own_page_is_what_its_results_give() -> None:
    folder = figures.ROOT / "checkpoints/landscapes/solver"
    results = read_json(folder / EVALUATION_FILE)
    told = (folder / "README.md").read_text(encoding="utf-8")
    assert told == solver_page(results, folder), "run python -m solver report --rebuild"


def test_both_files_of_results_are_of_one_measurement() -> None:
    own = read_json(figures.ROOT / "checkpoints/landscapes/solver" / EVALUATION_FILE)["rows"]
    shipped = {(row["solver"], row["nfe"]): row for row in own}
    for row in figures.read("solvers"):
        assert shipped[row["solver"], row["nfe"]]["psnr_db"] == pytest.approx(row["psnr_db"], abs=1e-6)


def test_the_page_shows_what_is_not_better_beside_what_is() -> None:
    text = figures.render()
    for title in ("lead in PSNR", "lead in sharpness", "lead in KID", "lead in top-1 agreement"):
        assert title in text
    assert "not told apart in" in text and "trained by gradient" in text


def test_what_fitted_rows_add_is_what_was_measured() -> None:
    page = (figures.ROOT / "docs/training.md").read_text(encoding="utf-8")
    section = page.split("## What fitted rows add")[1].split("\n## ")[0]
    lines = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("|")}
    for trial in figures.read("fit")["trials"]:
        line = lines[str(trial["evaluations"])]
        for solver, psnr in trial["psnr_db"].items():
            assert f"| {psnr:.2f} ({trial['sharpness'][solver]:.3f}) |" in line
        for solver in ("dpm++2m rows", "shipped"):
            value, low, high = trial["lead_psnr_db"][solver]
            assert f"| {value:+.2f} [{low:+.2f}, {high:+.2f}] |" in line
        assert f"{trial['pairs']} held-out pairs" in section
