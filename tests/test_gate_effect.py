import json

import pytest

from benchmarks import gate_effect


def entry(guidance, accept_prob, agreement):
    score = {"value": agreement, "ci95": [agreement - 0.1, agreement + 0.1], "real": 0.97}
    return {
        "guidance": guidance,
        "accept_prob": accept_prob,
        "acceptance": {"overall": {"rate": 0.8, "failed": 2}},
        "scores": dict.fromkeys(gate_effect.SCORES, score),
        "per_label": {"drusen": score, "scar": {"value": None}},
    }


def test_the_table_sets_gates_of_one_guidance_below_each_other():
    overall, per_label = gate_effect.as_table([entry(1, None, 0.7), entry(1, 0.35, 0.9)]).split(
        "\n\n"
    )
    rows = [line.strip("| \n").split(" | ") for line in overall.splitlines()]
    assert rows[2][:5] == ["1", "none", "0.800", "2", "0.7000 (0.6000–0.8000)"]
    assert rows[3][:5] == ["1", "0.35", "0.800", "2", "0.9000 (0.8000–1.000)"]
    assert rows[4][4] == "0.9700"
    assert per_label.splitlines()[3] == "| 1 | 0.35 | 0.9000 (0.8000–1.000) | – |"


def test_a_judge_like_the_gate_is_refused(capsys):
    argv = ["--output_dir", "x", "--judge_backbone", "small"]
    with pytest.raises(SystemExit) as stop:
        gate_effect.parse_args(argv)
    assert stop.value.code == 2
    assert "--judge_backbone: a judge like the gate" in capsys.readouterr().err


def test_the_benchmark_measures_sets_with_and_without_a_gate(tmp_path, capsys):
    """In small: what is measured means nothing, but every stage runs and none twice."""
    argv = ["--output_dir", str(tmp_path / "run"), "--num_scans", "72", "--num_images", "12"]
    argv += ["--gate_epochs", "1", "--judge_epochs", "1", "--judge_backbone", "squeezenet1_1"]
    argv += ["--num_inference_steps", "2", "--guidance_scale", "1", "--accept_prob", "0.001"]
    gate_effect.main([*argv, "--max_attempts", "2", "--mixed_precision", "no"])
    before, after = json.loads(capsys.readouterr().out)
    assert (before["accept_prob"], after["accept_prob"]) == (None, 0.001)
    assert before["acceptance"]["overall"]["attempts"] == 12
    assert after["acceptance"]["overall"]["asked"] == 12
    assert after["acceptance"]["overall"]["mean_score"] > 0
    assert set(after["scores"]) == set(gate_effect.SCORES)
    assert len(after["per_label"]) == 6
    table = (tmp_path / "run" / "gate_effect.md").read_text(encoding="utf-8")
    gate_effect.main([*argv, "--max_attempts", "2", "--mixed_precision", "no"])
    printed = capsys.readouterr()
    assert printed.err.count("is there") == 10
    assert table in printed.err
