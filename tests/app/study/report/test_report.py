"""The statistics agree with published examples and with what was put in; the report says what it must."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lifelines.datasets import load_waltons
from scipy import stats

from app.study.__main__ import main
from app.study.log import events
from app.study.log.enrolment import enrol
from app.study.log.events import LogEvent
from app.study.log.reading import read_lines
from app.study.log.store import open_store
from app.study.plan.definition import Study
from app.study.plan.study_file import EXAMPLE, read_study
from app.study.report import analysis
from app.study.report.analysis import holm, mean_interval, rank_biserial, time_ratio
from app.study.report.findings import ReportError, analyse, describe_left_out
from app.study.report.power import participants_needed, power_of, simulate_power
from app.study.report.simulation import Truth, measure_coverage, simulated_trials
from app.study.report.trial_table import trial_table

# Student (1908), The probable error of a mean: extra hours of sleep of ten patients with two drugs.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def sleep_table() -> pd.DataFrame:
    rows = [
        {"participant": str(who), "condition": drug, "task": "t", "position": place,
         "seconds": math.exp(hours),
         "outcome": "satisfied", "cap_s": 1000.0, "rating_q": hours}
        for place, (drug, column) in enumerate(zip("ab", SLEEP, strict=True))
        for who, hours in enumerate(column)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_students_sleep_data() -> None:
    """t = −4.0621, p = 0.002833, interval of the mean difference −2.4599 … −0.7001 (R's help of t.test)."""
    ratio = time_ratio(sleep_table(), "a", "b", full=False)
    logs = [math.log(each) for each in (ratio.paired.low, ratio.paired.value, ratio.paired.high)]
    assert logs == pytest.approx([-2.4598858, -1.58, -0.7001142], abs=1e-6)
    assert ratio.p == pytest.approx(0.002833, abs=1e-6)
    assert ratio.d * math.sqrt(10) == pytest.approx(-4.0621, abs=1e-4)


def test_ratings_of_the_sleep_data() -> None:
    """All nine differences that are not zero have one sign, so the effect is −1, and p about 2/2⁹."""
    change = analysis.rating_change(sleep_table(), "q", "a", "b", margin=0.5)
    assert change.effect == -1 and change.mean.value == pytest.approx(-1.58)
    assert change.p == pytest.approx(2 / 2**9, abs=0.006)
    assert not change.no_worse
    assert analysis.rating_change(sleep_table(), "q", "b", "a", margin=0.5).no_worse


def test_no_worse_is_what_the_interval_says() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        table = sleep_table()
        table["rating_q"] = rng.normal(4, 1, len(table))
        change = analysis.rating_change(table, "q", "a", "b", margin=0.7)
        assert change.no_worse == (change.mean.low > -0.7)


# Darwin (1876), The effects of cross and self fertilisation: by how many eighths of an inch the crossed plant
# of each of 15 pairs of maize was taller than the self-fertilised one; in Fisher (1935), The design of
# experiments.
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def maize_table() -> pd.DataFrame:
    rows = [
        {"participant": str(pair), "condition": how, "rating_q": float(inches)}
        for pair, taller in enumerate(MAIZE)
        for how, inches in (("crossed", 100 + taller), ("selfed", 100))
    ]
    return pd.DataFrame(rows)


def test_wilcoxon_and_t_of_darwins_maize() -> None:
    """Fisher (1935), § 17 gives t = 2.148; SciPy's help of `wilcoxon` the exact p of 0.041259765625.

    That p is also counted here: the negative differences have ranks 10 and 14, and of all 2¹⁵ ways to give
    15 ranks a sign, so many have a sum of 24 or less on one side. The effect is (96 − 24) / 120.
    """
    change = analysis.rating_change(maize_table(), "q", "crossed", "selfed", margin=1.0)
    ways = [1] + [0] * 120  # by the sum of the ranks that are negative
    for rank in range(1, 16):
        ways = [count + (ways[total - rank] if total >= rank else 0) for total, count in enumerate(ways)]
    assert change.p == pytest.approx(2 * sum(ways[:25]) / 2**15) == pytest.approx(0.041259765625)
    assert change.effect == pytest.approx(0.6)
    error = np.std(MAIZE, ddof=1) / math.sqrt(15)
    assert change.mean.value / error == pytest.approx(2.148, abs=5e-4)


def test_no_worse_of_darwins_maize_by_hand() -> None:
    """t at 14 degrees is 2.1448 for 95 % (in every table), so the interval is 20.933 ± 2.1448 · 9.746."""
    half = 2.1448 * float(np.std(MAIZE, ddof=1)) / math.sqrt(15)
    low = -314 / 15 - half
    for margin, expected in ((-low - 0.01, False), (-low + 0.01, True)):
        change = analysis.rating_change(maize_table(), "q", "selfed", "crossed", margin=margin)
        assert change.mean.low == pytest.approx(low, abs=1e-3)
        assert change.no_worse is expected and (change.no_worse_p < 0.025) is expected


def test_without_any_spread_nothing_is_shown() -> None:
    table = maize_table().assign(rating_q=3.0)
    change = analysis.rating_change(table, "q", "selfed", "crossed", margin=1.0)
    assert math.isnan(change.no_worse_p) and not change.no_worse and change.p == 1


def test_waltons_flies() -> None:
    """lifelines documents a median of 56 for all of these flies, and that the group miR-137 dies sooner."""
    flies = load_waltons()
    table = pd.DataFrame(
        {
            "condition": flies["group"],
            "seconds": flies["T"].astype(float),
            "outcome": np.where(flies["E"] == 1, "satisfied", "timed_out"),
            "participant": [str(i) for i in range(len(flies))],
        }
    )
    assert analysis.survival(table.assign(condition="all"), "all")[1] == 56
    found = analysis.hazard_ratio(table, "miR-137", "control", 0.95)
    assert found.ratio.low > 1 and found.p < 1e-6


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0 and math.isnan(holm([math.nan])[0])


def test_rank_biserial_by_hand() -> None:
    assert rank_biserial(np.array([1.0, 2, -3, 4, 0])) == pytest.approx((7 - 3) / 10)
    assert rank_biserial(np.zeros(3)) == 0


def test_the_mixed_model_and_the_bootstrap_find_what_was_put_in() -> None:
    study = read_study(EXAMPLE)
    truth = Truth(ratio=0.5, effect=0.05, noise=0.2)
    table = simulated_trials(study, 16, truth, np.random.default_rng(3))
    ratio = time_ratio(table, "consistency", "full")
    for interval in (ratio.paired, ratio.mixed, ratio.bootstrap):
        assert interval and interval.low < 0.5 < interval.high and interval.high / interval.low < 1.9
    assert 1 / time_ratio(table, "full", "consistency", full=False).paired.value == pytest.approx(
        ratio.paired.value
    )


def test_the_primary_interval_covers_and_too_narrow_a_one_would_not() -> None:
    *_, last = measure_coverage(read_study(EXAMPLE), 12, 60, Truth())
    assert last.coverage >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 60)
    assert abs(math.log(last.mean_ratio / 0.54)) < 0.1


def test_give_ups_count_with_the_cap_and_are_censored() -> None:
    table = sleep_table()
    table.loc[table["condition"] == "a", "outcome"] = "gave_up"
    assert (analysis.counted_seconds(table)[:10] == 1000).all()
    assert analysis.survival(table, "a")[1] == math.inf
    with pytest.raises(analysis.LeftOut, match="fewer than two"):
        analysis.hazard_ratio(table, "a", "b", 0.95)


def test_power_is_that_of_statsmodels_and_of_simulation() -> None:
    from statsmodels.stats.power import TTestPower

    theirs = TTestPower().power(math.log(1.85) / 0.8, 14, 0.05)
    assert power_of(14, 1.85, 0.8) == pytest.approx(theirs, abs=1e-6)
    found = participants_needed(1.85, 0.8)
    assert power_of(found.participants - 1, 1.85, 0.8) < 0.8 <= found.power
    assert abs(found.simulated - found.power) < 5 * found.error
    assert power_of(20, 1 / 1.85, 0.8) == pytest.approx(power_of(20, 1.85, 0.8))
    assert simulate_power(10, 1.0, 0.5)[0] == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("bad", [(1.0, 0.5), (-2, 0.5), (1.5, 0), (1.0001, 5.0)])
def test_power_of_nonsense(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"ratio must|spread must|more than"):
        participants_needed(*bad)


def test_intervals_of_hardly_anything_are_infinite() -> None:
    assert mean_interval(np.array([1.0]), 0.95).high == math.inf
    with pytest.raises(ValueError, match="at least two"):
        time_ratio(sleep_table()[lambda t: t["participant"] == "0"], "a", "b")


def timeline(study: Study, store, spans: dict[str, float], finish: bool = True) -> None:
    """One participant, whose trials take so long by condition: 1 s waiting, 2 s computing, then thinking."""
    from app.study.plan.order import trials

    who, clock = enrol(store, study), [1000.0]

    def note(body: events.Body, trial: str, after: float) -> None:
        clock[0] += after
        event = LogEvent(who.participant, who.session, body, trial, study=study.digest, monotonic=clock[0])
        store.append(event)

    for number, trial in enumerate(trials(study, who.place)):
        name, seconds = f"{who.session} {number}", spans[trial.condition.id]
        note(
            events.TrialStart(
                trial.condition.id, trial.task.id, trial.position, trial.practice, False, 600.0
            ),
            name,
            1,
        )
        note(events.Submit("r", "preview", [1, 2], 4, "ddim", "tiny", 3.0), name, 0)
        note(events.ComputeStart("r", "cpu", 2), name, 1)
        note(events.ComputeEnd("r", "done"), name, 2)
        note(events.Submit("g", "speculative", [1], 4, "ddim", "tiny", 3.0), name, 0)
        end = events.GiveUp(True) if seconds >= 600 else events.Satisfied(1)
        note(end, name, seconds - 3)
        note(events.RatingGiven("satisfaction", 5), name, 30)
    if finish:
        note(events.SessionEnded(), "", 1)


def test_queue_compute_and_thinking_are_told_apart(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    timeline(study, store, {"full": 20.0, "quick": 600.0})
    table = trial_table(read_lines(store.lines()).events)
    rows = table[~table["practice"]].set_index("condition")
    assert rows.loc["full", ["seconds", "queue_s", "compute_s", "think_s"]].tolist() == pytest.approx(
        [20, 1, 2, 17]
    )
    assert rows.loc["full", "outcome"] == "satisfied" and rows.loc["quick", "outcome"] == "timed_out"
    assert rows["tries"].tolist() == [1, 1] and rows["rating_satisfaction"].tolist() == [5, 5]


def test_the_report_command_end_to_end(study: Study, study_file: Path, tmp_path: Path, capsys) -> None:
    log = str(tmp_path / "log.sqlite")
    store = open_store(log)
    for person in range(5):
        timeline(study, store, {"full": 20.0 + person, "quick": 10.0 + 2 * person}, finish=person != 4)
    store.close()
    main(["report", log, "--study", str(study_file), "--out", str(tmp_path / "out"), "--json"])
    told = json.loads(capsys.readouterr().out)
    d = np.log([(10 + 2 * k) / (20 + k) for k in range(4)])
    assert told["participants"] == 4
    assert told["ratios"]["quick / full"]["value"] == pytest.approx(math.exp(d.mean()))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "5 participants began, 4 finished" in " ".join(page.split())
    assert page.count("<svg") >= 5 and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl", ""
    ).replace("http://creative", "")
    assert "trials of participants who did not finish<td>2" in page
    assert f"With <b>quick</b> a picture took <b>{math.exp(d.mean()):.2f}</b> times as long as" in page
    assert "was no worse by 0.5 of its points is" in page and '<td>2<td class="words">ddim' in page
    assert "Simulated" not in page
    table = pd.read_parquet(tmp_path / "out" / "trials.parquet")
    assert len(table) == len(pd.read_csv(tmp_path / "out" / "trials.csv")) == 15
    assert table["analysed"].sum() == 8
    json.loads((tmp_path / "out" / "findings.json").read_text())


def test_the_report_warns_of_few_and_labels_the_simulated(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    for _ in range(2):
        timeline(study, store, {"full": 20.0, "quick": 15.0})
    found = analyse(study, read_lines(store.lines()))[0]
    assert any("asks for 4" in words for words in found.warnings)
    with pytest.raises(ReportError, match="no trial"):
        analyse(study, read_lines([]))


def test_each_thing_is_said_once(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    timeline(study, store, {"full": 20.0, "quick": 15.0})
    (few, left_out) = analyse(study, read_lines([*store.lines(), "{"]))[0].warnings[::2]
    assert "4 participants, and 1 was analysed" in few
    parts = "the ratio of times, the difference in “satisfaction” and the odds ratio of “satisfaction”"
    assert f"at least two participants with both conditions: {parts}, with quick against full." in left_out
    timeline(study, store, {"full": 20.0, "quick": 15.0})
    warnings = analyse(study, read_lines(store.lines()))[0].warnings
    assert len(warnings) == len(set(warnings)) == 4
    same = [words for words in warnings if "every answer was the same" in words]
    assert same and same[0].endswith(": the odds ratio of “satisfaction”, with quick against full.")


def test_what_is_left_out_is_told_by_reason_and_what_has_the_same_conditions_together() -> None:
    left_out = [
        analysis.LeftOut(what, of, "full", why)
        for what, of, why in (
            ("the ratio", "a", "x"), ("the ratio", "b", "x"), ("the odds", "a", "x"), ("the odds", "b", "x"),
            ("the hazard", "b", "x"), ("the hazard", "a", "y"),
        )
    ]  # fmt: skip
    assert list(describe_left_out(left_out)) == [
        "Left out, since x: the ratio and the odds, with a and b against full; "
        "the hazard, with b against full.",
        "Left out, since y: the hazard, with a against full.",
    ]


def test_the_report_says_what_made_the_pictures_and_that_it_changed(study: Study, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "log"))
    for _ in range(2):
        timeline(study, store, {"full": 20.0, "quick": 15.0})
    found = analyse(study, read_lines(store.lines()))[0]
    assert (found.models, found.revisions, found.devices) == (["tiny"], [], ["cpu"])
    moved = [line.replace('"device":"cpu"', '"device":"cuda"') for line in store.lines()][-12:]
    changed = analyse(study, read_lines([*list(store.lines())[:-12], *moved]))[0]
    assert changed.devices == ["cpu", "cuda"]
    assert [words for words in changed.warnings if words not in found.warnings] == [
        "The model or its device changed during the study, and with it, how long pictures take."
    ]


def test_commands_delete_export_and_import(study: Study, tmp_path: Path, capsys) -> None:
    log = str(tmp_path / "log.sqlite")
    store = open_store(log)
    who, other = enrol(store, study), enrol(store, study)
    main(["export", log, "--out", str(tmp_path / "e.jsonl"), "--json"])
    main(["import", str(tmp_path / "copy.sqlite"), str(tmp_path / "e.jsonl"), "--json"])
    capsys.readouterr()
    main(["withdraw", log, who.code, "--json"])
    assert json.loads(capsys.readouterr().out)["events"] == 1
    main(["status", log, "--json"])
    assert json.loads(capsys.readouterr().out)["participants"] == 1
    main(["status", str(tmp_path / "copy.sqlite"), "--json"])
    assert json.loads(capsys.readouterr().out)["participants"] == 2
    main(["prune", log, "--days", "0", "--json"])
    assert json.loads(capsys.readouterr().out)["events"] == 1
    for wrong in (["withdraw", log, other.code], ["report", log, "--out", str(tmp_path / "r")],
                  ["status", str(tmp_path / "none")], ["export", log, "--out", "x.txt"],
                  ["export", log, "--out", str(tmp_path / "e.jsonl" / "x.jsonl")],
                  ["report", log, "--out", str(tmp_path / "r"), "--level", "95"]):  # fmt: skip
        with pytest.raises(SystemExit) as refused:
            main(wrong)
        assert isinstance(refused.value.code, str) and "Traceback" not in refused.value.code


def test_a_normal_sample_has_students_interval() -> None:
    values = np.array([1.0, 2, 3, 4])
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    mine = mean_interval(values, 0.9)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))


# Randall (1989): bitterness of wine, 1 to 5, counted by temperature and contact with the skins.
WINE = {(0, 0): [4, 9, 5, 0, 0], (0, 1): [1, 7, 8, 2, 0], (1, 0): [0, 5, 8, 3, 2], (1, 1): [0, 1, 5, 7, 5]}
# Wretenberg and others (1993): effort to arise from four stools, one row for each of nine people.
STOOLS = [[12, 15, 12, 10], [10, 14, 13, 12], [7, 14, 13, 9], [7, 11, 10, 9], [8, 11, 8, 7], [9, 11, 11, 10],
          [8, 12, 12, 11], [7, 11, 8, 7], [9, 13, 10, 8]]  # fmt: skip


def test_odds_of_the_wine_data() -> None:
    """2.503 for warmth and 1.528 for contact (Christensen's vignette of R's package ordinal)."""
    rows = [(*key, n) for key, counts in WINE.items() for n, c in enumerate(counts, 1) for _ in range(c)]
    values = np.array(rows, dtype=float)
    found, errors = analysis.proportional_odds(values[:, 2], values[:, :2], np.arange(len(values)))
    assert found == pytest.approx([2.503, 1.528], abs=5e-4) and (errors > 0).all()


def test_the_mixed_model_of_the_stools() -> None:
    """Stool 2 against stool 1: 3.8889, standard error 0.5187 (Pinheiro and Bates 2000, section 1.2)."""
    rows = pd.DataFrame(
        [(str(who), n, effort) for who, row in enumerate(STOOLS) for n, effort in enumerate(row)],
        columns=["participant", "stool", "effort"],
    )
    fixed = pd.DataFrame({f"stool_{n}": (rows["stool"] == n).astype(float) for n in (1, 2, 3)})
    found = analysis.mixed_effect(rows["effort"].astype(float), fixed, rows[["participant"]])
    assert found == pytest.approx((3.8889, 0.5187), abs=1e-4)


def test_remissions_of_leukaemia() -> None:
    """Freireich (1963): medians of 23 and 8 weeks; hazard ratio exp(1.572) (R's coxph, ties by Efron)."""
    treated = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    table = pd.DataFrame(
        {
            "condition": ["6-MP"] * 21 + ["placebo"] * 21,
            "seconds": np.array([*treated, *censored, *placebo], dtype=float),
            "outcome": ["satisfied"] * 9 + ["timed_out"] * 12 + ["satisfied"] * 21,
            "participant": [str(n) for n in range(42)],
        }
    )
    assert [analysis.survival(table, each)[1] for each in ("6-MP", "placebo")] == [23, 8]
    found = analysis.hazard_ratio(table, "placebo", "6-MP", 0.95)
    assert math.log(found.ratio.value) == pytest.approx(1.572, abs=1e-3)


@pytest.mark.parametrize(
    ("answers", "words"),
    [({"a": [3, 3, 3], "b": [3, 3, 3]}, "every answer was the same"),
     ({"a": [4, 5, 5], "b": [1, 2, 4]}, "has no bound"), ({"a": [1], "b": [2]}, "two participants")],
)  # fmt: skip
def test_odds_that_cannot_be_estimated_are_left_out_in_words(answers: dict, words: str) -> None:
    rows = [(str(n), name, v) for name, values in answers.items() for n, v in enumerate(values)]
    table = pd.DataFrame(rows, columns=["participant", "condition", "rating_q"])
    with pytest.raises(ValueError, match=words):
        analysis.odds_ratio(table, "q", "a", "b")
