"""A model behind a server: what is sent, what is made of every answer, and nothing without end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from opd.errors import EngineError
from opd.evaluation.candidate import Serving, candidate
from opd.rollout.endpoint import Endpoint
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.sampler import Ask, Drawn, Unasked, seed_of
from opd.types import Message, Prompt

PROMPTS = [
    Prompt(f"p{n}", (Message("system", "be brief"), Message("user", f"{n}?"))) for n in range(6)
]
ASKS = [Ask(prompt, index) for prompt in PROMPTS for index in range(2)]
SAMPLING = Sampling(max_response_tokens=7, temperature=0.5, top_p=0.9)

Reply = tuple[int, object]


def completion(text: str, finish: str = "stop", **message: str) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": text, **message}, "finish_reason": finish}],
        "usage": {"completion_tokens": len(text)},
    }


@dataclass
class Server:
    """Answers with `reply`, given the request's body and its number."""

    reply: Callable[[dict[str, Any], int], Reply] = lambda body, _: (
        200,
        completion(body["messages"][-1]["content"]),
    )
    models: Reply = (200, {"data": [{"id": "tiny", "max_model_len": 512}]})
    listed: int = 0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.listed += 1
            self.answer(*state.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.keys.append(self.headers.get("Authorization"))
                number = len(state.bodies)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                status, content = state.reply(body, number)
            finally:
                with state.lock:
                    state.at_once -= 1
            self.answer(status, content)

        def answer(self, status: int, content: object) -> None:
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except ConnectionError:
                pass  # the client has lost patience

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    yield state
    listening.shutdown()
    listening.server_close()


def opened(server: Server, model: str = "", **settings: Any) -> Endpoint:
    thinking = settings.pop("thinking", None)
    endpoint = Endpoint(wait=0.01, **settings)
    endpoint.open(server.url, model, thinking=thinking)
    endpoint.seed = 3
    return endpoint


def drawn(endpoint: Endpoint, asks: list[Ask] = ASKS) -> list[Drawn | Unasked]:
    return endpoint.each(asks, SAMPLING, "evaluate/b")


def texts(found: list[Drawn | Unasked]) -> list[str]:
    assert all(isinstance(one, Drawn) for one in found)
    return [one.rollout.text for one in found if isinstance(one, Drawn)]


def test_every_ask_gets_its_own_answer_in_order(server: Server) -> None:
    server.reply = lambda body, number: (
        time.sleep(0.02 * (number % 3)),
        (200, completion(body["messages"][-1]["content"] + str(body["seed"]))),
    )[1]
    found = drawn(opened(server))
    seeds = [seed_of(3, "evaluate/b", ask.prompt.id, ask.index) for ask in ASKS]
    assert texts(found) == [
        f"{ask.prompt.question}{seed}" for ask, seed in zip(ASKS, seeds, strict=True)
    ]
    assert [one.seed for one in found] == seeds and len(set(seeds)) == len(ASKS)
    first = found[0]
    assert isinstance(first, Drawn) and first.tokens == len(first.rollout.text)
    assert first.rollout.finish == "stop" and first.rollout.token_ids == ()


def test_what_is_sent(server: Server) -> None:
    drawn(opened(server), ASKS[:1])
    (body,) = server.bodies
    assert body.pop("seed") == seed_of(3, "evaluate/b", "p0", 0)
    assert body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "0?"},
        ],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    endpoint = opened(server, thinking=False)
    endpoint.each(ASKS[:1], Sampling(max_response_tokens=7, top_k=5), "evaluate/b")
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.bodies[-1]["top_k"] == 5


def test_a_passing_fault_is_tried_again_with_the_same_seed(server: Server) -> None:
    faults = {1: (503, {}), 2: (200, b"no JSON"), 3: (429, {"error": "busy"})}
    server.reply = lambda body, number: faults.get(number, (200, completion("4")))
    assert texts(drawn(opened(server), ASKS[:1])) == ["4"]
    assert len(server.bodies) == 4 and len({body["seed"] for body in server.bodies}) == 1


def test_a_lasting_fault_is_named(server: Server) -> None:
    server.reply = lambda body, _: (500, {"error": "the engine is dead"})
    with pytest.raises(EngineError, match=r"problem p0 failed 3 times.*500 .*the engine is dead"):
        drawn(opened(server, attempts=3), ASKS[:1])
    assert len(server.bodies) == 3


def test_no_answer_is_waited_for_without_end(server: Server) -> None:
    release = threading.Event()
    server.reply = lambda body, _: (release.wait(20), (200, completion("late")))[1]
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"did not answer within 0\.2 s"):
        drawn(opened(server, deadline=0.2, attempts=2))
    assert time.monotonic() - started < 10
    release.set()


def test_no_more_requests_at_once_than_allowed(server: Server) -> None:
    server.reply = lambda body, _: (time.sleep(0.02), (200, completion("4")))[1]
    drawn(opened(server, concurrency=3))
    assert len(server.bodies) == len(ASKS) and 1 < server.most_at_once <= 3


def test_waiting_for_a_place_is_no_part_of_the_deadline(server: Server) -> None:
    server.reply = lambda body, _: (time.sleep(0.2), (200, completion("4")))[1]
    drawn(opened(server, concurrency=1, deadline=1.5, attempts=1))
    assert len(server.bodies) == len(ASKS)


def test_a_refused_request_is_not_tried_again(server: Server) -> None:
    server.reply = lambda body, _: (401, {"error": "bad key"})
    with pytest.raises(EngineError, match=r"refuses the request with 401 .*bad key"):
        drawn(opened(server), ASKS[:1])
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 64 tokens. However, you requested 70 tokens",
        {"code": "context_length_exceeded"},
    ],
)
def test_a_prompt_that_does_not_fit_is_no_fault(server: Server, said: object) -> None:
    def reply(body: dict[str, Any], _: int) -> Reply:
        is_long = body["messages"][-1]["content"] == "1?"
        return (400, {"error": said}) if is_long else (200, completion("4"))

    server.reply = reply
    found = drawn(opened(server), ASKS[:4])
    assert [isinstance(one, Unasked) for one in found] == [False, False, True, True]
    refused = found[2]
    assert isinstance(refused, Unasked) and refused.reason == "does_not_fit"
    assert "context" in refused.cause and refused.prompt.id == "p1"


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]},
        {**completion("4"), "usage": None},
        {**completion("4"), "usage": {"completion_tokens": "many"}},
        {"choices": [{"text": "4"}], "usage": {"completion_tokens": 1}},
    ],
)
def test_an_answer_without_text_or_usage_is_named(server: Server, answer: object) -> None:
    server.reply = lambda body, _: (200, answer)
    with pytest.raises(EngineError, match=r"no chat completion with content.* usage"):
        drawn(opened(server), ASKS[:1])


def test_separate_reasoning_is_put_before_the_answer(server: Server) -> None:
    server.reply = lambda body, _: (200, completion("4", "length", reasoning_content="2+2"))
    (found,) = drawn(opened(server), ASKS[:1])
    assert isinstance(found, Drawn) and found.rollout.text == "<think>2+2</think>4"
    assert found.rollout.finish == "length"


def test_half_a_character_can_be_written_to_a_file(server: Server) -> None:
    server.reply = lambda body, _: (200, completion("4\ud83d"))
    assert texts(drawn(opened(server), ASKS[:1])) == ["4?"]


def test_which_model_is_asked(server: Server) -> None:
    assert opened(server).context_length == 512
    with pytest.raises(EngineError, match=r"no model 'tinny'; did you mean 'tiny'"):
        opened(server, "tinny")
    server.models = (200, {"data": [{"id": "tiny"}, {"id": "large"}]})
    assert opened(server, "large").context_length is None
    with pytest.raises(EngineError, match=r"has large, tiny; name one as .*/v1#name"):
        opened(server)
    server.models = (404, {})  # a server may keep no list
    assert opened(server, "any").model == "any"
    with pytest.raises(EngineError, match=r"no list of models; name one"):
        opened(server)
    server.models = (401, {})
    with pytest.raises(EngineError, match=r"wants another key \(401\); set OPD_API_KEY"):
        opened(server)


def test_the_key_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPD_API_KEY", raising=False)
    drawn(opened(server), ASKS[:1])
    monkeypatch.setenv("OPD_API_KEY", "secret")
    endpoint = opened(server)
    drawn(endpoint, ASKS[:1])
    assert server.keys == [None, "Bearer secret"] and "secret" not in repr(vars(endpoint))


def test_a_server_lists_its_models_once_for_each_candidate(server: Server) -> None:
    server.models = (200, {"data": [{"id": "tiny", "max_model_len": 512}, {"id": "large"}]})
    shared, serving = Endpoint(), Serving(max_length=900)
    tiny, large = (candidate(f"{server.url}#{name}", shared) for name in ("tiny", "large"))
    assert [each.context(serving) for each in (tiny, large)] == [512, 900]
    assert tiny.identity(serving)["served"] == "tiny"
    with tiny.opened(serving, HF(), 3) as drawer:
        drawer.each(ASKS[:1], SAMPLING, "evaluate/b")
    assert server.bodies[0]["model"] == "tiny" and server.listed == 2


def test_a_server_that_is_not_there(server: Server) -> None:
    away = Server(url="http://127.0.0.1:9/v1")
    with pytest.raises(EngineError, match=r"list of models failed 2 times.*check the server"):
        opened(away, attempts=2)
