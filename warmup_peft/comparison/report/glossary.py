"""What the words of the reports mean."""

from warmup_peft.method.diagnostics import UNUSED_BELOW

GAINS = (
    "Both gains large: what is written matters. Only the gain over none: the warmup is a pause to compute in. "
    "Neither: it is not used."
)

WORDS = {
    "warmup": "A few tokens that the model writes to itself after the prompt and before its answer. Nobody annotates "
    "them; training finds them.",
    "SFT": "Supervised fine-tuning: plain training on prompts and reference answers, without warmups. What warmups "
    "have to beat to be worth their cost.",
    "arm": "One way to train the model, or not to train it. All else is the same.",
    "seed": "One repetition of a training with other random numbers.",
    "±": "Standard error of the mean over seeds: how far the mean would typically move if the seeds were others. "
    "Absent where there is one seed.",
    "points": "Hundredths of the score: from 0.85 to 0.87 are +2 points.",
    "interval": "Where the difference lies with 95% confidence, as far as the choice of test rows goes: the rows are "
    "drawn anew many times, the same for both arms (paired bootstrap).",
    "adjusted p": "How often chance alone would show so large a difference if there were none, corrected for the "
    "number of arms that are compared (Holm): of many arms, one looks good by luck. McNemar’s p counts only the rows "
    "that one arm gets right and the other wrong; the p over seeds asks whether the seeds agree (paired t-test). Both "
    "are corrected too.",
    "shown, not shown": "Shown: all of these p-values are below 0.05. Not shown does not mean that there is no "
    "difference, only that this comparison cannot tell.",
    "visible": "The smallest difference, in points, that this many test rows would show four times out of five.",
    "perplexity": "How surprised the model is by a token of the reference, after its own warmup: 1 is not at all; "
    "lower is better.",
    "gain over none, gain over another’s": "Nats that the reference’s log-probability gains by the model’s own "
    "warmup, over no warmup and over the one of another row. Both large: what is written matters. Only the first: the "
    "warmup is a pause to compute in. Neither: it is not used.",
    "overlap": "Share of the warmup’s words that stand in the reference too. Near 1, the warmup is a draft of the "
    "answer.",
    "distinct": "Share of the warmups that differ. Near 0, the model always writes the same.",
    "examples to reach": "Training examples seen when the learning curve first reached that score; from the quickest "
    "to the slowest seed.",
}
WORDS_OF_INSPECTION = {
    "warmup": WORDS["warmup"],
    "with its warmup, without": "The same model answers every row twice: after the warmup that it writes itself, and "
    "after the separator alone.",
    "points": WORDS["points"],
    "95% interval": "Where the difference lies with 95% confidence, as far as the choice of rows goes: the rows are "
    "drawn anew many times, the same for both ways of answering (paired bootstrap).",
    "p": "How often chance alone would show so large a difference if there were none. Only below 0.05 is it said to "
    "be seen. McNemar’s p counts only the rows that are right one way and wrong the other.",
    "perplexity": "How surprised the model is by a token of the reference: 1 is not at all; lower is better.",
    "gain over none, gain over another’s": WORDS["gain over none, gain over another’s"]
    + f" Small is below {UNUSED_BELOW} nats. A gain can be large and the score the same: it moves the odds, and "
    "the score only sees where they tip.",
    "overlap": WORDS["overlap"],
    "distinct": WORDS["distinct"],
    "direct, similar, neither, empty": "Whether warmup and reference share words. Words without a meaning of their "
    "own (English stop words) do not count where there are others; stems are English too.",
}
