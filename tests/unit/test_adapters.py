"""Adapters: published rows become problems, malformed rows are named, no secret is in a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data.boxed import INSTRUCTION
from data.columns import Columns
from data.dapo import AFTER, BEFORE, DAPO
from data.deepmath import DeepMath
from data.gsm8k import problem as gsm8k
from data.openmathreasoning import OpenMathReasoning
from data.openthoughts import Conversations, OpenThoughts
from opd.config import build, dump
from opd.errors import DataError, RecipeError
from opd.problems import Adapter, Dataset, LeftOut, Row
from opd.types import Message

OPENTHOUGHTS = {
    "problem": "How many?",
    "deepseek_reasoning": "Two and two.",
    "deepseek_solution": "It is \\boxed{4}.",
    "ground_truth_solution": "By counting, \\boxed{\\text{four}}, no: \\boxed{\\frac{8}{2}}.",
    "domain": "math",
    "source": "aops",
    "test_cases": None,
    "starter_code": None,
}
TAGS = (
    "<|begin_of_thought|>\n\nTwo and two.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{4}.\n\n<|end_of_solution|>"
)
CONVERSATION = {
    "system": "Use tags.",
    "conversations": [
        {"from": "user", "value": "Return a box. How many?"},
        {"from": "assistant", "value": TAGS},
    ],
}
DEEPMATH = {
    "question": "How many?",
    "final_answer": "4",
    "difficulty": 5.0,
    "topic": "Mathematics -> Algebra",
    "r1_solution_1": "Two and two.\n</think>\n\nFour: \\boxed{4}",
    "r1_solution_2": "One and three: \\boxed{4}",
    "r1_solution_3": "Three and one: \\boxed{4}",
}
DAPO_ROW = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": f"{BEFORE}How many?{AFTER}"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}
OPENMATHREASONING = {
    "expected_answer": "4",
    "problem_type": "has_answer_extracted",
    "problem_source": "aops_c6_high_school_olympiads",
    "generation_model": "DeepSeek-R1",
    "pass_rate_72b_tir": "0.96875",
    "problem": "How many?",
    "generated_solution": "<think>\nTwo and two.\n</think>\nFour: \\boxed{4}",
    "inference_mode": "cot",
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Four."},
]


def columns(**meanings: str) -> Columns:
    return build(Columns, {"columns": meanings})


def asked(*turns: str) -> tuple[Message, ...]:
    roles = ("user", "assistant") * len(turns)
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))  # type: ignore[arg-type]


QUESTION = asked(f"How many?\n\n{INSTRUCTION}")


def test_openthoughts_shows_the_problem_alone():
    made = OpenThoughts()(OPENTHOUGHTS)
    assert made.prompt.messages == QUESTION
    assert made.privileged.answer == "\\frac{8}{2}"
    assert made.privileged.solution == "It is \\boxed{4}."
    assert made.privileged.demonstration == ("<think>\nTwo and two.\n</think>\n\nIt is \\boxed{4}.")
    true = OpenThoughts(solution="ground_truth_solution")(OPENTHOUGHTS)
    assert true.privileged.solution == OPENTHOUGHTS["ground_truth_solution"]


def test_openthoughts_conversations_lose_their_last_turn():
    made = Conversations()(CONVERSATION)
    assert made.prompt.messages == asked("Return a box. How many?")
    assert made.privileged.answer == "4"
    assert made.privileged.solution == "It is \\boxed{4}."
    assert made.privileged.demonstration == ("<think>\nTwo and two.\n</think>\n\nIt is \\boxed{4}.")


def test_deepmath_shows_the_question_alone():
    first, second = DeepMath()(DEEPMATH), DeepMath(solution=2)(DEEPMATH)
    assert first.prompt.messages == second.prompt.messages == QUESTION
    assert first.prompt.id == second.prompt.id
    assert first.privileged.solution == "Four: \\boxed{4}"
    assert first.privileged.demonstration == DEEPMATH["r1_solution_1"]
    assert second.privileged.solution == DEEPMATH["r1_solution_2"]
    whole = DeepMath(solution_holds_thinking=True)(DEEPMATH)
    assert whole.privileged.solution == DEEPMATH["r1_solution_1"]
    assert first.privileged.answer == "4"


def test_dapos_instruction_is_replaced_or_kept():
    assert DAPO()(DAPO_ROW).prompt.messages == QUESTION
    kept = DAPO(instruction="as_written")(DAPO_ROW)
    assert kept.prompt.messages == asked(f"{BEFORE}How many?{AFTER}")
    assert kept.privileged.answer == "34"
    assert kept.privileged.solution is None


def test_openmathreasoning_shows_the_problem_alone():
    made = OpenMathReasoning()(OPENMATHREASONING)
    assert made.prompt.messages == QUESTION
    assert made.privileged.answer == "4"
    assert made.privileged.solution == "Four: \\boxed{4}"
    assert made.privileged.demonstration == OPENMATHREASONING["generated_solution"]


def test_rows_without_an_answer_are_left_out_when_that_is_asked():
    for empty in (None, "", "n/a"):
        with pytest.raises(LeftOut, match="column 'expected_answer' is empty"):
            OpenMathReasoning(without_answer="leave_out")(
                {**OPENMATHREASONING, "expected_answer": empty}
            )
    proof = {**OPENTHOUGHTS, "ground_truth_solution": "As was to be shown."}
    with pytest.raises(LeftOut, match="column 'ground_truth_solution' has no box"):
        OpenThoughts(without_answer="leave_out")(proof)


def test_columns_read_a_plain_row():
    adapt = columns(
        q="prompt", why="solution", a="answer", text="demonstration", n="id", z="unread"
    )
    made = adapt({"q": "How many?", "why": "2+2", "a": 4, "text": "So 4.", "n": 7, "z": None})
    assert made.prompt.messages == asked("How many?")
    assert made.prompt.id == "7"
    assert (made.privileged.solution, made.privileged.answer) == ("2+2", "4")
    assert made.privileged.demonstration == "So 4."


def test_columns_strip_the_assistants_last_turn():
    made = columns(messages="messages")({"messages": CHAT})
    assert [message.role for message in made.prompt.messages] == ["system", "user"]
    assert made.privileged.demonstration == "Four."
    longer = [*CHAT, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "5"}]
    made = columns(messages="messages")({"messages": longer})
    assert [message.content for message in made.prompt.messages] == [
        *("Be brief.", "How many?", "Four.", "And now?")
    ]
    assert made.privileged.demonstration == "5"


def test_columns_read_trls_prompt_and_completion():
    adapt = columns(prompt="prompt", completion="demonstration", privileged_context="solution")
    row = {"prompt": CHAT[:2], "completion": CHAT[2:], "privileged_context": "2+2"}
    made = adapt(row)
    assert [message.role for message in made.prompt.messages] == ["system", "user"]
    assert (made.privileged.demonstration, made.privileged.solution) == ("Four.", "2+2")


def test_columns_write_an_instruction_under_the_question():
    adapt = Columns(columns={"q": "prompt"}, instruction="Box it: \\boxed{$x}.")
    assert adapt({"q": "How many?"}).prompt.question == "How many?\n\nBox it: \\boxed{$x}."


def test_an_id_depends_on_the_question_alone():
    adapt = columns(q="prompt", a="answer")
    one, other, third = (adapt({"q": q, "a": a}) for q, a in (("Q", "1"), ("Q", "2"), ("R", "1")))
    assert one.prompt.id == other.prompt.id != third.prompt.id
    assert one.prompt.id.startswith("row-")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"q": "prompt", "p": "prompt"},
            "adapter.columns: 'q' and 'p' are both the prompt; name one",
        ),
        ({"a": "answer"}, "adapter.columns: one column is the prompt, or else the messages; say"),
        ({"q": "prompt", "m": "messages"}, "adapter.columns: one column is the prompt, or else"),
        ({"m": "messages", "d": "demonstration"}, "adapter.columns: messages end with a demons"),
        ({"q": "question"}, "adapter.columns.q: "),
    ],
)
def test_a_map_that_says_two_things_is_the_recipes_fault(tree: Mapping[str, str], said: str):
    with pytest.raises(RecipeError) as refused:
        build(
            Dataset,
            {"dataset": "x.jsonl", "adapter": {"name": "data.columns:Columns", "columns": tree}},
        )
    assert str(refused.value).startswith(said)


@dataclass(frozen=True)
class Malformed:
    """An adapter, the change that spoils a row, and what is said of it."""

    adapter: Adapter
    row: Row
    change: Mapping[str, Any]
    said: str


MALFORMED = [
    Malformed(
        DeepMath(),
        DEEPMATH,
        {"final_answer": None},
        "column 'final_answer' holds neither a text nor a whole number",
    ),
    Malformed(
        DeepMath(),
        DEEPMATH,
        {"final_answer": 4.0},
        "column 'final_answer' holds neither a text nor a whole number",
    ),
    Malformed(
        DeepMath(),
        DEEPMATH,
        {"final_answer": float("nan")},
        "column 'final_answer' holds neither a text nor a whole number",
    ),
    Malformed(
        DeepMath(),
        DEEPMATH,
        {"final_answer": True},
        "column 'final_answer' holds neither a text nor a whole number",
    ),
    Malformed(DeepMath(), DEEPMATH, {"question": float("nan")}, "column 'question' holds no text"),
    Malformed(DeepMath(), DEEPMATH, {"question": " "}, "column 'question' holds no text"),
    Malformed(
        DeepMath(),
        DEEPMATH,
        {"r1_solution_1": "hm\n</think> "},
        "column 'r1_solution_1' ends with its thinking",
    ),
    Malformed(
        DeepMath(solution=3),
        DEEPMATH,
        {"r1_solution_3": None},
        "column 'r1_solution_3' holds no text",
    ),
    Malformed(OpenThoughts(), OPENTHOUGHTS, {"problem": 3}, "column 'problem' holds no text"),
    Malformed(
        OpenThoughts(),
        OPENTHOUGHTS,
        {"deepseek_reasoning": ""},
        "column 'deepseek_reasoning' holds no text",
    ),
    Malformed(
        OpenThoughts(),
        OPENTHOUGHTS,
        {"ground_truth_solution": "\\boxed{"},
        "column 'ground_truth_solution' has no \\boxed{...} with an answer "
        "(without_answer: leave_out leaves such rows)",
    ),
    Malformed(
        OpenThoughts(),
        OPENTHOUGHTS,
        {"ground_truth_solution": "\\boxed{ }"},
        "column 'ground_truth_solution' has no \\boxed{...} with an answer "
        "(without_answer: leave_out leaves such rows)",
    ),
    Malformed(
        Conversations(),
        CONVERSATION,
        {"conversations": None},
        "column 'conversations' holds no list of messages",
    ),
    Malformed(
        Conversations(),
        CONVERSATION,
        {"conversations": CHAT},
        "column 'conversations', turn 1 has no 'from' and 'value'",
    ),
    Malformed(
        Conversations(),
        CONVERSATION,
        {"conversations": CONVERSATION["conversations"][:1]},
        "column 'conversations' holds not one question and its answer",
    ),
    Malformed(
        Conversations(),
        CONVERSATION,
        {"conversations": [CONVERSATION["conversations"][0], {"from": "assistant", "value": "4"}]},
        "column 'conversations', turn 2 is no thought and solution in tags",
    ),
    Malformed(
        Conversations(),
        CONVERSATION,
        {"conversations": [{"from": "human", "value": "Q"}]},
        "column 'conversations', turn 1 is of 'human', who is none of system, user, assistant",
    ),
    Malformed(
        DAPO(), DAPO_ROW, {"prompt": "How many?"}, "column 'prompt' holds no list of messages"
    ),
    Malformed(DAPO(), DAPO_ROW, {"prompt": []}, "column 'prompt' holds no list of messages"),
    Malformed(
        DAPO(),
        DAPO_ROW,
        {"prompt": [CHAT[2], CHAT[1]]},
        "column 'prompt', turn 1 is the assistant's where the user's should be",
    ),
    Malformed(
        DAPO(),
        DAPO_ROW,
        {"prompt": [*CHAT[:2], CHAT[0]]},
        "column 'prompt', turn 3 is the system's where the assistant's should be",
    ),
    Malformed(DAPO(), DAPO_ROW, {"prompt": CHAT}, "column 'prompt' ends with an answer"),
    Malformed(
        DAPO(),
        DAPO_ROW,
        {"prompt": CHAT[:2]},
        "column 'prompt' has not DAPO's instruction around it "
        "(instruction: as_written takes any prompt as it is)",
    ),
    Malformed(
        DAPO(),
        DAPO_ROW,
        {"prompt": [{"role": "user", "content": BEFORE + AFTER}]},
        "column 'prompt' holds an instruction and no problem",
    ),
    Malformed(
        DAPO(),
        DAPO_ROW,
        {"reward_model": {"style": "rule"}},
        "column 'reward_model' holds no 'ground_truth'",
    ),
    Malformed(
        DAPO(),
        DAPO_ROW,
        {"reward_model": {"ground_truth": None}},
        "column 'ground_truth' holds neither a text nor a whole number",
    ),
    Malformed(
        OpenMathReasoning(),
        OPENMATHREASONING,
        {"expected_answer": None},
        "column 'expected_answer' is empty (without_answer: leave_out leaves such rows)",
    ),
    Malformed(
        OpenMathReasoning(),
        OPENMATHREASONING,
        {"expected_answer": 0.5},
        "column 'expected_answer' holds neither a text nor a whole number",
    ),
    Malformed(
        OpenMathReasoning(),
        OPENMATHREASONING,
        {"inference_mode": "genselect"},
        "column 'inference_mode' is genselect, so that column 'problem' holds solutions to select "
        "from; take the split cot or tir",
    ),
    Malformed(
        columns(q="prompt"),
        {"q": "Q"},
        {"solution": "4"},
        "column 'solution' is not in columns: say what it is, or unread",
    ),
    Malformed(
        columns(q="prompt"),
        {"q": "Q"},
        {"q": CHAT},
        "column 'q' ends with an answer; it is messages, not a prompt",
    ),
    Malformed(
        columns(m="messages"),
        {"m": CHAT},
        {"m": CHAT[:2]},
        "column 'm' does not end with a question and its answer",
    ),
    Malformed(
        columns(m="messages"),
        {"m": CHAT},
        {"m": CHAT[2:]},
        "column 'm', turn 1 is the assistant's where the user's should be",
    ),
    Malformed(
        columns(m="messages"),
        {"m": CHAT},
        {"m": [CHAT[0]]},
        "column 'm' does not end with a question and its answer",
    ),
    Malformed(
        columns(m="messages"),
        {"m": CHAT},
        {"m": [*CHAT[:2], {"role": "assistant", "content": None}]},
        "column 'm', turn 3 holds no text",
    ),
    Malformed(
        columns(q="prompt", d="demonstration"),
        {"q": "Q", "d": "D"},
        {"d": CHAT},
        "column 'd' holds no text",
    ),
]


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.said)
def test_a_malformed_row_is_refused_and_its_column_named(case: Malformed):
    case.adapter(case.row)
    with pytest.raises(ValueError) as refused:
        case.adapter({**case.row, **case.change})
    assert str(refused.value) == case.said


@pytest.mark.parametrize(
    ("adapter", "row", "column"),
    [
        (DeepMath(), DEEPMATH, "r1_solution_1"),
        (OpenThoughts(), OPENTHOUGHTS, "ground_truth_solution"),
        (Conversations(), CONVERSATION, "conversations"),
        (DAPO(), DAPO_ROW, "reward_model"),
        (OpenMathReasoning(), OPENMATHREASONING, "expected_answer"),
        (columns(messages="messages", why="unread"), {"messages": CHAT, "why": 0}, "why"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_are_read_from_every_file_type(
    tmp_path: Path, adapter: Adapter, row: dict[str, Any], column: str
):
    """Parquet, as the hub keeps it, and JSON give what the row itself gives; a file that lacks a
    column that is read is refused by the column's name."""
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("rows.parquet", "rows.jsonl"):
        tree = {"dataset": str(tmp_path / name), "adapter": dump(adapter)}
        (made,) = build(Dataset, tree).problems()
        assert made == adapter(row)
    rest = {name: value for name, value in row.items() if name != column}
    (tmp_path / "rows.jsonl").write_text(json.dumps(rest) + "\n")
    with pytest.raises(DataError) as refused:
        build(
            Dataset, {"dataset": str(tmp_path / "rows.jsonl"), "adapter": dump(adapter)}
        ).problems()
    assert str(refused.value) == (
        f"{tmp_path}/rows.jsonl, row 1: column {column!r} is missing; the row has {', '.join(rest)}"
    )


secret = st.text(alphabet="qxz", min_size=8, max_size=80).map(lambda text: f"~{text}~")
"""Texts that no question has."""


def revealed(adapter: Adapter, row: Row, secrets: list[str]) -> list[str]:
    """The secrets that a prompt shows, in its messages or its id."""
    prompt = adapter(row).prompt
    shown = "\n".join([prompt.id, *(message.content for message in prompt.messages)])
    return [text for text in secrets if text.strip("~") in shown]


@given(st.lists(secret, min_size=4, max_size=4, unique=True), st.sampled_from([1, 2, 3]))
def test_no_privileged_text_is_in_a_prompt(texts: list[str], number: Any):
    a, b, c, d = texts
    told = {"from": "assistant", "value": TAGS.replace("Two and two.", a).replace("It is", b)}
    talk = [*CHAT[:2], {"role": "assistant", "content": a}]
    rows: list[tuple[Adapter, Row]] = [
        (gsm8k, {"question": "Q?", "answer": f"{a} {b}\n#### {c}"}),  # type: ignore[list-item]
        (
            DeepMath(solution=number),
            {"question": "Q?", "final_answer": d}
            | {f"r1_solution_{i}": text for i, text in enumerate((a, b, c), start=1)},
        ),
        (
            OpenThoughts(),
            {
                "problem": "Q?",
                "deepseek_reasoning": a,
                "deepseek_solution": b,
                "ground_truth_solution": f"{c} \\boxed{{{d}}}",
            },
        ),
        (Conversations(), {"conversations": [CONVERSATION["conversations"][0], told]}),
        (DAPO(), {**DAPO_ROW, "reward_model": {"ground_truth": a}, "extra_info": {"answer": b}}),
        (
            OpenMathReasoning(),
            {"problem": "Q?", "generated_solution": f"{a}</think>{b}", "expected_answer": c},
        ),
        (
            columns(p="prompt", s="solution", a="answer", d="demonstration", u="unread"),
            {"p": "Q?", "s": a, "a": b, "d": c, "u": d},
        ),
        (columns(m="messages", s="solution", a="answer"), {"m": talk, "s": b, "a": c}),
        (
            columns(p="prompt", c="demonstration"),
            {"p": CHAT[:2], "c": [{"role": "assistant", "content": a}]},
        ),
    ]
    for adapter, row in rows:
        assert not revealed(adapter, row, texts), adapter
        privileged = adapter(row).privileged
        held = f"{privileged.solution} {privileged.answer} {privileged.demonstration}"
        assert any(text.strip("~") in held for text in texts), adapter
