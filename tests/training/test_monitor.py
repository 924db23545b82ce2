"""What a training shows of its warmups: metrics by hand, the table, trackers, and the warning."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import EXAMPLES
from trainers import make_trainer, randomise_adapter, record_warmups

from warmup_peft.method.branches import Tokens, Warmups
from warmup_peft.method.objective import Scores
from warmup_peft.training.monitor import SAMPLES, WarmupMonitor


def tokens_of(tokenizer, texts, side):
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    padding = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if side == "left" else row + pad for pad, row in zip(padding, rows)])
    return Tokens(ids, ids != 0)


def warmups_of(tokenizer, texts):
    """(B, K) texts, each ended by the model."""
    flat = tokens_of(tokenizer, [text + "<|eos|>" for row in texts for text in row], "right")
    shape = (len(texts), len(texts[0]))
    decided = flat.mask.sum(-1).unflatten(0, shape)
    return Warmups(flat.ids.unflatten(0, shape), decided - 1, decided)


@pytest.fixture
def batch(tokenizer):
    """Two examples, two warmups each."""
    return {
        "prompt": tokens_of(tokenizer, ["Who is\nolder?", "Why [b]?"], "left"),
        "warmups": warmups_of(tokenizer, [["Lee > Max", "Lee"], ["so so", ""]]),
        "target": tokens_of(tokenizer, [" Lee<|eos|>", " so be it<|eos|>"], "right"),
        "scores": Scores(torch.tensor([[-1.0, -2.0], [-3.0, -3.0]])),
        "credit": (torch.full((2, 2), 0.5), torch.tensor([[0.25, -0.25], [0.0, 0.0]])),
    }


def monitor(tokenizer, send=lambda *_: None, **settings):
    defaults = {
        "log_warmups": True,
        "num_warmups_to_print": 2,
        "report_to": [],
        "warmup_format": "plain",
        "max_warmup_length": 8,
    }
    return WarmupMonitor(SimpleNamespace(**{**defaults, **settings}), tokenizer, send)


def values(ratios):
    return {name.removeprefix("warmups/"): (n / d).item() for name, (n, d) in ratios.items() if d}


def test_metrics_by_hand(tokenizer, batch):
    """Words Lee Max | Lee | so so | nothing: 4 of 5 are the target's. Only the two with Lee hold a whole target."""
    found = values(monitor(tokenizer).ratios(**batch))
    assert found["overlap"] == pytest.approx(4 / 5)
    assert found["leak"] == pytest.approx(2 / 4)
    assert found["mean_length"] == pytest.approx((9 + 3 + 5 + 0) / 4)
    assert found["truncated"] == 0.0
    assert found["distinct"] == 1.0
    assert found["repeated"] == pytest.approx((2 + 1 + 2) / 17)  # in bytes: a space and an e... of each warmup
    weights = torch.tensor([-1.0, -2.0]).softmax(0)
    assert found["effective_sample_size"] == pytest.approx(((1 / weights.square().sum() + 2) / 2).item())
    assert "kl" not in found


def test_truncated_warmups_are_a_share_of_those_that_were_not_left_out(tokenizer, batch):
    """Four warmups: one is left out, and of the other three the first was not ended by the model."""
    lengths = batch["warmups"].lengths
    cut = batch["warmups"]._replace(num_decisions=lengths + torch.tensor([[0, 1], [1, 1]]))
    where = torch.tensor([[False, False], [True, False]])
    found = values(monitor(tokenizer).ratios(**{**batch, "warmups": cut.emptied(where)}))
    assert found["truncated"] == pytest.approx(1 / 3)


def test_left_out_warmups_count_in_no_metric(tokenizer, batch):
    where = torch.tensor([[False, True], [True, True]])
    found = values(monitor(tokenizer).ratios(**{**batch, "warmups": batch["warmups"].emptied(where)}))
    assert (found["mean_length"], found["leak"], found["overlap"]) == (9.0, 1.0, 0.5)


def test_gains_equal_a_plain_loop(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, warmup_gain_steps=1, logging_steps=1, learning_rate=0.0
    )
    randomise_adapter(trainer.model)
    sampled = record_warmups(trainer)
    trainer.train()
    targets = {row["prompt"]: row["completion"] for row in EXAMPLES}
    separator = tokenizer(" | ")["input_ids"]

    def score(prompt_ids, warmup_ids):
        target = tokenizer(targets[tokenizer.decode(prompt_ids)])["input_ids"] + [tokenizer.eos_token_id]
        row = torch.tensor([prompt_ids + warmup_ids + separator + target])
        with torch.no_grad():
            logp = trainer.model(row).logits[0].log_softmax(-1)
        return sum(logp[t - 1, row[0, t]].item() for t in range(row.size(1) - len(target), row.size(1)))

    own = [score(prompt, sample.ids) for prompt, samples in sampled for sample in samples]
    without = [score(prompt, []) for prompt, samples in sampled for _ in samples]
    shuffled = [
        score(prompt, sampled[i - 1][1][0].ids) for i, (prompt, samples) in enumerate(sampled) for _ in samples
    ]
    logs = trainer.state.log_history[0]
    assert logs["warmups/gain_over_none"] == pytest.approx((sum(own) - sum(without)) / len(own), rel=1e-3)
    assert logs["warmups/gain_over_others"] == pytest.approx((sum(own) - sum(shuffled)) / len(own), rel=1e-3)


@pytest.mark.parametrize(("every", "measured"), [(0, []), (2, [1, 3]), (1, [1, 2, 3, 4])])
def test_gains_are_measured_every_so_many_steps(model_folder, tokenizer, lora, tmp_path, every, measured):
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, warmup_gain_steps=every, logging_steps=1, max_steps=4
    )
    trainer.train()
    logs = trainer.state.log_history[:4]
    assert [log["step"] for log in logs if "warmups/gain_over_none" in log] == measured


def test_measuring_changes_neither_weights_nor_random_numbers(model_folder, tokenizer, lora, tmp_path):
    ended = []
    for settings in ({"warmup_gain_steps": 0}, {"warmup_gain_steps": 1, "log_warmups": True, "logging_steps": 1}):
        trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=3, **settings)
        trainer.train()
        ended.append(torch.cat([p.flatten() for p in trainer.model.parameters() if p.requires_grad]))
    assert torch.equal(*ended)


# ---- The table ----


def test_the_table_shows_prompts_warmups_scores_and_targets(tokenizer, batch, capsys):
    shown = monitor(tokenizer)
    shown.ratios(**batch)
    shown.show(shown.last_rows(), 7)
    out = capsys.readouterr().out
    assert "Warmups at step 7" in out
    assert "\x1b" not in out  # no colours where there is no terminal
    assert max(map(len, out.splitlines())) <= 120
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert lines == [
        ["Who is older?", "Lee > Max", "1", "-1.00", "0.50", "+0.25", "Lee"],
        ["", "Lee", "1", "-2.00", "0.50", "-0.25", ""],
        ["Why [b]?", "so so", "1", "-3.00", "0.50", "+0.00", "so be it"],
        ["", "", "1", "-3.00", "0.50", "+0.00", ""],
    ]
    assert shown.last_rows() == []  # nothing new


def test_warmups_that_coincide_take_one_line(tokenizer, batch, capsys):
    shown = monitor(tokenizer, num_warmups_to_print=1)
    batch["warmups"] = warmups_of(tokenizer, [["Lee", "Lee"], ["so so", ""]])
    batch["scores"] = Scores(torch.full((2, 2), -2.0))
    batch["credit"] = (torch.full((2, 2), 0.5), torch.zeros(2, 2))
    shown.ratios(**batch)
    shown.show(shown.last_rows(), 1)
    assert [line.split("│")[3].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")] == [
        "2"
    ]


def test_the_table_is_sent_too(tokenizer, batch, capsys):
    sent = []
    shown = monitor(tokenizer, send=lambda *table: sent.append(table))
    shown.ratios(**batch)
    shown.show(shown.last_rows(), 3)
    ((name, rows, step),) = sent
    assert (name, len(rows), step) == ("warmups", 4, 3)
    assert rows[0] == {
        "prompt": "Who is\nolder?",
        "warmup": "Lee > Max",
        "R": -1.0,
        "w": 0.5,
        "A": 0.25,
        "target": " Lee",
    }


def test_every_log_has_its_samples_and_of_many_logs_every_second(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    monkeypatch.setattr("warmup_peft.training.monitor.MOST_SAMPLED_LOGS", 4)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, logging_steps=1, max_steps=5)
    sampled = record_warmups(trainer)
    trainer.train()
    logs = trainer.state.log_history
    assert [log["step"] for log in logs if SAMPLES in log] == [1, 3, 5]
    last = logs[4][SAMPLES]
    assert [row["warmup"] for row in last] == [
        tokenizer.decode(sample.ids, skip_special_tokens=True) for _, samples in sampled[-4:-2] for sample in samples
    ]
    assert all(row["w"] == pytest.approx(1 / 3) and row["A"] == 0.0 and row["R"] < 0 for row in last)


def test_a_training_prints_the_table_at_every_log(model_folder, tokenizer, lora, tmp_path, capsys):
    make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, log_warmups=True, logging_steps=2, max_steps=4
    ).train()
    out = capsys.readouterr().out
    assert [step for step in range(6) if f"Warmups at step {step}" in out] == [2, 4]


# ---- The warning ----


def test_a_collapse_is_said_once(tokenizer, caplog):
    watching = monitor(tokenizer)
    with caplog.at_level(logging.WARNING):
        watching.warn({"warmups/overlap": 0.2, "warmups/mean_length": 5.0}, 0.1)
        assert caplog.text == ""
        for _ in range(3):
            watching.warn({"warmups/overlap": 0.9, "warmups/mean_length": 5.0}, 0.1)
    assert caplog.text.count("collapsed into drafts of the answer") == 1


def test_a_gain_is_judged_by_the_mean_of_several_logs(tokenizer, caplog):
    watching = monitor(tokenizer)
    with caplog.at_level(logging.WARNING):
        for gain in (-0.4, 0.3, 0.2, 0.3, 0.2, 0.1):
            watching.warn({"warmups/gain_over_none": gain}, 0.9)
        assert caplog.text == ""
        for _ in range(5):
            watching.warn({"warmups/gain_over_none": 0.01}, 0.9)
    assert caplog.text.count("the model answers as well without them") == 1


def test_truncated_warmups_are_said_once_after_several_logs_and_beside_a_collapse(tokenizer, caplog):
    watching = monitor(tokenizer)
    with caplog.at_level(logging.WARNING):
        for share in (1.0, 0.2, 0.2, 0.2):
            watching.warn({"warmups/truncated": share}, 0.1)
        assert caplog.text == ""
        for _ in range(6):
            watching.warn({"warmups/truncated": 1.0, "warmups/overlap": 0.9}, 0.1)
    assert caplog.text.count("are truncated at max_warmup_length=8") == 1
    assert "52% of the warmups" in caplog.text  # of 0.2, 0.2, 0.2, 1, 1
    assert caplog.text.count("collapsed into drafts of the answer") == 1


def test_the_same_prompt_lends_nothing(tokenizer, batch):
    """A warmup of the same prompt is no other example's."""
    watching = monitor(tokenizer)
    same = Tokens(*(x[:1].expand(2, -1) for x in batch["prompt"]))
    ratios = watching.gains(same, batch["warmups"], batch["scores"], lambda warmups: torch.full((2, 1), -5.0))
    assert values(ratios) == {"gain_over_none": pytest.approx((4 + 3 + 2 + 2) / 4)}
    one = Tokens(*(x[:1] for x in batch["prompt"]))
    warmups = Warmups(*(x[:1] for x in batch["warmups"][:3]))
    ratios = watching.gains(
        one, warmups, Scores(batch["scores"].target_logp_BK[:1]), lambda _: torch.full((1, 1), -5.0)
    )
    assert "gain_over_others" not in values(ratios)  # the batch before ended with this very prompt
