"""Prompt sources, what is wrong with them, and the plan of who gets which."""

from collections import Counter

import pytest

from utils.cli import UserError
from utils.prompt_plan import plan_images
from utils.prompts import (
    Prompt,
    PromptError,
    prompts_from_dataset,
    prompts_from_flags,
    read_prompts_file,
)


def _file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _texts(prompts):
    return [prompt.text for prompt in prompts]


def _make(*labels):
    return [
        Prompt(f"text {number}", label, "OCT", f"t.csv:{number}")
        for number, label in enumerate(labels)
    ]


def test_flags_give_prompts_with_their_labels():
    prompts = prompts_from_flags(["  cysts \n of varying\tsize ", "scar"], ["edema ; cyst", ""])
    assert _texts(prompts) == ["cysts of varying size", "scar"]
    assert [prompt.label for prompt in prompts] == ["edema;cyst", ""]


def test_a_text_file_has_one_prompt_a_line_and_empty_lines_are_skipped(tmp_path):
    path = _file(tmp_path, "p.txt", "\ufeffnormal retina\r\n\r\n  \ndrusen, soft; large/small 👁️\n")
    prompts = read_prompts_file(path)
    assert _texts(prompts) == ["normal retina", "drusen, soft; large/small 👁️"]
    assert [prompt.where for prompt in prompts] == ["p.txt:1", "p.txt:4"]


@pytest.mark.parametrize(("end", "num_empty"), [("", 1), ("\n", 1), ("\n\n", 2)])
def test_skipped_lines_are_counted(tmp_path, capsys, end, num_empty):
    read_prompts_file(_file(tmp_path, "p.txt", "a\n\nb" + end))
    assert f"p.txt: {num_empty} empty line(s) skipped" in capsys.readouterr().err


def test_a_file_without_empty_lines_is_not_commented(tmp_path, capsys):
    read_prompts_file(_file(tmp_path, "p.txt", "a\nb\n"))
    assert capsys.readouterr().err == ""


def test_a_very_long_prompt_is_kept_whole(tmp_path):
    text = "x" * 10_000
    assert _texts(read_prompts_file(_file(tmp_path, "p.txt", text))) == [text]


@pytest.mark.parametrize("column", ["text", "Text", "prompt", "caption"])
def test_a_csv_brings_labels_and_modality(tmp_path, column):
    content = f'\ufefflabel,{column},extra,modality\nedema,"cysts, large",1,OCT\n\n,scar,2,\n'
    prompts = read_prompts_file(_file(tmp_path, "p.csv", content))
    assert prompts == [
        Prompt("cysts, large", "edema", "OCT", "p.csv:2"),
        Prompt("scar", "", "", "p.csv:4"),
    ]


def test_emoji_slashes_and_windows_line_ends_come_through_a_csv(tmp_path):
    content = 'text,label\r\n\r\nÖdem 👁️/../\\,Zyste/groß\r\n"' + "x" * 10_000 + '",\r\n'
    prompts = read_prompts_file(_file(tmp_path, "p.csv", content))
    assert [(prompt.text, prompt.label) for prompt in prompts] == [
        ("Ödem 👁️/../\\", "Zyste/groß"),
        ("x" * 10_000, ""),
    ]


def test_a_csv_may_say_how_many_images_each_prompt_gets(tmp_path):
    content = "text,Num_Images\na, 2 \nb,0\nc,1\n"
    prompts = read_prompts_file(_file(tmp_path, "p.csv", content))
    assert [prompt.num_images for prompt in prompts] == [2, 0, 1]
    assert _texts(plan_images(prompts, num_images=None, images_per_prompt=None)) == ["a", "a", "c"]


@pytest.mark.parametrize("cell", ["", "-1", "1.5", "two", "1_0", "٣", "9" * 5000])
def test_a_number_of_images_that_is_none_is_told_with_its_line(tmp_path, cell):
    path = _file(tmp_path, "p.csv", f"text,num_images\na,1\nb,{cell}\n")
    with pytest.raises(PromptError, match=r"p\.csv:3: wrong num_images: .* is not a whole number"):
        read_prompts_file(path)


def test_a_cell_with_line_breaks_is_one_prompt_and_lines_are_counted_past_it(tmp_path):
    content = 'text\n"cysts\nin rows"\nscar\n'
    prompts = read_prompts_file(_file(tmp_path, "p.csv", content))
    assert [(prompt.text, prompt.where) for prompt in prompts] == [
        ("cysts in rows", "p.csv:2"),
        ("scar", "p.csv:4"),
    ]


def test_everything_wrong_with_a_csv_is_reported_at_once(tmp_path):
    content = 'text,label\n,edema\nscar\nfine,x\nbad\x07bell,y\n"open,z\n'
    with pytest.raises(PromptError) as caught:
        read_prompts_file(_file(tmp_path, "p.csv", content))
    found = [(problem.where, problem.kind) for problem in caught.value.problems]
    assert found == [
        ("p.csv:2", "empty text"),
        ("p.csv:3", "broken row"),
        ("p.csv:5", "control character"),
        ("p.csv:6", "broken CSV"),
    ]
    assert "U+0007 at character 4" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "Report;label\nx;y\n", "columns: report;label); use commas"),
        ("p.csv", "", "columns: none"),
        ("p.csv", "text\n", "no prompts"),
        ("p.txt", "\n \n", "no prompts"),
        ("p.txt", b"caf\xe9\n", "p.txt:1: not UTF-8: byte 0xe9 at position 4"),
        ("p.txt", "a\nnul\x00\n", "p.txt:2: control character: U+0000"),
        ("p.txt", "x" * 100_001, "100001 characters"),
        ("p.txt", "a\nb".encode("utf-16"), "p.txt:1: not UTF-8: byte 0xff"),
        ("p.csv", "text,label\na,\x00\n", "p.csv:2: control character: U+0000"),
        ("p.csv", "text,modality\na,O\x1bT\n", "p.csv:2: control character: U+001B"),
        ("p.csv", "text\n" + "x" * 140_000, "field larger than field limit"),
        ("p.json", "{}", "ends in .txt or .csv"),
    ],
)
def test_an_unusable_file_is_refused_in_clear_words(tmp_path, name, content, words):
    with pytest.raises(PromptError) as caught:
        read_prompts_file(_file(tmp_path, name, content))
    assert words in str(caught.value)


def test_bytes_that_are_no_text_on_the_command_line_are_refused():
    with pytest.raises(PromptError, match=r"--prompt 2: half of a character: U\+DCE9"):
        prompts_from_flags(["fine", "caf\udce9"], None)


def test_a_data_set_gives_captions_and_labels_of_its_training_split(toy_dataset):
    prompts = prompts_from_dataset(toy_dataset, split="train")
    assert len(prompts) == 8
    assert prompts[0].text == "normal retina with a regular foveal pit, scan 0"
    assert Counter(prompt.label for prompt in prompts) == {
        "normal": 3,
        "macular edema": 3,
        "drusen": 2,
    }


def test_prompts_of_the_test_split_are_taken_only_aloud(toy_dataset, capsys):
    prompts = prompts_from_dataset(toy_dataset, split="test")
    assert [prompt.text[-2:] for prompt in prompts] == ["10", "11"]
    assert "test split" in capsys.readouterr().err


@pytest.mark.parametrize("num_images", [1, 3, 5, 7, 9, 20, 85])
@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_plan_keeps_the_frequencies_of_labels_within_one_image(
    toy_dataset, num_images, seed
):
    prompts = prompts_from_dataset(toy_dataset, split="train")
    plan = plan_images(prompts, num_images=num_images, images_per_prompt=None, shuffle_seed=seed)
    planned = Counter(prompt.label for prompt in plan)
    for label, count in Counter(prompt.label for prompt in prompts).items():
        assert abs(planned[label] - num_images * count / len(prompts)) < 1
    times = Counter(_texts(plan))
    assert {times[prompt.text] for prompt in prompts} <= {num_images // 8, num_images // 8 + 1}


@pytest.mark.parametrize("labels", ["aaaaabbc", "abcdefgh"])
def test_every_prompt_is_drawn_equally_often(labels):
    prompts, num_draws = _make(*labels), 2000
    drawn = Counter(
        prompt.text
        for seed in range(num_draws)
        for prompt in plan_images(prompts, num_images=3, images_per_prompt=None, shuffle_seed=seed)
    )
    expected = num_draws * 3 / 8
    assert [drawn[prompt.text] for prompt in prompts] == pytest.approx([expected] * 8, rel=0.15)


def test_any_two_prompts_of_a_label_may_be_drawn_together():
    prompts = _make(*"aaaa")
    plans = {
        tuple(_texts(plan_images(prompts, num_images=2, images_per_prompt=None, shuffle_seed=seed)))
        for seed in range(100)
    }
    assert len(plans) == 6


def test_without_numbers_each_prompt_gets_one_image():
    prompts = _make("a", "b", "c")
    assert plan_images(prompts, num_images=None, images_per_prompt=None) == prompts


def test_images_of_one_prompt_stand_together():
    prompts = _make("a", "b")
    plan = plan_images(prompts, num_images=None, images_per_prompt=3)
    assert plan == [prompts[0]] * 3 + [prompts[1]] * 3


@pytest.mark.parametrize("seed", [None, 0])
def test_a_total_is_spread_evenly(seed):
    plan = plan_images(
        _make("a", "b", "c"), num_images=8, images_per_prompt=None, shuffle_seed=seed
    )
    assert sorted(Counter(_texts(plan)).values()) == [2, 3, 3]


def test_a_total_and_a_number_per_prompt_use_as_many_prompts_as_needed():
    plan = plan_images(_make(*"abcde"), num_images=10, images_per_prompt=4)
    assert Counter(_texts(plan)) == {"text 0": 4, "text 1": 4, "text 2": 2}


def test_too_few_prompts_for_the_total_are_an_error():
    with pytest.raises(UserError, match=r"--num_images 9 needs 3 prompts .* there are 2"):
        plan_images(_make("a", "b"), num_images=9, images_per_prompt=4)


def test_without_a_seed_the_first_prompts_are_taken_and_with_one_any():
    prompts = _make(*"abcdefgh")
    plans = [
        _texts(plan_images(prompts, num_images=3, images_per_prompt=None, shuffle_seed=seed))
        for seed in (None, 1, 1, 2, 3)
    ]
    assert plans[0] == ["text 0", "text 1", "text 2"]
    assert plans[1] == plans[2]
    assert len({tuple(plan) for plan in plans[1:]}) > 1


@pytest.mark.parametrize("images_per_prompt", [None, 2])
def test_a_balanced_plan_gives_each_label_the_same(images_per_prompt):
    prompts = _make("rare", *["common"] * 50, "a;b", "a;b")
    plan = plan_images(
        prompts,
        num_images=24,
        images_per_prompt=images_per_prompt,
        class_balanced=True,
        shuffle_seed=0,
    )
    assert Counter(prompt.label for prompt in plan) == {"rare": 8, "common": 8, "a;b": 8}
    per_text = Counter(prompt.text for prompt in plan if prompt.label == "common")
    assert set(per_text.values()) == {images_per_prompt or 1}


def _balanced(prompts, num_images, images_per_prompt=None, seed=0):
    return plan_images(
        prompts,
        num_images=num_images,
        images_per_prompt=images_per_prompt,
        class_balanced=True,
        shuffle_seed=seed,
    )


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("images_per_prompt", [None, 1, 2, 3, 4, 50])
@pytest.mark.parametrize("num_images", [3, 4, 10, 11, 30, 100])
def test_labels_are_balanced_whatever_the_number_per_prompt(num_images, images_per_prompt, seed):
    prompts = _make("c", *"aaaaaaa", *"bb")
    plan = _balanced(prompts, num_images, images_per_prompt, seed)
    assert len(plan) == num_images
    per_label = Counter(prompt.label for prompt in plan).values()
    assert max(per_label) - min(per_label) <= 1
    per_use = images_per_prompt or 1
    for label in "abc":
        counts = Counter(prompt.text for prompt in plan if prompt.label == label)
        assert sum(count % per_use > 0 for count in counts.values()) <= 1


def test_a_balanced_label_uses_as_few_prompts_as_fill_its_share():
    plan = _balanced(_make(*"aaabbb"), 8, 3, None)
    assert Counter(_texts(plan)) == {"text 0": 3, "text 1": 1, "text 3": 3, "text 4": 1}


def test_labels_in_another_order_are_one_class_for_balance():
    prompts = _make("x;y", "y;x", "z", "z")
    plan = _balanced(prompts, 8)
    assert Counter(_texts(plan)) == {"text 0": 2, "text 1": 2, "text 2": 2, "text 3": 2}
    assert Counter(prompt.label for prompt in plan)["y;x"] == 2
    odd = [prompt.label == "z" for prompt in _balanced(_make("x;y", "y;x", "z"), 6)]
    assert sum(odd) == 3


@pytest.mark.parametrize("num_images", range(1, 12))
def test_labels_in_another_order_are_one_class_for_their_frequency(num_images):
    prompts = _make("x;y", "xx", "xx", "xx", "y;x", "z", "z", "z")
    for seed in range(10):
        plan = plan_images(
            prompts, num_images=num_images, images_per_prompt=None, shuffle_seed=seed
        )
        planned = sum(prompt.labels in (("x", "y"), ("y", "x")) for prompt in plan)
        assert abs(planned - num_images * 2 / 8) < 1


def test_a_text_under_two_labels_or_twice_in_a_file_is_two_prompts(tmp_path):
    content = "text,label\nscan,a\nscan,b\nscan,b\nscan,b\n"
    prompts = read_prompts_file(_file(tmp_path, "p.csv", content))
    plan = _balanced(prompts, 6)
    assert [prompt.where[-1] for prompt in plan] == list("222345")
    assert plan_images(prompts, num_images=None, images_per_prompt=1) == prompts


def test_balance_without_labels_is_an_error():
    with pytest.raises(UserError, match=r"1 have none, first: t\.csv:1"):
        plan_images(_make("a", "", "b"), num_images=6, images_per_prompt=None, class_balanced=True)


def test_balance_over_more_labels_than_images_is_an_error():
    with pytest.raises(UserError, match=r"3 labels need .* --num_images is 2"):
        plan_images(_make("a", "b", "c"), num_images=2, images_per_prompt=None, class_balanced=True)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"num_images": 3}, "--num_images cannot"),
        ({"images_per_prompt": 2}, "--num_images_per_prompt cannot"),
        ({"num_images": 3, "class_balanced": True}, "--num_images and --class_balanced cannot"),
    ],
)
def test_a_prompts_own_number_and_one_by_flag_contradict_each_other(flags, named):
    prompts = [Prompt("text", "label", "", "p.csv:2", num_images=3)]
    with pytest.raises(UserError, match=named):
        plan_images(prompts, **{"num_images": None, "images_per_prompt": None} | flags)


def test_a_plan_of_no_images_is_an_error():
    prompts = [Prompt("text", "", "", "p.csv:2", num_images=0)]
    with pytest.raises(UserError, match="0 in every row"):
        plan_images(prompts, num_images=None, images_per_prompt=None)
