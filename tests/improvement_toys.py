"""Small clinics and untrained classifiers for the tests of self-improvement."""

import torch
from report_clinic import write_reports

from utils import captioner_networks
from utils.backbones import build_network
from utils.captioner import Captioner
from utils.classifier import Classifier, ClassifierConfig
from utils.dataset import load_dataset, write_dataset
from utils.rating_table import Answer, write_answers
from utils.run_folder import write_csv

SPLITS = ["train"] * 8 + ["val"] * 6 + ["test"] * 6  # two scans of each patient


def write_clinic(folder, *, population=0):
    """A divided clinic of 40 scans with reports, and the labels it has."""
    write_reports(folder, SPLITS, population=population, resolution=64)
    return folder, tuple(load_dataset(folder).labels)


def save_classifier(folder, labels, *, seed):
    """An untrained classifier of 32 pixels."""
    options = {"resolution": 32, "mean": 0.3, "std": 0.2}
    network = build_network("small", num_labels=len(labels), seed=seed, **options)
    config = ClassifierConfig(
        backbone="small",
        labels=labels,
        multi_label=False,
        resize_mode="center_crop",
        data_hash="none",
        **options,
    )
    Classifier(config, network).save(folder)
    return folder


def always_says(folder, label):
    """Make a classifier find this label in every image."""
    classifier = Classifier.load(folder)
    place = classifier.labels.index(label)
    with torch.no_grad():
        classifier.network.head.weight.zero_()
        classifier.network.head.bias.zero_()
        classifier.network.head.bias[place] = 9.0
    classifier.save(folder)


def save_captioner(folder):
    """A report model that writes "normal retina" of every scan."""
    spec = captioner_networks.CaptionerSpec(resolution=64, max_tokens=24)
    network, tokenizer, settings = captioner_networks.build_network(
        spec, ["normal retina"] * 9, seed=0
    )
    text = tokenizer("normal retina").input_ids
    start, end = network.generation_config.decoder_start_token_id, tokenizer.eos_token_id
    ids = torch.tensor([[start, *(token for token in text if token not in (start, end)), end]])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        logits = network(pixel_values=pixels, decoder_input_ids=ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    Captioner(network, tokenizer, settings, resize_mode="stretch").save(folder)
    return folder


def write_ratings(folder, scans, raters=("ann", "ben", "cem"), split="train"):
    """An export of ratings of scans shown twice; the showings are compared with each other."""
    (folder / "images").mkdir(parents=True)
    rows, answers, pairs = [], [], []
    for item, record in enumerate([*scans, *scans]):
        name = f"images/{item:06d}.png"
        record.image().save(folder / name)
        row = {"file_name": name, "text": record.text, "label": ";".join(record.labels)}
        rows.append(row | {"source": "real", "split": split})
    for place, rater in enumerate(raters):
        for item, row in enumerate(rows):
            for question in ("quality", "agreement"):
                value = str(1 + (item + place // 2) % 5)
                answers.append(answer(rater, item, question, value, row))
        for first, second in zip(rows, rows[len(scans) :]):
            names = {"preferred": first["file_name"], "rejected": second["file_name"]}
            pairs.append({"text": first["text"], **names, "weight": 1, "rater": rater})
    write_dataset(folder, rows)
    write_answers(folder / "answers.csv", answers)
    columns = ["text", "preferred", "rejected", "weight", "rater", "origin"]
    write_csv(folder / "pairs.csv", [pair | {"origin": "preference"} for pair in pairs], columns)
    return folder


def answer(rater, item, question, value, row):
    """An answer about one image."""
    return Answer(
        rater=rater,
        item=item,
        is_repeat=False,
        position=item,
        question=question,
        value=value,
        image=row["file_name"],
        arm="real",
        label=row["label"],
        text=row["text"],
        other_image="",
        other_arm="",
        seconds=3.0,
        answered_at="2026-01-01T00:00:00Z",
    )
