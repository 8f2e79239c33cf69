"""Pruning methods compared on one model and one set of questions: answers, intervals, costs and times."""

PRESETS = ("equal-budgets", "table-4", "table-7", "published")
"""The seven methods, each solved for the same average of tokens; the paper's ablations of parts (Table 4) and of cut
layers (Table 7); each method as its authors published it, at budgets that are not equal."""

ANSWERS, RESULT, REPORT, PLOT = FILES = ("answers.jsonl", "result.json", "report.md", "tradeoff.png")
"""What a comparison leaves in its folder."""
