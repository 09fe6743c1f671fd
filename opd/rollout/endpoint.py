"""Responses from an OpenAI-compatible server: text and token counts, no token ids."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from opd.config import nearest, part
from opd.errors import EngineError
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Ask, Drawn, Unasked, seed_of
from opd.types import Finish, Prompt, Rollout

if TYPE_CHECKING:
    from httpx import AsyncClient, Response

LONGEST_WAIT = 60.0
CONNECT_SECONDS = 10.0
KEYS = ("OPD_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; it is sent, never stored."""
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""Status codes that another attempt may cure."""
TOO_LONG = ("context_length_exceeded", "context length", "maximum model length", "max_model_len")
"""How servers say that a prompt does not fit."""
FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}


class Failed(Exception):
    """One attempt was in vain; another may not be."""

    def __init__(self, cause: str, wait: float = 0.0) -> None:
        super().__init__(cause)
        self.wait = wait
        """Seconds that the server asks for."""


@part
class Endpoint:
    """How a server is asked. Which one is told by `open`."""

    concurrency: Annotated[int, Field(gt=0)] = 32
    """Requests at the same time."""
    deadline: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that one attempt may take, the whole response included."""
    attempts: Annotated[int, Field(gt=0)] = 5
    """Of one request, before the evaluation stops."""
    wait: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the second attempt; each further wait is twice as long, at most a minute."""

    url: str = field(init=False, default="", repr=False, compare=False)
    model: str = field(init=False, default="", repr=False, compare=False)
    thinking: bool | None = field(init=False, default=None, repr=False, compare=False)
    seed: int = field(init=False, default=0, repr=False, compare=False)
    context_length: int | None = field(init=False, default=None, repr=False, compare=False)
    """Where the server tells it."""

    def open(self, url: str, model: str, *, thinking: bool | None) -> None:
        """Find `model`, or the only one where `model` is empty, at the server `url`, which ends in
        /v1. Raises EngineError when the server cannot be reached or does not serve it."""
        self.url, self.thinking = url.rstrip("/"), thinking
        served = {str(row.get("id")): row for row in asyncio.run(self.served_models())}
        if not model and len(served) != 1:
            listed = ", ".join(sorted(served)) or "no list of models"
            raise EngineError(f"{url}: the server has {listed}; name one as {url}#name")
        self.model = model or next(iter(served))
        if served and self.model not in served:
            raise EngineError(
                f"{url}: the server has no model {self.model!r}; {nearest(self.model, served)}"
            )
        length = served.get(self.model, {}).get("max_model_len")
        self.context_length = length if isinstance(length, int) else None

    def each(self, asks: Sequence[Ask], sampling: Sampling, occasion: str) -> list[Drawn | Unasked]:
        """What becomes of each ask, in order. Raises EngineError when a request fails as often as
        it may be tried; all others are then dropped."""
        return asyncio.run(self.every(asks, sampling, occasion))

    async def every(
        self, asks: Sequence[Ask], sampling: Sampling, occasion: str
    ) -> list[Drawn | Unasked]:
        places = asyncio.Semaphore(self.concurrency)
        async with self.connected() as client:
            running = [
                asyncio.create_task(self.ask(ask, sampling, occasion, client, places))
                for ask in asks
            ]
            try:
                return await asyncio.gather(*running)
            finally:
                for task in running:
                    task.cancel()

    def connected(self) -> AsyncClient:
        import httpx

        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            # Whoever waits for a connection would use up its deadline; `each` counts instead.
            limits=httpx.Limits(max_connections=None),
        )

    async def ask(
        self,
        ask: Ask,
        sampling: Sampling,
        occasion: str,
        client: AsyncClient,
        places: asyncio.Semaphore,
    ) -> Drawn | Unasked:
        """One response."""
        seed = seed_of(self.seed, occasion, ask.prompt.id, ask.index)
        body = self.body(ask.prompt, sampling, seed)
        async with places:
            answer = await self.tried(
                lambda: self.post(client, body), f"problem {ask.prompt.id}", seed
            )
        if isinstance(answer, str):
            return Unasked(ask.prompt, "does_not_fit", answer, seed)
        return self.drawn(ask.prompt, answer, seed)

    def body(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, object]:
        """The request, in the words of OpenAI's chat completions; what they lack (`top_k`, the
        template's switch) in vLLM's and SGLang's, and only when it is set."""
        thinking = {"chat_template_kwargs": {"enable_thinking": self.thinking}}
        return {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "max_tokens": sampling.max_response_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            **({} if self.thinking is None else thinking),
        }

    async def tried(
        self, attempt: Callable[[], Awaitable[Mapping[str, Any] | str]], place: str, seed: int
    ) -> Mapping[str, Any] | str:
        """What the first attempt that succeeds returns; waits grow, with a jitter of their own."""
        jitter, fault = Random(seed), Failed("nothing was tried")
        for number in range(1, self.attempts + 1):
            try:
                async with asyncio.timeout(self.deadline):
                    return await attempt()
            except TimeoutError:
                fault = Failed(f"it did not answer within {self.deadline:g} s")
            except Failed as found:
                fault = found
            if number < self.attempts:
                pause = self.wait * 2 ** (number - 1) * (0.5 + jitter.random())
                await asyncio.sleep(min(max(pause, fault.wait), LONGEST_WAIT))
        raise EngineError(
            f"{self.url}: {place} failed {self.attempts} times, at last because {fault}; "
            "check the server, then run the same command to go on"
        )

    async def post(self, client: AsyncClient, body: dict[str, object]) -> Mapping[str, Any] | str:
        """The server's answer, or its words where the prompt does not fit."""
        response = await self.exchanged(client, "POST", "/chat/completions", body)
        if response.status_code == 200:
            return parsed(response)
        said = short(response.text)
        if response.status_code in (400, 413, 422) and any(t in said.lower() for t in TOO_LONG):
            return said
        raise EngineError(
            f"{self.url}: the server refuses the request with {response.status_code} ({said}); "
            f"mend the sampling, the model's name or the key ({KEYS[0]})"
        )

    async def served_models(self) -> list[Mapping[str, Any]]:
        """What the server lists; nothing where it keeps no list."""
        async with self.connected() as client:

            async def attempt() -> Mapping[str, Any]:
                response = await self.exchanged(client, "GET", "/models", None)
                if response.status_code in (401, 403):
                    raise EngineError(
                        f"{self.url}: the server wants another key ({response.status_code}); "
                        f"set {KEYS[0]}"
                    )
                return parsed(response) if response.status_code == 200 else {}

            answer = await self.tried(attempt, "its list of models", seed=0)
        listed = answer.get("data") if isinstance(answer, Mapping) else None
        return [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []

    async def exchanged(
        self, client: AsyncClient, method: str, path: str, body: dict[str, object] | None
    ) -> Response:
        """One request and its whole answer. Raises Failed for what another attempt may cure."""
        import httpx

        try:
            response = await client.request(method, f"{self.url}{path}", json=body)
        except httpx.HTTPError as error:
            raise Failed(str(error) or type(error).__name__) from None
        except httpx.InvalidURL as error:
            raise EngineError(
                f"{self.url}: is no address ({error}); write http://host:port/v1"
            ) from None
        if response.status_code in PASSING:
            wait = response.headers.get("retry-after", "")
            raise Failed(
                f"it answers {response.status_code} ({short(response.text)})",
                float(wait) if wait.isdecimal() else 0.0,
            )
        return response

    def drawn(self, prompt: Prompt, answer: Mapping[str, Any], seed: int) -> Drawn:
        """The response that a chat completion holds."""
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            thoughts = message.get("reasoning_content") or message.get("reasoning")
            content = message.get("content") or ""
            tokens = answer["usage"]["completion_tokens"]
            finish = FINISHES.get(choice["finish_reason"], "abort")
            if not isinstance(tokens, int) or not isinstance(content, str):
                raise TypeError("its content or usage is of another type")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(
                f"{self.url}: its answer is no chat completion with content, finish_reason and "
                f"usage ({error!r}); use a server that speaks OpenAI's protocol"
            ) from None
        text = f"<think>{thoughts}</think>{content}" if thoughts else content
        text = text.encode(errors="replace").decode()  # no file can hold half a character
        rollout = Rollout(
            prompt=prompt,
            prompt_ids=(),
            token_ids=(),
            logprobs=(),
            policy_step=0,
            finish=finish,
            text=text,
        )
        return Drawn(rollout, seed, tokens)


def parsed(response: Response) -> dict[str, Any]:
    try:
        answer = json.loads(response.content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Failed(f"its answer is no JSON object ({short(response.text)})")
    return answer


def short(text: str) -> str:
    """The beginning of what a server says, on one line."""
    return " ".join(text.split())[:200]
