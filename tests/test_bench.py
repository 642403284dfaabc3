"""The comparison of methods: which runs there are, what is used again, and the tables."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_options, untrained_snapshot

from dada.commands import bench, bench_intervals, bench_methods, bench_plan, bench_tables, jobs
from dada.commands.jobs import Job
from dada.config import plain_cfg
from dada.runs import run_of


def record(benchmark="ToyCity", method=bench_methods.START, seed=1, miou=30.0, iterations=300, **iou):
    return {
        "benchmark": benchmark,
        "method": method,
        "seed": seed,
        "budgets": ("iterations",),
        "iterations": iterations,
        "mIoU": {"16": miou, "13": miou + 5},
        "IoU": {"road": 50.0, "train": None, **iou},
    }


def plan(tmp_path, **changes):
    return bench_plan.Plan(tmp_path, {"camvid": tmp_path / "CamVid", "idd": tmp_path / "IDD"}, **changes)


def paces(methods=bench_methods.METHODS, **slower):
    """A second an iteration, but for the methods named."""
    return {benchmark: {**dict.fromkeys(methods, 1.0), **slower} for benchmark in bench_methods.BENCHMARKS}


def test_every_method_runs_on_every_benchmark_that_has_what_it_reads(tmp_path):
    entries = plan(tmp_path, seeds=(1, 2)).entries(paces())
    found = {(e.benchmark, e.method) for e in entries}
    assert ("ToyCity", "DADA") in found and ("CamVid day to dusk", "DADA") not in found
    assert {method for benchmark, method in found if benchmark == "ToyCity"} == set(bench_methods.METHODS)
    starts = plan(tmp_path, seeds=(1, 2)).starts().values()
    names = [run_of(e.job.cfg()).name for e in (*entries, *starts)]
    assert len(set(names)) == len(names)


def test_every_run_begins_with_the_source_only_network_of_its_seed_and_depth(tmp_path):
    compared = plan(tmp_path, seeds=(1, 2))
    starts = {}
    for entry in compared.starts().values():
        cfg = entry.job.cfg()
        assert not cfg.CONTRASTIVE_LEARNING and cfg.TRAIN.DA_METHOD == "source_only" and compared.start == cfg.TRAIN.MAX_ITERS
        key = (entry.benchmark, entry.seed, cfg.USE_DEPTH)
        starts[key] = str(run_of(cfg).snapshots / f"model_{compared.start}.pth")
    assert len(set(starts.values())) == len(starts)
    for entry in compared.entries(paces()):
        cfg = entry.job.cfg()
        assert starts[entry.benchmark, cfg.TRAIN.RANDOM_SEED, cfg.USE_DEPTH] == cfg.TRAIN.RESTORE_FROM


def test_in_equal_time_a_method_of_half_the_pace_makes_half_the_iterations(tmp_path):
    compared = plan(tmp_path, benchmarks=("ToyCity",), further=80, methods=(bench_methods.LONGER, "PLCA"), seeds=(1,))
    lengths = {(e.method, e.budgets): e.job.cfg().TRAIN.MAX_ITERS for e in compared.entries(paces(PLCA=2.0))}
    # The source alone is the same run under both budgets, and made once.
    assert lengths == {(bench_methods.LONGER, ("iterations", "time")): 80, ("PLCA", ("iterations",)): 80, ("PLCA", ("time",)): 40}


def test_paces_are_measured_once_and_read_again(tmp_path, monkeypatch):
    timed = []

    def run_all(jobs, work, processes):
        timed.extend(run_of(job.cfg()).name for job in jobs)
        return [float(len(timed))] * len(jobs)

    monkeypatch.setattr(bench, "run_all", run_all)
    compared = plan(tmp_path, methods=("PLCA",))
    first = bench.measured_paces(compared, "ToyCity")
    assert first.keys() == {bench_methods.LONGER, "PLCA"} and len(timed) == 2
    assert bench.measured_paces(compared, "ToyCity") == first and len(timed) == 2
    more = bench.measured_paces(plan(tmp_path, methods=("PLCA", "MinEnt")), "ToyCity")
    assert len(timed) == 3 and {**more, **first} == more


@pytest.mark.parametrize("benchmark", bench_methods.BENCHMARKS)
def test_runs_of_one_benchmark_differ_in_nothing_but_the_method(tmp_path, benchmark):
    free = {
        "CONTRASTIVE_LEARNING",
        "EXP_NAME",
        "USE_DEPTH",
        "SOURCE",
        "DATA_DIRECTORY_SOURCE",
        "DA_METHOD",
        "LAMBDA_LOVASZ",
        "LAMBDA_CONTRASTIVE_MAIN",
        "LSR_W",
        "APPLY_MULTILAYER_ASSOCIATION",
        "SET_SOURCE",
        "CONTRASTIVE_START",
        "RESTORE_FROM",
        "COLOR_TRANSFER",
        "LAMBDA_CONSISTENCY",
        "LAMBDA_ENTROPY",
        "FOLDER_SOURCE",
    }
    seen = []
    for entry in plan(tmp_path, benchmarks=[benchmark], seeds=[1], budgets=["iterations"]).entries({}):
        cfg = entry.job.cfg()
        values = plain_cfg(cfg)
        seen.append({k: v for k, v in {**values, **values["TRAIN"]}.items() if k not in free and k != "TRAIN"})
    assert all(values == seen[0] for values in seen)


def test_the_oracle_learns_from_the_labelled_target_and_is_tested_on_the_source_of_the_others(tmp_path):
    compared = plan(tmp_path, methods=[bench_methods.ORACLE], seeds=[1])
    for entry, start in zip(compared.entries(paces()), compared.starts().values()):
        cfg, held_out = entry.job.cfg(), compared.on_the_source(entry).cfg()
        assert cfg.SOURCE == cfg.TARGET and cfg.DATA_DIRECTORY_SOURCE == cfg.DATA_DIRECTORY_TARGET
        assert cfg.FOLDER_SOURCE == cfg.FOLDER_TARGET
        assert cfg.TRAIN.SET_SOURCE == cfg.TRAIN.SET_TARGET and not cfg.CONTRASTIVE_LEARNING
        of_start = start.job.cfg()
        assert held_out.TARGET == of_start.SOURCE and held_out.FOLDER_TARGET == of_start.FOLDER_SOURCE
        assert held_out.EXP_NAME == cfg.EXP_NAME


def test_runs_with_a_few_labels_draw_them_by_the_seed_or_take_what_ours_suggests(tmp_path):
    assert not plan(tmp_path).suggesting()
    compared = plan(tmp_path, methods=["ours", *bench_methods.LABELLED], seeds=[1, 2], budgets=["iterations"])
    entries = compared.entries({})
    runs = {(e.benchmark, e.method, e.seed): e.job.cfg() for e in entries}
    assert len({cfg.EXP_NAME for cfg in runs.values()}) == len(runs) == 3 * 2 * 9
    for (benchmark, method, seed), cfg in runs.items():
        ours = runs[benchmark, "ours", seed]
        count = method.split()[2] if method != "ours" else ""
        given = str(run_of(ours).snapshots / f"label_next_{count}.txt")
        assert {"": "", "random": f"random {count}", "suggested": given}[method.partition(", ")[2]] == cfg.TARGET_LABELLED
        assert cfg.CONTRASTIVE_LEARNING and ours.TRAIN.RESTORE_FROM == cfg.TRAIN.RESTORE_FROM
    assert not any(compared.on_the_source(entry).cfg().TARGET_LABELLED for entry in entries)  # whose target is another one
    assert {e.budgets for e in (*entries, *compared.starts().values())} == {("iterations",)}  # no table of another budget
    assert [e.job for e in compared.suggesting()] == [
        e.job for b in compared.benchmarks for e in entries if e.method == "ours" and e.benchmark == b
    ]


def test_what_a_network_suggests_is_written_once_and_each_list_begins_with_the_smaller_ones(city, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "LABELS", (1, 3))
    job = Job("toycity.yml", (*tiny_options(city, tmp_path), "TRAIN.RESTORE_FROM=random"))
    folder = run_of(job.cfg()).snapshots
    folder.mkdir(parents=True)
    untrained_snapshot(folder, city)
    bench.suggest_labels(job)
    lists = {n: bench_plan.list_of(job, n).read_text().splitlines() for n in (1, 3)}
    images = {n: [line for line in lines if not line.startswith("#")] for n, lines in lists.items()}
    assert len(set(images[3])) == 3 and images[1] == images[3][:1] and all((city / "Cityscapes" / i).is_file() for i in images[3])
    monkeypatch.setattr(bench, "suggest", None)
    bench.suggest_labels(job)  # from what is there


def test_held_out_images_of_the_source_are_none_that_are_trained_on(tmp_path):
    for start in plan(tmp_path, seeds=[1]).starts().values():
        cfg, held_out = start.job.cfg(), plan(tmp_path, seeds=[1]).on_the_source(start).cfg()
        trained = cfg.DATA_DIRECTORY_SOURCE, cfg.TRAIN.SET_SOURCE
        assert trained != (held_out.DATA_DIRECTORY_TARGET, held_out.TEST.SET_TARGET)


def test_a_pace_is_seconds_for_an_iteration_and_measuring_it_writes_nothing(city, tmp_path):
    options = (*tiny_options(city, tmp_path / "out"), "TRAIN.RESTORE_FROM=random", "TRAIN.MAX_ITERS=20")
    assert 0 < bench.seconds_per_iteration(Job("toycity.yml", options)) < 60
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_neither_trained_nor_tested_again_and_one_with_other_options_is_and_says_why(
    city, tmp_path, monkeypatch, capsys
):
    calls = []
    for name in ("train", "evaluate_run"):
        module = jobs if name == "train" else bench
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=original, _n=name, **k: calls.append(_n) or _f(*a, **k))
    options = (*tiny_options(city, tmp_path), "TRAIN.RESTORE_FROM=random", "TRAIN.MAX_ITERS=1")
    first = bench.train_and_test(Job("toycity.yml", options))
    again = bench.train_and_test(Job("toycity.yml", options))
    assert calls == ["train", "evaluate_run"] and first == again and 0 <= first["mIoU"]["16"] <= 100
    bench.train_and_test(Job("toycity.yml", (*options, "TEST.FLIP=True")))
    assert calls == ["train", "evaluate_run", "evaluate_run"]
    bench.train_and_test(Job("toycity.yml", (*options, "TRAIN.RANDOM_SEED=5")))
    assert calls == ["train", "evaluate_run", "evaluate_run", "train", "evaluate_run"]
    said = [line for line in capsys.readouterr().out.splitlines() if "trained anew" in line]
    assert said == ["tiny: trained anew, since what is there has other options: TRAIN.RANDOM_SEED 1234 → 5"]


def halve(job: Job) -> float:
    cfg = job.cfg()
    if cfg.TRAIN.MAX_ITERS == 3:
        raise ValueError("three is odd")
    return cfg.TRAIN.MAX_ITERS / 2


@pytest.fixture
def forked(monkeypatch):
    """Processes of jobs begin as copies of this one, which has imported torch, and not with an import of seconds."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda method: context)


@pytest.mark.parametrize("start", ["forked", pytest.param("", marks=pytest.mark.slow)])  # or an import of torch each
def test_jobs_keep_their_order_and_one_that_fails_is_named_after_the_others_have_ended(start, request):
    if start:
        request.getfixturevalue(start)

    def job(iterations):
        return Job("toycity.yml", (f"TRAIN.MAX_ITERS={iterations}", f"EXP_NAME=run{iterations}", "GPU_ID=-1"))

    assert jobs.run_all([job(8), job(2)], halve, processes=1) == [4.0, 1.0]
    with pytest.raises(RuntimeError, match="1 of 2 runs failed:\n  run3: ValueError: three is odd"):
        jobs.run_all([job(3), job(2)], halve, processes=1)


def stop_and_tell(job: Job) -> None:
    cfg = job.cfg()
    Path(cfg.EXP_ROOT, cfg.EXP_NAME).touch()
    sys.exit(143)


def test_a_signal_that_stops_one_run_begins_no_other(tmp_path, forked):
    waiting = [Job("toycity.yml", (f"EXP_ROOT={tmp_path}", f"EXP_NAME=run{k}", "GPU_ID=-1")) for k in range(3)]
    with pytest.raises(RuntimeError, match="a run was stopped from outside"):
        jobs.run_all(waiting, stop_and_tell, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run0"]


def tell_and_wait(job: Job) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))  # as a training, after its checkpoint
    os.kill(os.getppid(), signal.SIGTERM)  # which has begun this process, and waits for it
    time.sleep(1000)


def test_a_sigterm_ends_the_processes_of_the_jobs_as_well(tmp_path, forked):
    waiting = [Job("toycity.yml", (f"EXP_ROOT={tmp_path}", f"EXP_NAME=run{k}", "GPU_ID=-1")) for k in range(3)]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        jobs.run_all(waiting, tell_and_wait, processes=1)
    assert stopped.value.code == 143
    assert not multiprocessing.active_children() and signal.getsignal(signal.SIGTERM) == before


def counts(images, right):
    """Of one target confusion matrices of two classes with 10 pixels each, of which so many are right."""
    return [np.array([[[r, 10 - r], [10 - r, r]] for r in np.broadcast_to(right, images)])]


def test_intervals_are_those_of_images_and_seeds_drawn_with_replacement():
    runs = {"a": {1: counts(3, [2, 5, 9]), 2: counts(3, 4)}, "b": {1: counts(3, [3, 6, 10]), 2: counts(3, 5)}}
    found = bench_intervals.Bootstrap(runs, draws=4000)

    def miou(right):  # of all images together: both classes alike
        right = np.mean(right)
        return 100 * right / (20 - right)

    assert found.miou("a").value == pytest.approx((miou([2, 5, 9]) + miou(4)) / 2)
    # All draws by hand: 27 choices of images, 4 of seeds, all as likely.
    by_hand = [
        np.mean([miou(runs["a"][s][0][list(images), 0, 0]) for s in seeds])
        for images in itertools.product(range(3), repeat=3)
        for seeds in itertools.product((1, 2), repeat=2)
    ]
    low, high = np.percentile(by_hand, [2.5, 97.5])
    assert (found.miou("a").low, found.miou("a").high) == pytest.approx((low, high), abs=1.5)
    # A difference of pairs is surer than its parts.
    gain = found.gain("b", "a")
    assert gain.low > 0 and gain.high - gain.low < (high - low) / 2
    assert found.share("b", "a", "b") == pytest.approx((100, 100, 100))


def test_of_several_targets_the_mean_of_their_scores_is_compared_and_each_is_named():
    one, two = counts(3, [2, 5, 9]), counts(40, 4)
    alone = [bench_intervals.Bootstrap({"a": {1: found}}).miou("a").value for found in (one, two)]
    both = bench_intervals.Bootstrap({"a": {1: [*one, *two]}}).miou("a")
    assert both.value == pytest.approx(np.mean(alone)) and both.low < both.value < both.high
    each = {"A": {"mIoU": {"16": 20.0}}, "B": {"mIoU": {"16": 40.0}}}
    text = bench_tables.tables([{**record(seed=seed), "datasets": each} for seed in (1, 2)])
    assert "| method | iterations | mIoU | on A | on B |" in text and "| 30.0 ± 0.0 | 20.0 ± 0.0 | 40.0 ± 0.0 |" in text


def test_the_oracle_of_several_targets_learns_from_all_of_them(tmp_path):
    overrides = ("TARGET=[Folder, IDD]", "TARGET_SHARE=[2, 1]", "TRAIN.SET_TARGET=[train, val]")
    compared = plan(
        tmp_path,
        benchmarks=["CamVid to IDD-lite"],
        methods=[bench_methods.ORACLE],
        seeds=[1],
        budgets=["iterations"],
        overrides=overrides,
    )
    (entry,) = compared.entries({})[:1]
    cfg = entry.job.cfg()
    assert (
        cfg.SOURCE == cfg.TARGET == ("Folder", "IDD") and cfg.SOURCE_SHARE == (2, 1) and cfg.TRAIN.SET_SOURCE == ("train", "val")
    )
    assert compared.on_the_source(entry).cfg().TARGET == "Folder"


def test_methods_of_other_images_cannot_be_compared():
    with pytest.raises(ValueError, match="share seeds and test images"):
        bench_intervals.Bootstrap({"a": {1: counts(3, 4)}, "b": {1: counts(2, 4)}})
    with pytest.raises(ValueError, match="share seeds and test images"):
        bench_intervals.Bootstrap({"a": {1: counts(3, 4)}, "b": {2: counts(3, 4)}})


def test_the_tables_hold_scores_with_intervals_gains_over_plca_and_the_share_of_the_gap():
    right = {bench_methods.START: 3, bench_methods.LONGER: 4, "PLCA": 5, "ours": 6, bench_methods.ORACLE: 8}
    records = [
        {**record(method=m, seed=s, miou=r), "counts": counts(3, r), "source counts": counts(2, 9)}
        for m, r in right.items()
        for s in (1, 2)
    ]
    records += [record("CamVid day to dusk", miou=41)]
    text = bench_tables.tables(records)
    # r / (20 - r) of the union; nothing varies, so that the interval has no width.
    assert "| ours | 300 | 42.9 (42.9 to 42.9) | +17.9 (+17.9 to +17.9) | +9.5 (+9.5 to +9.5) | 43 % (43 to 43) | 81.8" in text
    assert "| source-only, longer | 300 | 25.0 (25.0 to 25.0) |  | -8.3 (-8.3 to -8.3) |  | 81.8" in text
    assert text.index("### ToyCity, equal iterations") < text.index("### CamVid day to dusk, equal iterations")
    assert "| source-only | 300 | 41.0 |" in text  # without counts there are no intervals


def test_the_curve_of_labels_sets_what_was_suggested_beside_a_random_choice():
    right = {"ours": 3, "ours + 2 labelled, random": 4, "ours + 2 labelled, suggested": 5, "ours + 4 labelled, random": 6}
    records = [{**record(method=m, miou=r), "counts": counts(2, r), "source counts": counts(2, 9)} for m, r in right.items()]
    text = bench_tables.tables(records)
    assert "| 0 | 17.6 (17.6 to 17.6) |  |  |" in text  # r / (20 - r)
    assert "| 2 | 25.0 (25.0 to 25.0) | 33.3 (33.3 to 33.3) | +8.3 (+8.3 to +8.3) |" in text and "\n| 4 |" not in text
    assert "labelled images" not in bench_tables.tables([r for r in records if r["method"] == "ours"])


def test_classes_are_means_over_seeds_and_absent_ones_are_dashes():
    records = [record(miou=30), record(method="ours", seed=1, road=60.0), record(method="ours", seed=2, road=70.0)]
    text = bench_tables.tables(records)
    assert "| road | 50.0 | 65.0 |" in text and "| train | - | - |" in text


def test_the_gap_begins_at_the_better_of_the_two_networks_that_saw_the_source_alone():
    right = {bench_methods.START: 5, bench_methods.LONGER: 4, "PLCA": 6, bench_methods.ORACLE: 7}
    records = [{**record(method=m, miou=r), "counts": counts(2, r), "source counts": counts(2, 9)} for m, r in right.items()]
    share = 100 * (6 / 14 - 5 / 15) / (7 / 13 - 5 / 15)
    assert f"| {share:.0f} % ({share:.0f} to {share:.0f}) |" in bench_tables.tables(records)


def test_tables_replace_what_stands_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    bench_tables.insert_tables(page, "new\n", "bench")
    assert page.read_text() == "before\n<!-- bench -->\nnew\n<!-- /bench -->\nafter\n"
    with pytest.raises(ValueError, match="lacks the lines <!-- other -->"):
        bench_tables.insert_tables(page, "new\n", "other")


def judged(method, seed, miou, by):
    """A record with criteria and cycles, as `look_at` finds them."""
    criteria = {"information": by, "certainty": -by, "agreement": 0.5, "cycle closure": by}
    cycles = {"closed": 0.5, "balanced": 0.4, "correct": 0.8, "covered": by}
    return {**record(method=method, seed=seed, miou=miou), "criteria": criteria, "cycles": cycles}


def test_the_ablation_compares_each_step_with_the_one_before():
    records = [record(method=m, seed=s, miou=v + s) for m, v in (("a", 30), ("c", 34), ("d", 33)) for s in (1, 2)]
    records[3]["mIoU"]["16"] += 1
    text = bench_tables.tables(records, ("a", "b", "c"))
    assert "| a | 31.5 ± 0.7 |  |  |\n| c | 36.0 ± 1.4 | +4.5 ± 0.7 | +4.0, +5.0 |" in text
    assert "one part at a time" not in bench_tables.tables(records, ("a", "b"))


def test_criteria_are_judged_by_the_order_of_the_methods_without_the_oracle():
    runs = [
        judged(m, s, v + s, v / 100) for m, v in (("a", 30), ("b", 34), ("c", 32), (bench_methods.ORACLE, 20)) for s in (1, 2)
    ]
    text = bench_tables.tables(runs)
    assert "| information | +1.00 | +1.00, +1.00 | b | 0.0 |" in text
    assert "| certainty | -1.00 | -1.00, -1.00 | a | 4.0 |" in text
    assert "| agreement | +nan |" in text  # says nothing, and is said to
    assert "| covered | 30.0 | 34.0 | 32.0 | 20.0 |" in text and "| correct | 80.0 |" in text
    assert "correct: share of the closed cycles" in text


def test_a_finished_run_is_looked_at_once(city, tmp_path, monkeypatch):
    job = Job("toycity.yml", (*tiny_options(city, tmp_path), "TRAIN.RESTORE_FROM=random", "TRAIN.MAX_ITERS=1"))
    report = bench.train_and_test(job)
    (counts,) = bench.counts_of(job)
    assert counts.ndim == 3 and counts.sum(axis=0).tolist() == report["confusion"]
    found = bench.look_at(job)
    assert set(found["cycles"]) == set(bench_tables.DIAGNOSTICS) and 0 <= found["cycles"]["closed"] <= 1
    monkeypatch.setattr(bench, "judge", None)
    monkeypatch.setattr(bench, "load_predictor", None)
    assert bench.look_at(job) == found and np.array_equal(bench.counts_of(job)[0], counts)
