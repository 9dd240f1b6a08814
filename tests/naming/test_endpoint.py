"""Names by an endpoint: what it is asked, and what is done with each kind of answer."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from chat_endpoint import Server, saying

from pipeline.naming import Trait
from pipeline.naming.endpoint import KEY, Endpoint

TRAITS = {
    0: [Trait("amount", None, 2.25, 1234.5), Trait("colour", "red", 1.0, 0.75)],
    5: [Trait("age", None, -1.0, 30.0)],
}
ROWS = {0: 750, 5: 250}


def ask(chat: Server, **words: Any) -> dict[int, str]:
    return Endpoint(chat.url, "small", timeout_s=5).names(TRAITS, ROWS, **words)


def test_points_in_time_are_told_as_dates(chat: Server) -> None:
    chat.answer = lambda _: (200, saying({}))
    ask(chat, times=["age"])
    told = json.loads(chat.requests[-1][2]["messages"][1]["content"])
    means = {f["feature"]: f["mean"] for cluster in told for f in cluster["features"]}
    assert means == {"amount": 1234.0, "colour": 0.75, "age": "1970-01-01"}


def test_what_is_sent_and_what_comes_back(chat: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-key")
    names = {"0": "Big red orders", "5": " Young\ncustomers "}
    chat.answer = lambda _: (200, saying(f"Here you are:\n```json\n{json.dumps(names)}\n```"))
    assert ask(chat) == {0: "Big red orders", 5: "Young customers"}
    ((path, headers, body),) = chat.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert body["model"] == "small"
    # All that leaves the machine.
    assert json.loads(body["messages"][1]["content"]) == [
        {
            "cluster": 0,
            "share": 0.75,
            "features": [
                {"feature": "amount", "difference": 2.25, "mean": 1234},
                {"feature": "colour", "category": "red", "difference": 1.0, "mean": 0.75},
            ],
        },
        {
            "cluster": 5,
            "share": 0.25,
            "features": [{"feature": "age", "difference": -1.0, "mean": 30}],
        },
    ]


def test_without_a_key_none_is_sent(chat: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of-somebody-else")
    ask(chat)
    assert "Authorization" not in chat.requests[0][1]


def test_names_that_are_none_are_left_out(chat: Server) -> None:
    chat.answer = lambda _: (200, saying({"0": "x" * 101, "5": "red \x1b[31m", "9": "nobody"}))
    assert ask(chat) == {}
    chat.answer = lambda _: (200, saying({"0": "Same", "5": "same"}))
    assert ask(chat) == {0: "Same"}
    chat.answer = lambda _: (200, saying({"0": "Taken", "5": "Free"}))
    assert ask(chat, taken=["taken"]) == {5: "Free"}


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, b"no"),
        (401, b"{}"),
        (200, b"not json"),
        (200, b"{}"),
        (200, b'{"choices": []}'),
        (200, saying("I cannot do that")),
        (200, saying("{not json}")),
        (200, saying("{" * 100_000 + "}")),
        (200, b'{"choices": [{"message": {"content": null}}]}'),
        (200, b" " * (2**20 + 1)),
    ],
)
def test_an_answer_without_names(
    status: int, content: bytes, chat: Server, caplog: pytest.LogCaptureFixture
) -> None:
    chat.answer = lambda _: (status, content)
    assert ask(chat) == {}
    (warning,) = caplog.records
    assert "named by their features instead" in warning.getMessage()
    assert len(chat.requests) == 1


def test_a_redirect_is_not_followed(chat: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-key")
    chat.headers = {"Location": f"{chat.url}/elsewhere"}
    chat.answer = lambda _: (307, b"")
    assert ask(chat) == {}
    assert [path for path, _, _ in chat.requests] == ["/v1/chat/completions"]


def test_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "small", timeout_s=5)
    assert endpoint.names(TRAITS, ROWS) == {}
    assert "cannot be reached" in caplog.text


def test_an_answer_that_does_not_come(chat: Server, caplog: pytest.LogCaptureFixture) -> None:
    waiting = threading.Event()

    def never(_: dict[str, Any]) -> tuple[int, bytes]:
        waiting.wait(30)
        return 200, saying({"0": "Late", "5": "Later"})

    chat.answer = never
    try:
        assert Endpoint(chat.url, "small", timeout_s=0.2).names(TRAITS, ROWS) == {}
    finally:
        waiting.set()
    assert "cannot be reached: " in caplog.text


def test_many_clusters_in_a_bounded_number_of_requests(chat: Server) -> None:
    def numbered(body: dict[str, Any]) -> tuple[int, bytes]:
        told = json.loads(body["messages"][1]["content"])
        return 200, saying({str(c["cluster"]): f"name {c['cluster']}" for c in told})

    chat.answer = numbered
    traits = {i: [Trait("a", None, 1.0, 1.0)] for i in range(600)}
    rows = {i: i + 1 for i in range(600)}
    found = Endpoint(chat.url, "small", timeout_s=5).names(traits, rows)
    assert len(chat.requests) == 20
    assert set(found) == set(range(100, 600))  # the largest


def test_the_first_failure_is_the_last_request(chat: Server) -> None:
    def first_only(body: dict[str, Any]) -> tuple[int, bytes]:
        return (200, saying({"599": "One"})) if len(chat.requests) == 1 else (503, b"")

    chat.answer = first_only
    traits = {i: [Trait("a", None, 1.0, 1.0)] for i in range(600)}
    found = Endpoint(chat.url, "small", timeout_s=5).names(traits, {i: i for i in range(600)})
    assert found == {599: "One"}
    assert len(chat.requests) == 2
