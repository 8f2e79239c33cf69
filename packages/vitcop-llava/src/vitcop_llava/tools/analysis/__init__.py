"""Does ViTCoP suit a model? The paper's Figures 2a, 2b, 3a, 4 and 6 measured on it, and a verdict in words."""

from vitcop_llava.tools.analysis.accuracy import Accuracy, Asked, Score, measure_accuracy
from vitcop_llava.tools.analysis.observing import Observation, observe
from vitcop_llava.tools.analysis.result import Analysis, Sample, analyze, summarize
from vitcop_llava.tools.analysis.statistics import cumulative_share, effective_share, kept_attention, rank_correlation
from vitcop_llava.tools.analysis.verdict import CutVerdict, LayerVerdict, Verdict, judge

__all__ = [
    "Accuracy",
    "Analysis",
    "Asked",
    "CutVerdict",
    "LayerVerdict",
    "Observation",
    "Sample",
    "Score",
    "Verdict",
    "analyze",
    "cumulative_share",
    "effective_share",
    "judge",
    "kept_attention",
    "measure_accuracy",
    "observe",
    "rank_correlation",
    "summarize",
]
