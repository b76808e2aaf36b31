"""The commands change, copy and read logs, and refuse wrong options with one sentence."""

import json
from pathlib import Path

import pytest

from app.study.__main__ import main
from app.study.log.enrolment import enrol
from app.study.log.store import open_store
from app.study.plan.definition import Study


def test_commands_delete_export_and_import(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
