"""Chosen pictures lie beside the log, and are deleted with their participant."""

from contextlib import closing
from pathlib import Path

from app.study.log.enrolment import enrol
from app.study.log.pictures import delete_orphans, delete_pictures, folder_of, keep_picture
from app.study.log.store import open_store
from app.study.plan.definition import Study


def test_a_picture_is_kept_as_it_is_and_deleted_with_its_participant_alone(tmp_path: Path) -> None:
    log = str(tmp_path / "log.sqlite")
    mine = [keep_picture(log, "me", trial, trial.encode()) for trial in ("one", "two")]
    other = keep_picture(log, "other", "one", b"other")
    assert [path.read_bytes() for path in mine] == [b"one", b"two"]
    assert folder_of(log) in mine[0].parents and folder_of(log).parent == tmp_path
    assert delete_pictures(log, "me") == 2
    assert not mine[0].parent.exists() and other.read_bytes() == b"other"
    assert delete_pictures(log, "me") == 0


def test_pictures_of_deleted_participants_are_deleted(study: Study, tmp_path: Path) -> None:
    log = str(tmp_path / "log.sqlite")
    with closing(open_store(log)) as store:
        assert delete_orphans(log, store) == 0
        stays, goes = enrol(store, study), enrol(store, study)
        kept, gone = (keep_picture(log, each.participant, "one", b"picture") for each in (stays, goes))
        store.withdraw(goes.participant)
        assert delete_orphans(log, store) == 1
        assert kept.exists() and not gone.exists()


def test_pictures_of_a_servers_log_lie_in_the_working_directory_without_its_password() -> None:
    folder = folder_of("postgresql://me:hush@there/log")
    assert not folder.is_absolute() and "hush" not in str(folder)
