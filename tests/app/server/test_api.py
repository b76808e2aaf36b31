import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.jobs import metadata
from tests.conftest import Served


@pytest.fixture(scope="module")
def client(url: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_previews(client: Client) -> None:
    files, records = client.predict("snowy mountains", "lake", 3, 5, 2.5, 40, "ddim", api_name="/preview")
    assert len(files) == len(records) == 3
    for i, (file, record) in enumerate(zip(files, records, strict=True)):
        assert (record["seed"], record["steps"], record["solver"]) == (40 + i, 5, "ddim")
        assert record["seconds"] > 0
        parameters = metadata.read(Path(file).read_bytes())
        assert (parameters.prompt, parameters.negative_prompt) == ("snowy mountains", "lake")
        assert parameters.settings["Seed"] == str(40 + i)
        assert parameters.settings["CFG scale"] == "2.5"


@pytest.mark.parametrize("endpoint", ["preview", "refine"])
def test_by_name_and_without_a_client(url: str, endpoint: str) -> None:
    call = f"{url}gradio_api/call/"
    event = httpx.post(f"{call}v2/{endpoint}", json={"prompt": "a lake", "steps": 4}).json()["event_id"]
    told = httpx.get(f"{call}{endpoint}/{event}", timeout=60).text
    files, _ = json.loads(told.partition("event: complete\ndata: ")[2])
    for file in files if isinstance(files, list) else [files]:
        assert file["url"].startswith(url)
        assert metadata.read(httpx.get(file["url"]).content).prompt == "a lake"


def test_defaults_are_those_of_the_page(client: Client) -> None:
    files, records = client.predict(prompt="snowy zeppelin", api_name="/preview")
    assert len(files) == 4
    assert {record["steps"] for record in records} == {6}
    assert {record["solver"] for record in records} == {"consistency"}
    assert len({record["seed"] for record in records}) == 4
    assert records[0]["ignored_words"] == ["zeppelin"]


def test_refine_is_the_picture_of_that_seed(client: Client) -> None:
    file, record = client.predict(prompt="snowy mountains", seed=7, steps=10, api_name="/refine")
    assert (record["seed"], record["steps"], record["solver"]) == (7, 10, "dpm++2m")
    again, _ = client.predict(prompt="snowy mountains", seed=7, steps=10, api_name="/refine")
    assert Path(file).read_bytes() == Path(again).read_bytes()
    other, record = client.predict(prompt="snowy mountains", seed=-1, steps=10, api_name="/refine")
    assert record["seed"] >= 0
    assert Path(file).read_bytes() != Path(other).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "lake " * 40}, "too long"),
        ({"prompt": None}, "must be text"),
        ({"steps": 0}, "number of steps"),
        ({"steps": "many"}, "not a number"),
        ({"steps": 1e9}, "number of steps"),
        ({"guidance": "NaN"}, "not a number"),
        ({"guidance": -1}, "guidance scale"),
        ({"count": 900}, "number of previews"),
        ({"count": None}, "an empty field is not a number"),
        ({"seed": -2}, "The seed"),
        ({"seed": 1.5}, "The seed"),
        ({"seed": {"a": 1}}, "The seed"),
        ({"solver": "magic"}, "no solver"),
        ({"solver": ["ddim"]}, "no solver"),
    ],
)
def test_mistakes_are_answered_with_a_message(client: Client, wrong: dict, words: str) -> None:
    with pytest.raises(AppError, match=words) as caught:
        client.predict(**({"prompt": "snowy mountains"} | wrong), api_name="/preview")
    assert "Traceback" not in str(caught.value)


def test_not_a_number_in_the_json_itself(url: str) -> None:
    body = '{"data": ["snowy mountains", "", 4, NaN, 3, -1, "ddim", null, 0.6, 0, 0], "session_hash": "raw"}'
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{url}gradio_api/call/preview", content=body, headers=headers)
    if answer.status_code == 200:  # otherwise the server refused the JSON, which is as good
        event = answer.json()["event_id"]
        told = httpx.get(f"{url}gradio_api/call/preview/{event}", timeout=30).text
        assert "not a number" in told
    else:
        assert answer.status_code in (400, 422)


def test_many_at_once_get_their_own(url: str) -> None:
    def ask(seed: int) -> list[int]:
        _, records = Client(url, verbose=False).predict(
            prompt="snowy mountains", count=2, steps=4, seed=seed, api_name="/preview"
        )
        return [record["seed"] for record in records]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, (10, 20, 30, 40))) == [[10, 11], [20, 21], [30, 31], [40, 41]]


def test_a_client_cancels_its_own_pictures_alone(url: str) -> None:
    mine, other = Client(url, verbose=False), Client(url, verbose=False)
    asked = {"prompt": "snowy mountains", "steps": 100, "api_name": "/refine"}
    job, theirs = mine.submit(**asked), other.submit(**asked)
    while not job.done():
        mine.predict(api_name="/cancel")
    with pytest.raises(AppError, match="cancelled"):
        job.result()
    assert theirs.result()[1]["steps"] == 100


def test_only_the_two_endpoints_are_public(client: Client, url: str) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/preview", "/refine"}
    assert "/preview" in httpx.get(f"{url}gradio_api/info").json()["named_endpoints"]


def test_nothing_is_counted_or_remembered(url: str) -> None:
    config = httpx.get(f"{url}config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert httpx.get(f"{url}monitoring").status_code in (403, 404)


def test_no_file_beyond_the_pictures_is_served(url: str) -> None:
    for path in ("app.py", str(Path("app.py").resolve()), "/etc/passwd", "../app.py"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("starts") / "start.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(path)
    return path


def test_a_picture_to_start_from(client: Client, picture: Path) -> None:
    asked = {"prompt": "a lake", "seed": 5, "picture": handle_file(str(picture)), "strength": 0.5}
    files, records = client.predict(**asked, count=2, steps=4, api_name="/preview")
    assert [record["strength"] for record in records] == [0.5, 0.5]
    assert [record["evaluations"] for record in records] == [2, 2]
    assert metadata.read(Path(files[0]).read_bytes()).settings["Denoising strength"] == "0.5"
    final, record = client.predict(**asked, steps=20, api_name="/refine")
    assert (record["evaluations"], record["strength"]) == (10, 0.5)
    plain, record = client.predict(prompt="a lake", seed=5, steps=20, api_name="/refine")
    assert record["strength"] is None
    assert Path(final).read_bytes() != Path(plain).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strength": 0}, "The strength"),
        ({"width": 72}, "makes pictures of 64"),
        ({"height": 1}, "The height"),
    ],
)
def test_bad_starts_and_sizes_are_refused_with_a_message(
    client: Client, picture: Path, wrong: dict, words: str
) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(prompt="a lake", picture=handle_file(str(picture)), **wrong, api_name="/preview")


def test_what_is_no_picture_is_refused_with_a_message(client: Client, tmp_path: Path) -> None:
    (tmp_path / "start.png").write_text("no picture")
    with pytest.raises(AppError, match="not a picture that can be read"):
        client.predict(prompt="a lake", picture=handle_file(str(tmp_path / "start.png")), api_name="/preview")


FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("meta", [{}, FILE])
@pytest.mark.parametrize("address", ["", "https://example.com/a.png", "data:image/png;base64,AAAA"])
def test_no_file_but_an_uploaded_one_is_read(served: Served, picture: Path, meta: dict, address: str) -> None:
    path = address or str(picture)
    for named in ({"path": path} | meta, {"url": path} | meta, path):
        told = asked_with(served, named)
        assert (
            "Upload it first: post the file to /gradio_api/upload" in told and "event: complete" not in told
        )


def asked_with(served: Served, named: object) -> str:
    """The answer to a request that starts from a picture so named."""
    data = ["a lake", "", 1, 4, 3, 1, "ddim", named, 0.5, 0, 0]
    asked = httpx.post(f"{served.url}gradio_api/call/preview", json={"data": data})
    return httpx.get(f"{served.url}gradio_api/call/preview/{asked.json()['event_id']}", timeout=60).text


def test_a_full_disk_is_answered_with_a_message(
    client: Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.is_relative_to(served.pictures):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    served.pictures.mkdir(parents=True, exist_ok=True)
    before = set(served.pictures.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AppError, match="could not be saved: the disk is full"):
        client.predict(prompt="a lake", count=1, steps=2, api_name="/preview")
    assert set(served.pictures.iterdir()) == before
