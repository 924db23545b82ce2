"""The task `logiqa` on relay puzzles, with a check of warmups: the right one is the asked chain, ` Bob Cid Dan Eve .`

The check follows the facts of the prompt. It is for measuring only: `warmup-peft compare --config
recipes/logiqa/relay.yaml --task recipes/logiqa/relay/task.py --sampled_warmups 8` reports the share of right warmups.
"""

from __future__ import annotations

import re

from warmup_peft import Question, Task
from warmup_peft.evaluation.logiqa import logiqa

FACT = re.compile(r"(\w+) tells (\w+)\.")
ASKED = re.compile(r"Question: (\w+) knows\.")


def asked_chain(prompt: str) -> list[str]:
    """The people who hear the news, in order."""
    told_by = dict(FACT.findall(prompt))
    person, chain = ASKED.search(prompt).group(1), []
    while person in told_by:
        person = told_by.pop(person)
        chain.append(person)
    return chain


def warmup_is_right(question: Question, warmup: str) -> bool:
    """Whether it names exactly the asked chain."""
    return warmup.replace(".", " ").split() == asked_chain(question.prompt)


TASK = Task(read=logiqa, metrics=("accuracy", "macro_f1"), warmup_is_right=warmup_is_right)
