"""Runs of a sweep: which there are, which come first, who does them."""

from utils.arms import ARMS
from utils.sweep_plan import RunKey, count_by_arm, expand, in_stages, share_out


def plan(arms, shares=(1, 10), ratios=(100, 200), seeds=(0, 1)):
    return expand(arms, label_shares=shares, synthetic_ratios=ratios, seeds=seeds)


def test_every_arm_has_a_run_for_what_it_uses():
    keys = plan(ARMS)
    assert count_by_arm(keys) == {
        "real": 4,
        "synthetic": 4,
        "real+synthetic": 8,
        "synthetic->real": 8,
        "real+unlabeled": 4,
        "real+unlabeled+synthetic": 8,
    }
    assert len(set(keys)) == len(keys) == len({key.name for key in keys})
    assert {key.label_share for key in keys if key.arm == "synthetic"} == {0}
    assert {key.synthetic_ratio for key in keys if key.arm == "real+unlabeled"} == {0}


def test_a_ratio_of_0_is_the_arm_without_synthetic_images():
    assert plan(["real+synthetic"], ratios=(0, 100)) == plan(["real+synthetic"], ratios=(100,))


def test_pre_training_is_one_run_for_all_label_shares_and_comes_first():
    first, then = in_stages(plan(["real", "synthetic->real"]))
    assert first == [RunKey("synthetic", 0.0, r, s) for r in (100, 200) for s in (0, 1)]
    assert count_by_arm(then) == {"real": 4, "synthetic->real": 8}
    assert all(key.pretraining in first for key in then if key.arm == "synthetic->real")


def test_an_arm_that_is_asked_for_and_started_from_is_one_run():
    first, then = in_stages(plan(["synthetic", "synthetic->real"]))
    assert len(first) == 4 and count_by_arm(then) == {"synthetic->real": 8}


def test_names_are_those_of_folders():
    names = {key.name for key in plan(ARMS, shares=(0.5, 100), ratios=(33.3,))}
    assert "synthetic-to-real_share0.5_ratio33.3_seed1" in names
    assert not any(set(name) & set("<>/ ") for name in names)


def test_work_is_shared_out_evenly_and_nothing_twice():
    keys = plan(ARMS)
    cost = {key: 1.0 + 3 * ("unlabeled" in key.arm) for key in keys}
    parts = share_out(keys, num_processes=3, cost_of=cost.get)
    assert sorted(key for part in parts for key in part) == sorted(keys)
    loads = [sum(map(cost.get, part)) for part in parts]
    assert max(loads) - min(loads) <= 4
