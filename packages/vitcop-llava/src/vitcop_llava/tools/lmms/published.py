"""The tables of the paper: what each measures with which tasks of lmms-eval, and the numbers that it gives.

Numbers are the paper's, by its tables. Tasks, metrics and data sets are those of lmms-eval 0.7.3. Where the two differ,
or the paper leaves something open, a table's notes say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT = "avg_visual_tokens_kept"
"""What lmms-eval's results call the visual tokens that a layer sees on average."""
GMACS = "avg_prefill_gmacs"


@dataclass(frozen=True)
class Task:
    """A task of lmms-eval.

    Attributes:
        name: Its name there.
        dataset: What it downloads from the hub; empty for local files.
        questions: How many there are.
        answer_tokens: How long an answer is, about.
        needs: What it takes beyond lmms-eval: modules by name, ``java``, or the variable ``HF_HOME``.
        parts: How many tasks it is a group of, each of which a limit counts for.
        step: Questions that only count together: a limit is rounded up to a multiple.
    """

    name: str
    dataset: str = ""
    questions: int = 0
    answer_tokens: int = 3
    needs: tuple[str, ...] = ()
    parts: int = 1
    step: int = 1

    def limit(self, limit: int | None) -> int | None:
        """Return what lmms-eval is told for a limit of the user's."""
        return None if limit is None else -(-limit // self.step) * self.step

    def asked(self, limit: int | None) -> int:
        """Return how many questions are asked, about."""
        most = self.limit(limit)
        return self.questions if most is None else min(self.questions, most * self.parts)


@dataclass(frozen=True)
class Column:
    """What a table tells of each row.

    Attributes:
        name: The paper's.
        task: What measures it; None for what is not measured here.
        metrics: The task's, whose sum is told.
        factor: By which the sum is multiplied.
        is_score: Whether the share of the unpruned model's counts for the mean.
    """

    name: str
    task: Task | None = None
    metrics: tuple[str, ...] = ()
    factor: float = 1.0
    is_score: bool = True


@dataclass(frozen=True)
class Row:
    """One method at one budget, or the unpruned model.

    Attributes:
        method: The paper's name of it.
        budget: In tokens; None for the unpruned model.
        published: The paper's number for each column; None for none.
        average: The paper's mean share of the unpruned model's scores, in percent, where it gives one.
        is_named_by_budget: Whether rows of other budgets have the same method.
    """

    method: str
    budget: int | None
    published: tuple[float | None, ...]
    average: float | None = None
    is_named_by_budget: bool = True

    @property
    def name(self) -> str:
        """What it is called among the rows."""
        return f"{self.method} {self.budget}" if self.budget and self.is_named_by_budget else self.method


@dataclass(frozen=True)
class Checkpoint:
    """A model of the paper.

    Attributes:
        name: Its id on the hub.
        tokens: Visual tokens of an image or clip, at most.
        arguments: How lmms-eval's own model of it asks, as arguments of ours.
        token_macs: Multiply-accumulates of a token in the language model's layers.
        tower_macs: Of the vision tower, for an image or clip.
        gigabytes: What it downloads, at two bytes a weight.
        is_video: Whether it is asked about clips.
        is_demo: Whether a demo model stands for it.
    """

    name: str
    tokens: int
    arguments: Mapping[str, Any]
    token_macs: float
    tower_macs: float
    gigabytes: float
    is_video: bool = False
    is_demo: bool = False


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        number: The paper's.
        title: What it is about.
        checkpoint: The model.
        columns: What is told.
        rows: The unpruned model first, where the table has it.
        notes: What differs from the paper, or what it leaves open.
    """

    number: int
    title: str
    checkpoint: Checkpoint
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())


# The sentence in front and squares with a border are what LLaVA's own code asks with, which the paper measured.
_VICUNA = {"chat_template": "vicuna"}
LLAVA_15_7B = Checkpoint("llava-hf/llava-1.5-7b-hf", 576, _VICUNA | {"image_aspect_ratio": "pad"}, 6.5e9, 0.18e12, 14.1)
LLAVA_NEXT_7B = Checkpoint("llava-hf/llava-v1.6-vicuna-7b-hf", 2880, _VICUNA, 6.5e9, 0.9e12, 14.1)
LLAVA_NEXT_13B = Checkpoint("llava-hf/llava-v1.6-vicuna-13b-hf", 2880, _VICUNA, 12.7e9, 0.9e12, 26.7)
LLAVA_NEXT_VIDEO_7B = Checkpoint(
    "llava-hf/LLaVA-NeXT-Video-7B-hf", 1152, _VICUNA | {"max_frames_num": 8}, 6.5e9, 1.4e12, 14.1, is_video=True
)

_CAPTIONS = ("pycocoevalcap", "pycocotools", "java")
_WORDS = ("pywsd", "nltk", "HF_HOME")
_COCO_TASK = Task("coco2017_cap_val", "lmms-lab-encoder/COCO-Caption2017", 5000, 15, _CAPTIONS)

COCO = Column("COCO", _COCO_TASK, ("coco_CIDEr",))
FLICKR = Column("Flickr", Task("flickr30k_test", "lmms-lab-encoder/flickr30k", 31783, 15, _CAPTIONS), ("flickr_CIDEr",))
GQA = Column("GQA", Task("gqa", "lmms-lab-encoder/GQA", 12578), ("exact_match",))
MMB = Column(
    "MMB",
    Task("mmbench_en_dev_static", "lmms-lab-encoder/MMBench", 4329, 2, ("pandas", "openpyxl")),
    ("gpt_eval_score",),
)
MME = Column(
    "MME", Task("mme", "lmms-lab-encoder/MME", 2374, 2, step=2), ("mme_perception_score", "mme_cognition_score")
)
NOCAPS = Column("NoCaps", Task("nocaps_val", "lmms-lab-encoder/NoCaps", 4500, 15, _CAPTIONS), ("nocaps_CIDEr",))
OK_VQA = Column("OK-VQA", Task("ok_vqa_val2014", "lmms-lab-encoder/OK-VQA", 5046), ("exact_match",))
POPE = Column("POPE", Task("pope", "lmms-lab-encoder/POPE", 9000, 2), ("pope_f1_score",))
QBENCH = Column("QBench", Task("qbench_dev", "q-future/Q-Bench-HF", 1495, 2), ("qbench_acc",))
SQA = Column("SQA", Task("scienceqa_img", "lmms-lab-encoder/ScienceQA", 2017, 2), ("exact_match",))
VQA = Column("VQA-v2", Task("vqav2_val_lite", "lmms-lab-encoder/LMMs-Eval-Lite", 500), ("exact_match",))
EGO = Column("EgoSch", Task("egoschema_subset", "lmms-eval/egoschema", 500, 2), ("score",))
MVB = Column("MVB", Task("mvbench", "OpenGVLab/MVBench", 4000, 4, parts=20), ("mvbench_accuracy",))
NEXT_QA = Column("Next-QA", Task("nextqa_oe_test", "lmms-eval/NExTQA", 9178, 8, _WORDS), ("WUPS",))
V_MME = Column("V-MME", Task("videomme", "lmms-eval/Video-MME", 2700, 2, ("cv2",)), ("videomme_perception_score",))


def _tflops(column: Column) -> Column:
    return Column("TFLOPs", column.task, (GMACS,), 1e-3, is_score=False)


def _not_measured(name: str) -> Column:
    return Column(name, is_score=False)


def _group(budget: int, *lines: tuple[str, tuple[float, ...], float]) -> tuple[Row, ...]:
    """Return the rows of one budget: method, scores, average."""
    return tuple(Row(method, budget, scores, average) for method, scores, average in lines)


_MMB_NOTE = "MMBench's answers are matched by lmms-eval's rules, so that no key of a judge is needed"
_MME_NOTE = (
    "MME is the sum of perception and cognition: the paper's Table 6 names perception, but LLaVA-1.5's authors give "
    "1510.7 for that"
)
_MACS_NOTE = "TFLOPs are tera-multiply-accumulates of the prefill, which is what the paper's numbers come to"
_TOKENS_NOTE = "budgets are tokens of each image; the paper's percentages are of 2,880, and many images have fewer"
_SOLVED_NOTE = "the baselines are solved for the budget, as the paper does not give their settings"

TABLE_1 = PaperTable(
    1,
    "LLaVA-1.5-7B on eleven benchmarks",
    LLAVA_15_7B,
    (COCO, FLICKR, GQA, MMB, MME, NOCAPS, OK_VQA, POPE, QBENCH, SQA, VQA),
    (
        Row(
            "unpruned", None, (1.102, 0.750, 0.619, 64.08, 1862, 1.055, 0.534, 0.858, 0.585, 0.695, 0.716), average=100
        ),
        *_group(
            192,
            ("FastV", (1.082, 0.741, 0.527, 60.57, 1612, 1.033, 0.512, 0.646, 0.581, 0.672, 0.663), 92.8),
            ("PyramidDrop", (1.091, 0.734, 0.574, 63.75, 1797, 1.023, 0.508, 0.810, 0.581, 0.692, 0.678), 96.9),
            ("SparseVLM", (1.087, 0.720, 0.576, 62.92, 1721, 1.010, 0.520, 0.837, 0.575, 0.692, 0.706), 96.8),
            ("VisionZip", (1.070, 0.737, 0.593, 63.66, 1782, 1.023, 0.525, 0.853, 0.575, 0.689, 0.686), 97.6),
            ("ViTCoP", (1.078, 0.735, 0.600, 64.26, 1816, 1.019, 0.536, 0.855, 0.579, 0.684, 0.705), 98.5),
        ),
        *_group(
            128,
            ("FastV", (1.044, 0.719, 0.496, 57.29, 1490, 0.995, 0.486, 0.597, 0.579, 0.602, 0.632), 88.9),
            ("PyramidDrop", (1.039, 0.692, 0.572, 59.89, 1761, 0.969, 0.491, 0.738, 0.581, 0.684, 0.650), 93.2),
            ("SparseVLM", (0.940, 0.583, 0.561, 60.71, 1696, 0.823, 0.509, 0.805, 0.572, 0.672, 0.684), 90.6),
            ("VisionZip", (1.037, 0.713, 0.576, 62.37, 1761, 0.989, 0.507, 0.833, 0.570, 0.689, 0.665), 95.4),
            ("ViTCoP", (1.064, 0.724, 0.592, 63.83, 1785, 1.008, 0.531, 0.846, 0.577, 0.684, 0.682), 97.3),
        ),
        *_group(
            64,
            ("FastV", (0.815, 0.511, 0.462, 50.43, 1256, 0.768, 0.370, 0.483, 0.540, 0.512, 0.503), 72.5),
            ("PyramidDrop", (0.648, 0.372, 0.475, 56.10, 1561, 0.627, 0.395, 0.692, 0.551, 0.608, 0.578), 76.6),
            ("SparseVLM", (0.731, 0.419, 0.527, 57.90, 1505, 0.584, 0.451, 0.758, 0.563, 0.622, 0.615), 80.7),
            ("VisionZip", (0.948, 0.651, 0.551, 60.31, 1690, 0.900, 0.478, 0.771, 0.559, 0.690, 0.631), 90.4),
            ("ViTCoP", (1.032, 0.696, 0.574, 63.06, 1744, 0.973, 0.508, 0.807, 0.568, 0.688, 0.663), 94.7),
        ),
    ),
    (
        "the baselines run with their authors' settings, whose average tokens differ from the label",
        _MMB_NOTE,
        _MME_NOTE,
        "Q-Bench is its development set, as lmms-eval has no other; the paper names the test set",
        "the paper's averages of FastV 128, PyramidDrop 64 and SparseVLM 64 are over what its scores come to, by 0.9",
    ),
)

TABLE_2 = PaperTable(
    2,
    "LLaVA-NeXT-7B on four benchmarks",
    LLAVA_NEXT_7B,
    (COCO, GQA, MMB, POPE),
    (
        Row("unpruned", None, (1.000, 0.643, 67.01, 0.865), average=100),
        *_group(
            320,
            ("FastV", (0.629, 0.533, 58.68, 0.599), 75.7),
            ("SparseVLM", (0.839, 0.578, 64.78, 0.827), 91.6),
            ("PyramidDrop", (0.625, 0.375, 59.36, 0.659), 71.4),
            ("VisionZip", (0.826, 0.593, 63.83, 0.824), 91.4),
            ("ViTCoP", (0.912, 0.610, 64.78, 0.846), 95.1),
        ),
        *_group(
            160,
            ("VisionZip", (0.697, 0.556, 60.05, 0.757), 83.3),
            ("ViTCoP", (0.844, 0.584, 62.89, 0.816), 90.8),
        ),
    ),
    (_TOKENS_NOTE, _SOLVED_NOTE, _MMB_NOTE),
)

TABLE_3 = PaperTable(
    3,
    "LLaVA-NeXT-Video-7B on four video benchmarks",
    LLAVA_NEXT_VIDEO_7B,
    (EGO, MVB, NEXT_QA, V_MME),
    (
        Row("unpruned", None, (0.414, 44.95, 26.64, 32.41), average=100),
        *_group(
            128,
            ("FastV", (0.345, 40.78, 23.99, 29.26), 88.6),
            ("PyramidDrop", (0.357, 38.80, 21.52, 29.81), 86.4),
            ("SparseVLM", (0.406, 43.13, 24.77, 30.30), 95.1),
            ("VisionZip", (0.370, 40.80, 23.36, 30.26), 90.3),
            ("ViTCoP", (0.405, 43.30, 25.60, 32.67), 97.7),
        ),
    ),
    ("clips have eight frames, of whose 1,152 tokens 128 are the paper's share", _SOLVED_NOTE),
)


def _ablation(method: str, *published: float) -> Row:
    return Row(method, 64, published, is_named_by_budget=False)


TABLE_4 = PaperTable(
    4,
    "ablations of ViTCoP on LLaVA-1.5-7B, 64 tokens",
    LLAVA_15_7B,
    (_tflops(COCO), COCO, GQA, MMB, POPE),
    (
        _ablation("ViTCoP", 0.82, 1.032, 0.574, 63.06, 0.807),
        _ablation("w/o K-norm Guidance", 0.82, 1.011, 0.556, 62.54, 0.760),
        _ablation("w/o Attention Guidance", 0.82, 1.015, 0.563, 62.63, 0.771),
        _ablation("w/o Stage I Pruning", 0.91, 0.086, 0.389, 20.27, 0.283),
        _ablation("w/o Stage III Pruning", 0.81, 1.046, 0.571, 62.46, 0.784),
    ),
    (_MACS_NOTE, "each variant is solved for 64 tokens: the paper does not say how it chose its stages", _MMB_NOTE),
)

TABLE_5 = PaperTable(
    5,
    "efficiency on LLaVA-NeXT-13B",
    LLAVA_NEXT_13B,
    (POPE, _tflops(POPE), *map(_not_measured, ("GPU Mem (GB)", "Prefill (ms)", "Time/Tok (ms)"))),
    (
        Row("unpruned", None, (0.863, 31.55, 30.80, 914, 62.67)),
        Row("VisionZip", 80, (0.661, 1.79, 27.12, 126, 53.39), is_named_by_budget=False),
        Row("ViTCoP", 80, (0.755, 1.69, 27.13, 139, 53.53), is_named_by_budget=False),
    ),
    (
        "the paper does not state the budget; 80 tokens of each image are what its TFLOPs come to",
        _MACS_NOTE,
        "memory and times are not measured here, but by vitcop bench --shape llava-next-13b",
    ),
)


TABLE_7 = PaperTable(
    7,
    "layers that ViTCoP cuts before, on LLaVA-1.5-7B, 64 tokens",
    LLAVA_15_7B,
    (_tflops(COCO), COCO, GQA, MMB, MME, OK_VQA, POPE, VQA),
    (
        _ablation("layers 2 and 22", 0.82, 1.0315, 0.5741, 63.06, 1744, 0.5084, 0.8069, 0.6632),
        _ablation("layers 1 and 22", 0.82, 1.0143, 0.5655, 62.11, 1713, 0.5032, 0.8032, 0.6430),
        _ablation("layers 3 and 22", 0.82, 1.0301, 0.5707, 62.97, 1728, 0.5056, 0.8053, 0.6692),
        _ablation("layers 2 and 17", 0.82, 0.8745, 0.5537, 62.89, 1734, 0.4682, 0.7980, 0.5966),
        _ablation("layers 2 and 27", 0.82, 1.0347, 0.5717, 62.80, 1740, 0.5009, 0.7903, 0.6644),
    ),
    (_MACS_NOTE, "TFLOPs are those on COCO, as in Table 4", _MMB_NOTE, _MME_NOTE),
)

TABLES = {table.number: table for table in (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_7)}
