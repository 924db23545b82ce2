"""Translation: any two columns of text, named by language codes or by whatever the data calls them."""

from __future__ import annotations

from collections.abc import Iterable

from warmup_peft import Question, Task
from warmup_peft.evaluation.tasks import text_column

LANGUAGES = {"cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fr": "French"}


def read(rows: Iterable[dict], source: str = "de", target: str = "en") -> list[Question]:
    """Columns `source` and `target`, also inside a column `translation` as WMT has them.

    Raises:
        ValueError: naming the first row (counted from 1) without the text.
    """
    names = [LANGUAGES.get(code, code) for code in (source, target)]
    questions = []
    for number, row in enumerate(rows, 1):
        pair = row.get("translation") or row
        texts = [text_column(pair, column, number) for column in (source, target)]
        questions.append(Question(f"{names[0]}: {texts[0]}\n{names[1]}:", (f" {texts[1]}",)))
    return questions


TASK = Task(read=read, metrics=("bleu", "chrf++", "comet"), max_new_tokens=64)
