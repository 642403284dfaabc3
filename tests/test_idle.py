"""What a cfg asks for and its run never does is told, each with its numbers."""

import logging

import pytest
import torch

from dada.config import cfg, cfg_from_list
from dada.domain_adaptation.objectives import build_objective
from dada.runs import run_of
from dada.training.idle import idle_parts
from dada.training.loop import Training

FLAG = ["CONTRASTIVE_LEARNING=True"]
WEIGHTS = ["LAMBDA_CONTRASTIVE_MAIN", "LSR_W", "LAMBDA_CONSISTENCY", "LAMBDA_ENTROPY"]


def told(*pairs: str) -> list[str]:
    cfg_from_list(["TRAIN.MAX_ITERS=100", *pairs])
    return idle_parts(cfg, build_objective(cfg, torch.device("cpu")))


@pytest.mark.parametrize(
    "pairs, words",
    [
        (
            [*FLAG, "TRAIN.CONTRASTIVE_START=120"],
            ["loss_fass, loss_cass", "120 (TRAIN.CONTRASTIVE_START)", "100 (TRAIN.MAX_ITERS)"],
        ),
        ([*FLAG, "TRAIN.CONTRASTIVE_START=30", "TRAIN.EARLY_STOP=30"], ["loss_fass", "ends after 30 (TRAIN.EARLY_STOP)"]),
        (["SELF_TRAINING.LAMBDA_MIX=1", "SELF_TRAINING.START=100"], ["loss_mix", "100 (SELF_TRAINING.START)"]),
        (["SELF_TRAINING.LAMBDA_MIC=1", "SELF_TRAINING.START=500"], ["loss_mic", "500 (SELF_TRAINING.START)"]),
        (["TRAIN.WARMUP_ITERS=1500"], ["never gets above 4.48e-06", "TRAIN.LEARNING_RATE is 0.00025", "1500"]),
        (["TRAIN.DA_METHOD=MinEnt", "TRAIN.LAMBDA_ENT_MAIN=0"], ["TRAIN.DA_METHOD MinEnt adds no term"]),
        ([*FLAG, *(f"TRAIN.{weight}=0" for weight in WEIGHTS)], ["CONTRASTIVE_LEARNING adds no term"]),
        (["TRAIN.EVAL_EVERY=101"], ["no network is evaluated", "101"]),
    ],
)
def test_what_can_never_act_is_told_with_the_numbers(pairs, words):
    (sentence,) = told("DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True", *pairs)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "pairs",
    [[], [*FLAG, "TRAIN.CONTRASTIVE_START=99", "TRAIN.WARMUP_ITERS=99", "TRAIN.EVAL_EVERY=100"], ["TRAIN.DA_METHOD=MinEnt"]],
)
def test_nothing_is_told_where_all_act_if_only_once(pairs):
    assert told(*pairs) == []


def test_a_run_says_it_at_its_start_beside_when_each_term_begins(tiny_cfg, caplog):
    caplog.set_level(logging.INFO)
    cfg_from_list(["CONTRASTIVE_LEARNING=True", "TRAIN.CONTRASTIVE_START=2"])
    Training(cfg, run_of(cfg))
    assert "0.1 loss_fass from iteration 2 on" in caplog.text
    assert "never computed; would begin at iteration 2 (TRAIN.CONTRASTIVE_START)" in caplog.text
