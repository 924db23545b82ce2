"""Rows as they are trained on become questions; rows without one answer are refused by their number."""

from __future__ import annotations

import pytest

from warmup_peft.evaluation.prompt_completion import prompt_completion
from warmup_peft.evaluation.tasks import BUILT_IN_TASKS, PROMPT_COMPLETION, find_task, fingerprint

ASK = {"role": "user", "content": "Who?"}
SAY = {"role": "assistant", "content": "Ned"}
RULE = {"role": "system", "content": "Be brief."}


def test_it_is_a_built_in_task():
    assert PROMPT_COMPLETION in BUILT_IN_TASKS
    task = find_task(PROMPT_COMPLETION)
    assert (task.metrics, task.max_new_tokens) == (("exact_match",), None)


def test_texts_stay_as_they_are():
    (question,) = prompt_completion([{"prompt": "Who?\n", "completion": "  Ned\n", "other": 3}])
    assert (question.prompt, question.text, question.options) == ("Who?\n", "Who?\n", ("  Ned\n",))
    assert question.training_row == {"prompt": "Who?\n", "completion": "  Ned\n"}


@pytest.mark.parametrize(
    ("row", "prompt", "text"),
    [
        ({"messages": [ASK, SAY]}, [ASK], "user: Who?"),
        ({"prompt": [RULE, ASK], "completion": [SAY]}, [RULE, ASK], "system: Be brief.\nuser: Who?"),
        ({"messages": [ASK, SAY, ASK, SAY]}, [ASK, SAY, ASK], "user: Who?\nassistant: Ned\nuser: Who?"),
        ({"messages": [{**ASK, "name": None}, {**SAY, "reasoning_content": "Ann, Ned"}]}, [ASK], "user: Who?"),
        ({"messages": [ASK, {**SAY, "content": "<think>\nAnn\n</think>\n\nNed"}]}, [ASK], "user: Who?"),
        ({"messages": [ASK, {**SAY, "content": [{"type": "text", "text": "Ned"}]}]}, [ASK], "user: Who?"),
        ({"messages": [ASK, SAY], "prompt": None, "completion": None}, [ASK], "user: Who?"),
        (
            {"conversations": [{"from": "user", "value": "Who?"}, {"from": "assistant", "value": "Ned"}]},
            [ASK],
            "user: Who?",
        ),
    ],
)
def test_the_last_assistant_turn_is_the_reference(row, prompt, text):
    (question,) = prompt_completion([row])
    assert (question.prompt, question.text, question.options) == (prompt, text, ("Ned",))
    assert question.training_row == {"prompt": prompt, "completion": [SAY]}


def test_tools_and_what_a_template_takes_go_with_the_question():
    more = {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": True}}
    (question,) = prompt_completion([{"messages": [ASK, SAY], **more}])
    assert question.template == {"tools": [{"type": "function"}], "enable_thinking": True}
    assert question.training_row == {"prompt": [ASK], "completion": [SAY], **more}
    (none,) = prompt_completion([{"messages": [ASK, SAY], "tools": None, "chat_template_kwargs": None}])
    assert none.template == {}


def test_conversations_have_a_fingerprint_of_their_own():
    one, same, other = (
        prompt_completion([{"messages": [{**ASK, "content": text, **more}, SAY]}])
        for text, more in (("Who?", {}), ("Who?", {"name": None}), ("Why?", {}))
    )
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "has no `completion`. The data has the columns prompt; the task prompt_completion reads"),
        ({"prompt": "a", "completion": None}, "has no `completion`"),
        ({"prompt": "", "completion": "b"}, "has no `prompt`"),
        ({"text": "a"}, "has no `prompt`. The data has the columns text;"),
        ({"prompt": "a", "completion": " \n"}, "white space alone"),
        ({"prompt": "a", "completion": [SAY]}, "has a text and a list of messages"),
        ({"messages": [ASK]}, "ends with a user turn, so there is no answer"),
        ({"messages": [ASK, SAY, ASK]}, "ends with a user turn"),
        ({"messages": [RULE]}, "has only a system prompt"),
        ({"prompt": [RULE], "completion": [SAY]}, "has no user turn before its answer"),
        ({"messages": [SAY]}, "has no user turn before its answer"),
        ({"messages": []}, "has no messages"),
        ({"messages": [ASK, SAY, SAY]}, "ends with two assistant turns"),
        ({"prompt": [ASK], "completion": [SAY, ASK, SAY]}, "has 3 messages in its `completion`. A row has one answer"),
        ({"messages": [ASK, {**SAY, "content": None}]}, "has no text in its answer"),
        ({"messages": [ASK, {**SAY, "content": "<think>Ned</think>"}]}, "has no text in its answer"),
        ({"messages": "Who?"}, "has no list of messages in `messages`"),
        ({"messages": [ASK, {"content": "Ned"}]}, "has no list of messages in `messages`"),
    ],
)
def test_rows_that_have_not_one_answer_are_refused_by_their_number(row, words):
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(ValueError, match=r"^Row 2 ") as refused:
        prompt_completion([good, row])
    assert words in str(refused.value)
