"""The verdict on models made up for it, and the numbers that it rests on."""

import json
from fractions import Fraction

import numpy as np
import pytest

from vitcop_core import VisionCut
from vitcop_llava.tools.analysis import Accuracy, Analysis, Observation, Score, judge, summarize
from vitcop_llava.tools.analysis.accuracy import stage_one_alone
from vitcop_llava.tools.analysis.report import claims

LAYERS, TOKENS, PROMPTS = 16, 36, 12


def observed(seed: int, rule: list[float]) -> Observation:
    """Attention whose order is that of the norms (1), the reverse (-1), or neither (0), layer by layer."""
    rng = np.random.default_rng(seed)
    norms = rng.uniform(1, 2, (len(rule), TOKENS)).astype(np.float32)
    noise = rng.uniform(1, 2, norms.shape)
    weights = np.abs(rule)[:, None]
    attention = weights * np.where(np.array(rule)[:, None] < 0, 3 - norms, norms) + (1 - weights) * noise
    attention = (attention / attention.sum(1, keepdims=True) / 2).astype(np.float32)
    return Observation(attention, attention, norms, (rng.uniform(0, 1, TOKENS).astype(np.float32),), (6, 6))


def analyzed(rule: list[float], prompts: int = PROMPTS) -> Analysis:
    return summarize(observed(seed, rule) for seed in range(prompts))


def test_perfectly_negative_is_what_vitcop_assumes() -> None:
    verdict = judge(analyzed([-1.0] * LAYERS))
    assert (verdict.advice, verdict.layers_instead) == ("key_norm", None)
    assert [cut.before for cut in verdict.cuts] == [1, 11]
    assert [cut.reads.layer for cut in verdict.cuts] == [0, 10]
    for layer in verdict.layers:
        assert layer.correlation == pytest.approx(-1)
        assert layer.agreement == 1
        assert layer.strength == "strong, inverse"
    assert verdict.cuts[0].kept == pytest.approx(verdict.cuts[0].kept_at_best)
    assert "At layers 0-15 a low norm means much attention, as ViTCoP assumes" in verdict.text
    assert 'Keep the default, ViTCoP(saliency="key_norm")' in verdict.text
    assert "Only" not in verdict.text


def test_no_relation_advises_attention() -> None:
    verdict = judge(analyzed([0.0] * LAYERS))
    assert verdict.advice == "attention"
    assert {layer.direction for layer in verdict.layers} == {"none"}
    assert "For Stage II and Stage III the norm does not stand for attention. It does at no layer." in verdict.text
    assert 'ViTCoP(saliency="attention")' in verdict.text


def test_positive_is_called_the_reverse() -> None:
    verdict = judge(analyzed([1.0] * LAYERS))
    assert (verdict.advice, verdict.best) == ("attention", ())
    assert verdict.cuts[0].reads.strength == "strong, direct"
    assert "a low norm means little attention, the reverse of what ViTCoP assumes" in verdict.text


def test_mixed_proposes_layers_nearby() -> None:
    rule = [-1.0] * 9 + [0.0] * 2 + [-0.7] * 2 + [1.0] * 3
    verdict = judge(analyzed(rule))
    assert (verdict.advice, verdict.layers_instead) == ("layers", (1, 12))
    assert "For Stage III the norm does not stand for attention at the default layers." in verdict.text
    assert "ViTCoP(layers=(1, 12))" in verdict.text
    for part in ("At layers 0-8 a low norm means much", "At layers 9-10 the norm says little", "At layers 13-15 a low"):
        assert part in verdict.text


def test_good_layers_far_from_the_cuts_are_named_and_not_proposed() -> None:
    rule = [-1.0] * 4 + [0.0] * 12
    verdict = judge(analyzed(rule))
    assert (verdict.advice, verdict.layers_instead) == ("attention", None)
    assert set(verdict.best) < {0, 1, 2, 3}
    assert "too far from the cuts" in verdict.text


def test_direction_takes_most_prompts() -> None:
    mixed = [observed(seed, [-1.0 if seed % 5 else 1.0] * LAYERS) for seed in range(10)]
    verdict = judge(summarize(mixed))
    assert verdict.layers[0].correlation == pytest.approx(-1)
    assert (verdict.layers[0].agreement, verdict.layers[0].direction) == (0.8, "none")


def test_few_prompts_are_said_to_be_few() -> None:
    assert "Only 3 prompts were looked at" in judge(analyzed([-1.0] * LAYERS, prompts=3)).text


def test_numbers_are_json_with_what_each_figure_shows() -> None:
    analysis = analyzed([-1.0] * LAYERS)
    content = json.loads(json.dumps(analysis.as_json() | {"verdict": judge(analysis).as_json()}, allow_nan=False))
    assert (content["layers"], content["cuts"], content["prompts"]) == (LAYERS, [1, 11], PROMPTS)
    assert np.shape(content["figure_3a"]["correlation"]) == (PROMPTS, LAYERS)
    assert list(content["figure_3a"]["points"]) == ["0", "10"]
    assert np.shape(content["figure_6"]["attention"]) == (LAYERS, TOKENS)
    assert np.array(content["figure_4"]["visual_share"]) == pytest.approx(np.full((PROMPTS, LAYERS), 0.5))
    assert content["verdict"]["thresholds"] == {"strong": 0.5, "clear": 0.3, "agreement": 0.9}


def test_analysis_needs_prompts_and_layers() -> None:
    with pytest.raises(ValueError, match="prompts must be at least one"):
        summarize([])
    with pytest.raises(ValueError, match="num_layers must be at least 3"):
        analyzed([1.0, 1.0])


def test_claims_stand_beside_what_was_measured() -> None:
    analysis = analyzed([-1.0] * LAYERS)
    assert claims(analysis, {"left_out": "no answers"})[1][2] == "not measured: no answers"
    scores = (Score(10.0, 3), Score(20.0, 9), Score(1.0, 0, "too few"))
    accuracy = Accuracy(20, 10, scores)
    assert claims(analysis.with_accuracy(accuracy), {})[1][2] == "90% (9 right, 10 unpruned)"
    assert accuracy.reached == [*scores[:2]]
    assert claims(analysis.with_accuracy(Accuracy(20, 0, scores)), {})[1][2].startswith("not measured: the unpruned")
    assert claims(analysis.with_accuracy(Accuracy(20, 9, scores[:1])), {})[1][2] == (
        "not measured: 20 % is not among the shares"
    )


@pytest.mark.parametrize("units", [(576,), (576, 288, 144)])
def test_top_tokens_cuts_before_the_language_model_alone(units: tuple[int, ...]) -> None:
    plan = stage_one_alone(Fraction(1, 5)).plan(32, units)
    kept = tuple(unit // 5 for unit in units)
    assert (plan.vision, plan.decoder) == (VisionCut(kept, (0,) * len(units)), ())
    assert stage_one_alone(Fraction(1)).plan(32, units).is_identity
