"""The comparison of methods: which runs there are, what is used again, and the tables."""

import pytest
from tiny import tiny_options

from dada.config import cfg, plain_cfg
from dada.domain_adaptation import bench, jobs
from dada.domain_adaptation.jobs import Job


def record(benchmark="ToyCity", method="source-only", seed=1, miou=30.0, **iou):
    return {
        "benchmark": benchmark,
        "method": method,
        "seed": seed,
        "mIoU": {"16": miou, "13": miou + 5},
        "IoU": {"road": 50.0, "train": None, **iou},
    }


def entries(tmp_path, **changes):
    options = {"benchmarks": list(bench.BENCHMARKS), "methods": list(bench.METHODS), "seeds": [1, 2], "camvid": tmp_path}
    return bench.entries_of(tmp_path, **{**options, **changes})


def test_every_method_runs_on_every_benchmark_that_has_what_it_reads(tmp_path):
    found = {(e.benchmark, e.method) for e in entries(tmp_path)}
    assert ("ToyCity", "DADA") in found and ("CamVid day to dusk", "DADA") not in found
    assert {method for benchmark, method in found if benchmark == "ToyCity"} == set(bench.METHODS)
    names = [e.job.configure().name for e in entries(tmp_path)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("benchmark", bench.BENCHMARKS)
def test_runs_of_one_benchmark_differ_in_nothing_but_the_method(tmp_path, benchmark):
    free = {
        "CONTRASTIVE_LEARNING", "EXP_NAME", "USE_DEPTH", "SOURCE", "DATA_DIRECTORY_SOURCE", "DA_METHOD", "LAMBDA_LOVASZ",
        "MULTI_LEVEL", "LAMBDA_CONSISTENCY", "LAMBDA_ENTROPY", "APPLY_MULTILAYER_ASSOCIATION", "SET_SOURCE",
    }  # fmt: skip
    seen = []
    for entry in entries(tmp_path, benchmarks=[benchmark], seeds=[1]):
        entry.job.configure()
        values = plain_cfg()
        seen.append({k: v for k, v in {**values, **values["TRAIN"]}.items() if k not in free and k != "TRAIN"})
    assert all(values == seen[0] for values in seen)


def test_the_oracle_learns_from_the_labelled_target(tmp_path):
    for entry in entries(tmp_path, methods=["oracle"], seeds=[1]):
        entry.job.configure()
        assert cfg.SOURCE == cfg.TARGET and cfg.DATA_DIRECTORY_SOURCE == cfg.DATA_DIRECTORY_TARGET
        assert cfg.TRAIN.SET_SOURCE == cfg.TRAIN.SET_TARGET and not cfg.CONTRASTIVE_LEARNING


def test_a_finished_run_is_neither_trained_nor_tested_again_and_one_with_other_options_is(city, tmp_path, monkeypatch):
    calls = []
    for name in ("train", "test"):
        module = jobs if name == "train" else bench
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=original, _n=name, **k: calls.append(_n) or _f(*a, **k))
    options = (*tiny_options(city, tmp_path), "TRAIN.RESTORE_FROM=", "TRAIN.MAX_ITERS=1")
    first = bench.train_and_test(Job("toycity.yml", options))
    again = bench.train_and_test(Job("toycity.yml", options))
    assert calls == ["train", "test"] and first == again and 0 <= first["mIoU"]["16"] <= 100
    bench.train_and_test(Job("toycity.yml", (*options, "TEST.FLIP=True")))
    assert calls == ["train", "test", "test"]
    bench.train_and_test(Job("toycity.yml", (*options, "TRAIN.RANDOM_SEED=5")))
    assert calls == ["train", "test", "test", "train", "test"]


def halve(job: Job) -> float:
    job.configure()
    if cfg.TRAIN.MAX_ITERS == 3:
        raise ValueError("three is odd")
    return cfg.TRAIN.MAX_ITERS / 2


def test_jobs_keep_their_order_and_one_that_fails_is_named_after_the_others_have_ended():
    def job(iterations):
        return Job("toycity.yml", (f"TRAIN.MAX_ITERS={iterations}", f"EXP_NAME=run{iterations}", "GPU_ID=-1"))

    assert jobs.run_all([job(8), job(2)], halve, processes=1) == [4.0, 1.0]
    with pytest.raises(RuntimeError, match="1 of 2 runs failed:\n  run3: ValueError: three is odd"):
        jobs.run_all([job(3), job(2)], halve, processes=1)


def test_the_tables_hold_means_gains_by_seed_and_the_share_of_the_gap():
    text = bench.tables([
        record(seed=1, miou=30), record(seed=2, miou=32),
        record(method="ours", seed=1, miou=35, road=60.0), record(method="ours", seed=2, miou=36, road=70.0),
        record(method="oracle", seed=1, miou=50), record(method="oracle", seed=2, miou=52),
        record("CamVid day to dusk", miou=41),
    ])  # fmt: skip
    assert "| source-only | 31.0 ± 1.4 |  |  |" in text
    assert "| ours | 35.5 ± 0.7 | +5.0, +4.0 | 22 % |" in text  # (35.5 - 31) / (51 - 31)
    assert "| road | 50.0 | 65.0 | 50.0 |" in text and "| train | - | - | - |" in text
    assert text.index("### ToyCity") < text.index("### CamVid day to dusk") and "| source-only | 41.0 |  |  |" in text


def test_tables_replace_what_stands_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    bench.insert_tables(page, "new\n", "bench")
    assert page.read_text() == "before\n<!-- bench -->\nnew\n<!-- /bench -->\nafter\n"
    with pytest.raises(ValueError, match="lacks the lines <!-- other -->"):
        bench.insert_tables(page, "new\n", "other")
