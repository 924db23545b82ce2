"""Explanations of the terms in the reports."""

from warmup_peft.method.diagnostics import UNUSED_BELOW

GAINS = (
    "If both gains are large, the content of the warmups matters. If only the gain over no warmup is large, the "
    "warmups only give the model time to compute. If neither is large, the model does not use its warmups."
)

_BOOTSTRAP = (
    "95% confidence interval of the difference, by paired bootstrap: the rows are resampled many times, the same rows "
    "for both sides. It covers the choice of rows, not the randomness of training."
)

WORDS = {
    "warmup": "A few tokens that the model generates after the prompt and before its answer. They are not annotated; "
    "they are learned in training.",
    "SFT": "Supervised fine-tuning on prompts and reference answers, without warmups. Warmups have to beat it to be "
    "worth their cost.",
    "arm": "One way to train the model, or not to train it. Everything else is the same for all arms.",
    "seed": "One training run with its own random numbers.",
    "±": "Standard error of the mean over seeds. It is missing where there is only one seed.",
    "points": "Hundredths of the score: from 0.85 to 0.87 is +2 points.",
    "95% interval": _BOOTSTRAP,
    "adjusted p": "How often chance alone would give so large a difference if there were none, corrected for the "
    "number of arms (Holm), because among many arms one looks good by chance. McNemar’s test counts only the rows "
    "that one arm answers right and the other wrong. The p over seeds is of a paired t-test. All are corrected.",
    "significant": "A difference is called significant only if every adjusted p-value is below 0.05. If it is not "
    "significant, there may still be a difference that this comparison is too small to detect.",
    "minimum detectable effect": "The smallest difference, in points, that a comparison with this many test rows "
    "finds significant four times out of five.",
    "perplexity": "Of the reference answer, for each token, after the model’s own warmup. 1 is perfect; lower is "
    "better.",
    "gain over no warmup, gain over a shuffled warmup": "How much the model’s own warmup raises the log-probability "
    f"of the reference, in nats, over no warmup and over the warmup of another row. {GAINS}",
    "read, only a pause, unused": "Warmups are read where they gain something over another row’s warmup, a pause "
    "where they gain something over none only, and else unused. A gain counts if its 95% interval over test rows lies "
    f"above 0 and it is at least {UNUSED_BELOW} nats. Each seed is judged alone.",
    "after a shuffled warmup, after no warmup": "The score of the same trained model with other text in its warmup’s "
    "place: another row’s warmup, or nothing.",
    "overlap with the reference": "Share of the warmup’s words that also occur in the reference. Near 1, the warmup "
    "is a draft of the answer.",
    "distinct": "Share of distinct warmups. Near 0, the model always writes the same warmup.",
    "after a sampled warmup": "Elsewhere answers follow the greedy warmup, the likeliest token each time. Here they "
    "follow sampled ones, which are what training works on.",
    "right greedy warmups, right among samples": "Share of the warmups that the task’s own check finds right. No "
    "training uses that check.",
    "examples to reach": "Training examples seen when the learning curve first reached that score, from the fastest "
    "to the slowest seed.",
}
WORDS_OF_INSPECTION = {
    "warmup": WORDS["warmup"],
    "with its warmup, without": "The same model answers every row twice: after its own warmup, and after the "
    "separator alone.",
    "points": WORDS["points"],
    "95% interval": _BOOTSTRAP,
    "p": "How often chance alone would give so large a difference if there were none. The difference is called "
    "significant only if p is below 0.05. McNemar’s test counts only the rows that are right one way and wrong the "
    "other.",
    "perplexity": "Of the reference answer, for each token. 1 is perfect; lower is better.",
    "gain over no warmup, gain over a shuffled warmup": WORDS["gain over no warmup, gain over a shuffled warmup"]
    + f" Small means below {UNUSED_BELOW} nats. A gain can be large while the score stays the same, because the score "
    "changes only where the most likely answer changes.",
    "overlap with the reference": WORDS["overlap with the reference"],
    "distinct": WORDS["distinct"],
    "direct, similar, neither, empty": "Whether warmup and reference share words. English stop words count only if "
    "there are no other words. Stems are English too.",
}
