import base64
import re
from io import BytesIO

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from utils.acceptance import Acceptance
from utils.dataset_card import dataset_card
from utils.generation_page import generation_page
from utils.generation_samples import PER_LABEL, PER_REASON, choose_samples, same_seed_samples
from utils.guidance_page import guidance_page

GATES = {
    "blank": {},
    "class": {
        "classifier": "runs/diagnosis/classifier",
        "sha256": "c1a5",
        "thresholds": {"drusen": 0.35, "scar": 0.5},
        "accept_prob": "thresholds.json",
    },
}


def row(index, attempt=0, status="accepted", label="drusen", score="0.9", kept=True):
    folder = "images" if status == "accepted" else "rejected"
    name = f"{index:06d}" if status == "accepted" else f"{index:06d}-{attempt}"
    return {
        "index": str(index),
        "attempt": str(attempt),
        "status": status,
        "label": label,
        "reason": "" if status == "accepted" else "class",
        "score": score,
        "file_name": f"{folder}/{name}.png" if kept else "",
    }


def draw(folder, rows):
    """A PNG for every row, its gray level the image's index."""
    for one in rows:
        path = folder / one["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), int(one["index"])).save(path)
    return rows


def summary_of(acceptance, **changes):
    tally = acceptance.overall
    return {
        "num_asked": tally.asked,
        "num_images": tally.accepted,
        "num_failed": tally.failed,
        "num_attempts": tally.attempts,
        "num_prompts": 3,
        "acceptance": acceptance.as_dict(),
        "gates": GATES,
        "model": "runs/oct",
        "model_hash": "ab12",
        "sampler": "ddim",
        "steps": 25,
        "eta": 0.5,
        "guidance_scale": 4.0,
        "guidance_interval": [0.2, 1.0],
        "guidance_rescale": 0.0,
        "negative_prompt": "blur | noise",
        "seed": 7,
        "precision": "no",
        "resolution": 128,
        "format": "folder",
        "num_gray": 2,
        "chroma_dropped_mean": 3.25,
        "chroma_dropped_max": 5.5,
        "prompts_source": "data/oct (train split)",
        "embed_prompt": False,
        **changes,
    }


def some_rows():
    rows = [row(index, label="drusen") for index in range(9)]
    rows += [row(9, attempt, "rejected", "scar <b>", "0.1") for attempt in range(24)]
    return [*rows, row(9, 24, "failed", "scar <b>", "0.2")]


def page_of(tmp_path, rows, **changes):
    draw(tmp_path, rows)
    acceptance = Acceptance.count(rows)
    accepted, refused = choose_samples(rows, tmp_path)
    return generation_page(summary_of(acceptance, **changes), acceptance, accepted, refused).html()


def gray_levels(html):
    """Gray level of each picture of a page, in order."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(uri))))[0, 0] for uri in found]


def cells(html, first):
    """The cells of the table row that is named ``first``, in each table that has it."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", one) for one in rows]
    return [one[1:] for one in rows if one[0] == first]


# Which images are shown


def test_samples_are_the_same_whatever_the_order_of_the_rows(tmp_path):
    rows = [row(index, label=f"label {index % 2}") for index in range(200)]
    accepted, _ = choose_samples(rows, tmp_path)
    assert accepted == choose_samples(rows[::-1], tmp_path)[0]
    assert list(map(len, accepted.values())) == [PER_LABEL, PER_LABEL]
    # By chance: neither the first nor the last.
    indices = sorted(sample.index for samples in accepted.values() for sample in samples)
    assert 20 < np.mean(indices) < 180
    assert indices[-1] - indices[0] > 50


def test_refused_images_are_shown_only_if_they_were_kept(tmp_path):
    rows = [row(0, 0, "rejected", kept=False), row(1, 0, "rejected"), row(0, 1, "failed")]
    accepted, refused = choose_samples(rows, tmp_path)
    assert accepted == {}
    assert {(one.index, one.attempt) for one in refused["class"]} == {(1, 0), (0, 1)}


def test_sets_are_compared_by_images_of_the_same_seed(tmp_path):
    two = [row(0), row(1), row(2, 1), row(3, label="scar")]
    four = [row(0), row(1, 1), row(2, 1), row(3, label="scar")]
    sets = {"2": (two, tmp_path / "2"), "4": (four, tmp_path / "4")}
    found = same_seed_samples(sets, per_label=9)
    assert sorted(pictures["4"].index for pictures in found) == [0, 2, 3]
    assert all(
        (pictures["2"].index, pictures["2"].attempt) == (pictures["4"].index, pictures["4"].attempt)
        for pictures in found
    )
    assert {pictures["4"].path.parent.parent.name for pictures in found} == {"4"}
    assert len(same_seed_samples(sets, per_label=1)) == 2  # one of each label


# The page


def test_page_tells_counts_rates_and_reasons_per_label(tmp_path):
    html = page_of(tmp_path, some_rows())
    counts, reasons = cells(html, "scar &lt;b&gt;")
    assert counts == ["1", "0", "1", "25", "0.0 % (0.0 – 13.3)", "–"]
    assert reasons == ["25"]
    assert cells(html, "all labels")[0][:4] == ["10", "9", "1", "34"]
    assert "9 of 10 images asked for, 34 images drawn to get them; 1 were given up." in html
    assert "scar <b>" not in html


def test_page_calls_out_a_label_that_hardly_passes(tmp_path):
    html = page_of(tmp_path, some_rows())
    assert "scar &lt;b&gt;: only 0 of 25 attempts were accepted, 0.0 %" in html
    assert "Labels that hardly pass" not in page_of(tmp_path, some_rows()[:9])


def test_page_shows_accepted_images_by_label_and_refused_ones_by_reason(tmp_path):
    html = page_of(tmp_path, some_rows())
    levels = gray_levels(html)
    assert set(levels[:PER_LABEL]) <= set(range(9))
    assert levels[PER_LABEL:] == [9] * PER_REASON
    assert "<h4>drusen</h4>" in html
    assert "<h4>The asked label was not recognised</h4>" in html


def test_page_has_settings_gates_scores_and_the_dropped_colour(tmp_path):
    html = page_of(tmp_path, some_rows())
    for text in (
        "ddim, 25 steps, eta 0.5",
        "SHA-256 ab12",
        "thresholds: drusen 0.35, scar 0.5; thresholds from: thresholds.json",
        "dropped chroma: mean 3.250, largest 5.500 grey levels",
        "Scores of all attempts",
        "Whether images repeat training images was not checked",
    ):
        assert text in html
    assert html.count("<polyline") == 2  # accepted and refused


def test_page_of_a_set_without_gates(tmp_path):
    rows = [row(index, score="") for index in range(3)]
    html = page_of(tmp_path, rows, gates={})
    assert "Nothing: every image drawn is in the set." in html
    assert "No attempt was refused." in html
    for text in (
        "Mean score",
        "Score:",
        "Scores of all attempts",
        "Refused images",
        "drawn to get them",
    ):
        assert text not in html


def calibrated_gates():
    found = {"threshold": 0.41, "precision": 0.96, "precision_ci95": (0.88, 0.99), "recall": 0.8}
    found |= {"num_positive": 55, "num_accepted": 46}
    origin = {"accept_precision": 0.95, "real_dir": "data/oct", "real_split": "val"}
    return {"class": {"thresholds": {"drusen": 0.41}, **origin, "calibration": {"drusen": found}}}


def test_page_and_card_tell_how_thresholds_were_calibrated(tmp_path):
    html = page_of(tmp_path, some_rows(), gates=calibrated_gates())
    assert "thresholds chosen for a precision of: 0.95; on: data/oct; split: val<" in html
    figures = ["0.4100", "0.9600 (0.8800 – 0.9900)", "0.8000", "55", "46"]
    assert figures in cells(html, "drusen")
    acceptance = Acceptance.count(some_rows())
    card = dataset_card(summary_of(acceptance, gates=calibrated_gates()))
    assert f"| drusen | {' | '.join(figures)} |" in card


def test_page_of_an_audited_set_does_not_say_unchecked(tmp_path):
    html = page_of(tmp_path, some_rows(), gates=GATES | {"copy": {"threshold": 0.93}})
    assert "was not checked" not in html
    assert "threshold: 0.93" in html


def test_guidance_page_shows_the_scales_of_a_seed_side_by_side(tmp_path):
    sets = {}
    for scale, rows in (("2", [row(10), row(20)]), ("7.5", [row(110), row(20, 1)])):
        sets[scale] = (draw(tmp_path / scale, rows), tmp_path / scale)
    sets["7.5"][0][0]["index"] = "10"  # the same image of the plan, drawn otherwise
    shown = same_seed_samples(sets, per_label=3)
    Image.new("L", (16, 16), 110).save(shown[0]["7.5"].path)
    acceptances = {scale: Acceptance.count(rows) for scale, (rows, _) in sets.items()}
    html = guidance_page(acceptances, shown, {"2": "guidance_2", "7.5": "guidance_7.5"}).html()
    sheet = re.search(r'src="data:image/png;base64,([^"]+)"', html).group(1)
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(sheet))).convert("L"))
    assert (pixels[60, 60], pixels[60, 190]) == (10, 110)
    assert pixels.shape[0] < 2 * 128  # one row
    assert cells(html, "7.5")[0][:4] == ["2", "0", "2", "100.0 % (34.2 – 100.0)"]
    assert 'href="guidance_7.5/report.html"' in html


def test_guidance_page_without_a_common_seed_says_so():
    acceptances = {scale: Acceptance.count([row(0)]) for scale in ("2", "4")}
    html = guidance_page(acceptances, [], {"2": "a", "4": "b"}).html()
    assert "No image was accepted from the same seed" in html


# The card


def head_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_card_has_a_head_that_the_hub_reads():
    acceptance = Acceptance.count(some_rows())
    head = head_of(dataset_card(summary_of(acceptance)))
    assert head["license"] == "unknown"
    assert {"synthetic", "medical"} <= set(head["tags"])
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == ["metadata.csv", "images/*.png"]


@pytest.mark.parametrize(
    ("count", "size"), [(999, "n<1K"), (1_000, "1K<n<10K"), (50_000, "10K<n<100K")]
)
def test_card_has_the_hubs_size_category(count, size):
    acceptance = Acceptance.count(some_rows())
    assert head_of(dataset_card(summary_of(acceptance, num_images=count)))["size_categories"] == [
        size
    ]


def test_card_tells_counts_gates_and_settings():
    card = dataset_card(summary_of(Acceptance.count(some_rows())))
    assert "| drusen | 9 | 0 | 9 | 100.0 % |" in card
    assert "| scar <b> | 0 | 1 | 25 | 0.0 % |" in card
    assert "| all | 9 | 1 | 34 | 26.5 % |" in card
    assert "the asked label was not recognised: 25" in card
    assert "**Hardly ever accepted: scar <b>.**" in card
    assert "classifier: runs/diagnosis/classifier; SHA-256: c1a5" in card
    assert "| negative prompt | blur \\| noise |" in card
    assert "| prompts | 3, from data/oct (train split) |" in card


def test_card_says_whether_copies_were_checked():
    acceptance = Acceptance.count(some_rows())
    assert "**Not checked.**" in dataset_card(summary_of(acceptance))
    facts = {"threshold": 0.93125, "num_held_out": 160, "held_out_share": 0.05}
    card = dataset_card(summary_of(acceptance, gates={"copy": facts}))
    assert "**Not checked.**" not in card
    assert "threshold: 0.9313; held-out real images: 160; share of them" in card
    assert "above the threshold too: 0.05 |" in card


def test_card_says_that_prompts_are_embedded_only_if_they_are():
    acceptance = Acceptance.count(some_rows())
    assert "in words" not in dataset_card(summary_of(acceptance))
    assert "and in words" in dataset_card(summary_of(acceptance, embed_prompt=True))


def test_with_its_card_as_readme_the_set_loads_without_the_refused_images(tmp_path):
    folder = tmp_path / "set"
    rows = draw(folder, [row(0), row(1), row(2, 0, "rejected")])
    table = "file_name,label\nimages/000000.png,drusen\nimages/000001.png,drusen\n"
    (folder / "metadata.csv").write_text(table)
    acceptance = Acceptance.count(rows)
    (folder / "README.md").write_text(dataset_card(summary_of(acceptance)))
    found = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(np.asarray(image)[0, 0] for image in found["image"]) == [0, 1]
    assert found["label"] == ["drusen", "drusen"]
