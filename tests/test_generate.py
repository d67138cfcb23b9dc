"""The generator from the command line to the data set: same bytes, marks, refusals, resumption."""

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import generate_synthetic_dataset as generate
from utils import generation_flags, pictures, resumable_run, sampling
from utils.cli import UserError
from utils.dataset import load_dataset

SCRIPT = Path(generate.__file__)
DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCES = ["--prompt", "scar", "--prompts_file", "p.txt", "--prompts_from", "data"]


def flags(model, output_dir, *more, steps=2):
    return [
        *("--model", str(model), "--output_dir", str(output_dir), "--device", "cpu", "--offline"),
        *("--num_inference_steps", str(steps), *map(str, more)),
    ]


def table(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def recorded(folder):
    """Lines of a manifest and its parts, which a run at work may merge while they are read."""
    rows = []
    for path in [Path(folder) / "manifest.csv", *Path(folder).glob("manifest_parts/[0-9]*.csv")]:
        with contextlib.suppress(FileNotFoundError):
            rows += table(path)
    return rows


def contents(folder):
    """Bytes of all that is published, by name: all but options.json, which holds the time."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != "options.json"
    }


def change_weights(pipeline, part, name_part, change):
    """Apply ``change`` to the tensors of a pipeline's part whose name contains ``name_part``."""
    path = next((pipeline / part).glob("*.safetensors"))
    weights = load_file(path)
    names = [name for name in weights if name_part in name]
    assert names
    save_file(weights | {name: change(weights[name]).contiguous() for name in names}, path)


@pytest.fixture
def own_pipeline(tiny_pipeline, tmp_path):
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


@pytest.fixture(scope="module")
def six(tiny_pipeline, tmp_path_factory):
    """A finished set of six images of three prompts, drawn in batches of four."""
    folder = tmp_path_factory.mktemp("six") / "set"
    args = flags(tiny_pipeline, folder, *three_prompts(), "--batch_size", 4)
    generate.main(args)
    return folder


def three_prompts():
    return [
        *("--prompt", "macular edema, cysts", "--label", "edema;cyst"),
        *("--prompt", "drusen", "--label", "drusen", "--prompt", "normal", "--label", ""),
        *("--num_images_per_prompt", 2),
    ]


def test_names_of_the_samplers_are_those_that_exist():
    assert generation_flags.SAMPLERS == sampling.SAMPLERS


def test_flags_are_checked_without_loading_anything_heavy():
    code = (
        "import sys, generate_synthetic_dataset as g\n"
        "try: g.parse_args(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"--prompts_from" in done.stdout


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ([], "--prompt --prompts_file --prompts_from --template"),
        (SOURCES[:4], "--prompts_file"),
        (SOURCES[:2] + SOURCES[4:], "--prompts_from"),
        (["--prompt", " "], "--prompt"),
        (["--prompt", "a", "--label", "b", "--label", "c"], "--label"),
        (["--prompts_from", "d", "--label", "b"], "--label"),
        (["--prompt", "a", "--prompts_split", "test"], "--prompts_split"),
        (["--prompts_from", "d", "--prompts_split", "all"], "--prompts_split"),
        (["--prompts_from", "d", "--class_balanced"], "--class_balanced"),
        (["--prompt", "a", "--class_balanced", "--num_images", "2"], "--class_balanced"),
        (["--prompt", "a", "--num_images", "0"], "--num_images"),
        (["--prompt", "a", "--guidance_scale", "0.5"], "--guidance_scale"),
        (["--prompt", "a", "--guidance_scale", "1", "--negative_prompt", "b"], "--negative_prompt"),
        (["--prompt", "a", "--guidance_rescale", "1.5"], "--guidance_rescale"),
        (["--prompt", "a", "--guidance_interval", "0.5"], "--guidance_interval"),
        (["--prompt", "a", "--guidance_interval", "0.5", "0.5"], "--guidance_interval"),
        (["--prompt", "a", "--guidance_scale", "2", "2.0000001"], "--guidance_scale"),
        (["--prompt", "a", "--guidance_scale", "2", "3", "--format", "webdataset"], "--format"),
        (["--prompt", "a", "--c2pa_tsa_url", "http://a"], "--c2pa_tsa_url"),
        (["--prompts_from", "./nowhere"], "--prompts_from"),
        (["--prompts_from", "/tmp", "--output_dir", "/tmp/new"], "--output_dir"),
        (["--prompt", "a", "--modality", "a\x07"], "--modality"),
        (["--prompt", "a", "--negative_prompt", "a\udcff"], "--negative_prompt"),
        (["--prompt", "a\udcff"], "--prompt"),
        (["--prompt", "a", "--output_dir", f"{__file__}/set"], "--output_dir"),
        (["--prompt", "a", "--accept_prob", "0.5"], "--accept_prob"),
        (["--prompt", "a", "--accept_prob", "0", "--classifier", "."], "--accept_prob"),
        (["--prompt", "a", "--accept_prob", "no.json", "--classifier", "."], "--accept_prob"),
        (["--prompt", "a", "--accept_precision", "0.9", "--classifier", "."], "--real_dir"),
        (["--prompt", "a", "--classifier", "/nowhere"], "--classifier"),
        (["--prompt", "a", "--train_dir", "."], "--real_dir"),
        (["--prompt", "a", "--real_dir", "."], "--real_dir"),
        (["--prompt", "a", "--max_attempts", "0"], "--max_attempts"),
        (["--prompt", "a", "--min_contrast", "-1"], "--min_contrast"),
        (["--prompt", "a", "--batch_size", "0"], "--batch_size"),
        (["--prompt", "a", "--c2pa_cert", __file__], "--c2pa_key"),
        (["--template", "/nowhere/t.json"], "--template"),
        (["--prompt", "a", "--template", __file__], "--template"),
        (["--prompt", "a", "--eta", "0.5"], "--eta"),
        (["--prompt", "a", "--sampler", "heun"], "--sampler"),
        (["--prompt", "a", "--resolution", "60"], "--resolution"),
        (["--prompt", "a", "--batch", "2"], "--batch"),
        (["--prompt", "a", "--gray", "yes"], "--gray"),
        (["--prompts_file", "/nowhere/p.txt"], "--prompts_file"),
        (["--prompt", "a", "--model", "./nowhere"], "--model"),
        (["--prompt", "a", "--output_dir", __file__], "--output_dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_bad_flag_ends_with_status_2_and_its_name(capsys, tmp_path, more, named):
    # Beyond the usage, which names every flag.
    (tmp_path / "p.txt").write_text("a")
    if more == SOURCES[:4]:
        more = [*more[:3], str(tmp_path / "p.txt")]
    with pytest.raises(SystemExit) as caught:
        generate.parse_args(["--model", "m", "--output_dir", str(tmp_path / "new"), *more])
    assert caught.value.code == 2
    assert named in capsys.readouterr().err.partition("error:")[2]


def test_the_set_is_a_data_set_with_provenance(six, tiny_pipeline):
    dataset = load_dataset(six, require_text=True)
    assert [record.text for record in dataset] == [
        *["macular edema, cysts"] * 2,
        *["drusen"] * 2,
        *["normal"] * 2,
    ]
    assert dataset[0].labels == ("edema", "cyst")
    assert dataset[4].labels == ()
    row = dataset[1].row
    assert row["file_name"] == "images/000001.png"
    expected = {
        "source": "synthetic",
        "prompt": "macular edema, cysts",
        "seed": str(sampling.image_seed(0, 1)),
        "model": str(tiny_pipeline),
        "sampler": "dpmsolver++",
        "steps": "2",
        "guidance": "4",
        "score": "",
        "accepted": "true",
        "attempt": "0",
    }
    assert {name: row[name] for name in expected} == expected
    assert len(row["model_hash"]) == 64


def test_the_manifest_has_a_line_for_every_image(six):
    rows = table(six / "manifest.csv")
    assert [row["index"] for row in rows] == list("012345")
    for row in rows:
        assert sha256((six / row["file_name"]).read_bytes()).hexdigest() == row["png_sha256"]


def test_options_and_card_tell_how_the_set_was_made(six):
    options = json.loads((six / "options.json").read_text())
    assert options["flags"]["num_inference_steps"] == 2
    assert options["model_hash"] in (six / "dataset_card.md").read_text()
    assert "| drusen | 2 |" in (six / "dataset_card.md").read_text()


def test_every_png_says_that_it_is_synthetic_and_hides_its_prompt(six):
    row = table(six / "metadata.csv")[2]
    for path in sorted(six.glob("images/*.png")):
        with Image.open(path) as image:
            assert image.text["synthetic"] == "true"
            assert image.text["digital_source_type"] == DIGITAL_SOURCE
            assert DIGITAL_SOURCE in image.text["XML:com.adobe.xmp"]
            assert "OCT-SD" in image.text["generator"]
        assert b"drusen" not in path.read_bytes()
        assert b"edema" not in path.read_bytes()
    with Image.open(six / row["file_name"]) as image:
        assert image.text["prompt_sha256"] == sha256(b"drusen").hexdigest()
        assert image.text["seed"] == row["seed"]
        assert image.text["model_hash"] == row["model_hash"]


def test_the_iptc_mark_is_an_xmp_packet_that_parses(six):
    from xml.etree import ElementTree

    with Image.open(six / "images/000000.png") as image:
        root = ElementTree.fromstring(image.info["xmp"])
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert [element.text for element in root.iter(name)] == [DIGITAL_SOURCE]


def test_the_prompt_is_embedded_on_demand(tiny_pipeline, tmp_path):
    prompt = "drusen / weich 👁️"
    generate.main(flags(tiny_pipeline, tmp_path / "set", "--prompt", prompt, "--embed_prompt"))
    with Image.open(tmp_path / "set/images/000000.png") as image:
        assert image.text["prompt"] == prompt


@pytest.mark.parametrize("batch_size", [1, 8])
def test_batch_size_changes_no_byte(six, tiny_pipeline, tmp_path, batch_size):
    more = [*three_prompts(), "--batch_size", batch_size]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    assert contents(tmp_path / "set") == contents(six)


def test_seed_index_and_prompt_change_the_image(six, tiny_pipeline, tmp_path):
    generate.main(flags(tiny_pipeline, tmp_path / "set", *three_prompts(), "--seed", 1))
    ours = [row["png_sha256"] for row in table(tmp_path / "set/manifest.csv")]
    theirs = [row["png_sha256"] for row in table(six / "manifest.csv")]
    assert len({*ours, *theirs}) == 12


def _cut_line(folder):
    manifest = folder / "manifest.csv"
    manifest.write_bytes(manifest.read_bytes()[:-150])


def _lose_image(folder):
    (folder / "images/000001.png").unlink()


def _cut_image(folder):
    path = folder / "images/000005.png"
    path.write_bytes(path.read_bytes()[:-20])


def _lose_lines(folder):
    manifest = folder / "manifest.csv"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:5]))


def _lose_manifest(folder):
    (folder / "manifest.csv").unlink()


def _leave_half_written_files(folder):
    (folder / "images/.tmp-0123456789ab.png").write_bytes(b"half")
    (folder / ".tmp-0123456789ab.csv").write_bytes(b"half")


DAMAGES = [
    _cut_line,
    _lose_image,
    _cut_image,
    _lose_lines,
    _lose_manifest,
    _leave_half_written_files,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_run_stopped_anywhere_is_continued_to_the_same_bytes(
    six, tiny_pipeline, tmp_path, damage, capsys
):
    folder = Path(shutil.copytree(six, tmp_path / "set"))
    for name in ("metadata.csv", "dataset_card.md"):
        (folder / name).unlink()
    damage(folder)
    generate.main(flags(tiny_pipeline, folder, *three_prompts(), "--batch_size", 1))
    assert contents(folder) == contents(six)
    assert json.loads(capsys.readouterr().out)["num_images"] == 6


def test_a_killed_run_is_continued_to_the_same_bytes(tiny_pipeline, tmp_path):
    more = ["--prompt", "drusen", "--num_images", 48, "--batch_size", 4]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), *flags(tiny_pipeline, killed, *more, steps=20)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None and len(recorded(killed)) < 4:
            time.sleep(0.01)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert not (killed / "metadata.csv").exists()
    assert 4 <= len(recorded(killed)) < 48
    for folder in (killed, whole):
        generate.main(flags(tiny_pipeline, folder, *more, steps=20))
    assert contents(killed) == contents(whole)


def test_a_finished_run_is_not_drawn_again(six, own_pipeline, tmp_path, capsys):
    folder = Path(shutil.copytree(six, tmp_path / "set"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("images/*")}
    model = table(six / "metadata.csv")[0]["model"]
    generate.main(flags(model, folder, *three_prompts()))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("images/*")} == before
    assert json.loads(capsys.readouterr().out)["num_drawn_now"] == 0


def test_other_flags_in_the_same_folder_are_refused_by_name(six, tiny_pipeline):
    before = contents(six)
    more = [*three_prompts(), "--seed", 5, "--gray", "always"]
    with pytest.raises(UserError) as caught:
        generate.main(flags(tiny_pipeline, six, *more, steps=3))
    lines = str(caught.value).splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == ["--gray:", "--num_inference_steps:", "--seed:"]
    assert contents(six) == before


def test_another_model_in_the_same_place_is_refused(own_pipeline, tmp_path):
    more = ["--prompt", "drusen"]
    generate.main(flags(own_pipeline, tmp_path / "set", *more))
    change_weights(own_pipeline, "unet", "conv_in.bias", lambda weight: weight + 0.1)
    with pytest.raises(UserError, match="model_hash"):
        generate.main(flags(own_pipeline, tmp_path / "set", *more))


def test_another_prompts_file_of_the_same_name_is_refused(tiny_pipeline, tmp_path):
    (tmp_path / "p.txt").write_text("drusen\n")
    more = ["--prompts_file", tmp_path / "p.txt"]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    (tmp_path / "p.txt").write_text("scar\n")
    with pytest.raises(UserError, match="plan_sha256"):
        generate.main(flags(tiny_pipeline, tmp_path / "set", *more))


def test_overwrite_starts_anew(six, tiny_pipeline, tmp_path):
    folder = Path(shutil.copytree(six, tmp_path / "set"))
    generate.main(flags(tiny_pipeline, folder, "--prompt", "scar", "--overwrite"))
    assert [row["text"] for row in table(folder / "metadata.csv")] == ["scar"]
    assert len(list(folder.glob("images/*"))) == 1


def _with_notes(folder):
    (folder / "notes.txt").write_text("mine")


def _without_options(folder):
    (folder / "options.json").unlink()


def _of_another_script(folder):
    (folder / "options.json").write_text('{"script": "train.py", "flags": {}}')


def _with_damaged_options(folder):
    (folder / "options.json").write_text('{"script": ')


@pytest.mark.parametrize(
    "change", [_with_notes, _without_options, _of_another_script, _with_damaged_options]
)
def test_overwrite_deletes_nothing_that_this_script_did_not_write(
    six, tiny_pipeline, tmp_path, change
):
    folder = Path(shutil.copytree(six, tmp_path / "set"))
    change(folder)
    before = contents(folder)
    with pytest.raises(UserError, match=r"name another"):
        generate.main(flags(tiny_pipeline, folder, "--prompt", "scar", "--overwrite"))
    assert contents(folder) == before


def test_a_run_without_an_image_does_not_bind_the_next(tiny_pipeline, tmp_path):
    prompt = ["--prompt", "scar"]
    with pytest.raises(UserError, match="--num_inference_steps 1:"):
        generate.main(flags(tiny_pipeline, tmp_path / "set", *prompt, "--sampler", "pndm", steps=1))
    generate.main(flags(tiny_pipeline, tmp_path / "set", *prompt, steps=1))
    assert table(tmp_path / "set/metadata.csv")[0]["sampler"] == "dpmsolver++"


@pytest.mark.skipif(resumable_run.fcntl is None, reason="no file locks on this system")
def test_two_runs_in_one_folder_are_refused(tiny_pipeline, tmp_path):
    with (
        resumable_run.only_writer(tmp_path),
        pytest.raises(UserError, match="another run is writing"),
    ):
        generate.main(flags(tiny_pipeline, tmp_path, "--prompt", "scar"))


@pytest.mark.parametrize("call", [1, 9, 16, 23, 30, 33])
def test_a_full_disk_ends_in_clear_words_and_loses_nothing(
    six, tiny_pipeline, tmp_path, monkeypatch, call
):
    real_fsync, calls = os.fsync, []

    def fsync_of_a_small_disk(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_of_a_small_disk)
    args = flags(tiny_pipeline, tmp_path / "set", *three_prompts(), "--batch_size", 4)
    with pytest.raises(UserError, match=r"--output_dir .* cannot be written: .*No space left"):
        generate.main(args)
    assert not list((tmp_path / "set").rglob(".tmp-*"))
    generate.main(args)
    assert contents(tmp_path / "set") == contents(six)


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="needs a folder not even root may fill"
)
def test_a_folder_that_cannot_be_written_ends_in_clear_words(tiny_pipeline):
    with pytest.raises(UserError, match=r"--output_dir /sys/kernel/set cannot be written"):
        generate.main(flags(tiny_pipeline, "/sys/kernel/set", "--prompt", "scar"))


def test_nan_stops_with_the_image_and_the_prompt_named_and_writes_no_picture(
    own_pipeline, tmp_path
):
    change_weights(own_pipeline, "unet", "conv_out.bias", lambda weight: weight * float("nan"))
    with pytest.raises(UserError) as caught:
        generate.main(flags(own_pipeline, tmp_path / "set", "--prompt", "scar"))
    assert f"image 0 (--prompt 1, prompt sha256 {sha256(b'scar').hexdigest()[:16]})" in str(
        caught.value
    )
    assert "NaN" in str(caught.value)
    assert not list((tmp_path / "set").rglob("*.png"))
    assert not (tmp_path / "set/metadata.csv").exists()


def test_a_black_picture_is_never_written(own_pipeline, tmp_path):
    change_weights(own_pipeline, "vae", "decoder.conv_out.weight", torch.zeros_like)
    change_weights(own_pipeline, "vae", "decoder.conv_out.bias", lambda bias: bias * 0 - 1)
    with pytest.raises(UserError, match=r"in 3 attempts .blank, or of one flat colour: 3"):
        generate.main(
            flags(own_pipeline, tmp_path / "set", "--prompt", "scar", "--max_attempts", 3)
        )
    assert not list((tmp_path / "set").rglob("*.png"))
    assert not (tmp_path / "set/metadata.csv").exists()
    assert [row["status"] for row in recorded(tmp_path / "set")] == ["rejected"] * 2 + ["failed"]


def _add_strict_safety_checker(folder):
    """Give a pipeline a safety checker that finds fault with every picture."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sizes | {"num_hidden_layers": 1},
        vision_config=sizes | {"num_hidden_layers": 1, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-10)  # cosine similarity that counts as a match
    checker.special_care_embeds_weights.data.fill_(-10)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    plain = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=checker, feature_extractor=processor, requires_safety_checker=True
    )
    plain.save_pretrained(folder)
    return StableDiffusionPipeline.from_pretrained(folder)


def test_the_models_card_goes_with_its_images_whatever_its_bytes(own_pipeline, tmp_path):
    (own_pipeline / "model_card.md").write_bytes(b"\xff\xfe no UTF-8")
    generate.main(flags(own_pipeline, tmp_path / "set", "--prompt", "scar"))
    assert (tmp_path / "set/model_card.md").read_bytes() == b"\xff\xfe no UTF-8"


def test_a_safety_checker_in_the_pipeline_is_not_loaded_and_blackens_nothing(
    own_pipeline, tmp_path
):
    plain = _add_strict_safety_checker(own_pipeline)
    plain.set_progress_bar_config(disable=True)
    assert np.asarray(plain("scar", num_inference_steps=2).images[0]).max() == 0
    next((own_pipeline / "safety_checker").glob("*.safetensors")).unlink()
    generate.main(flags(own_pipeline, tmp_path / "set", "--prompt", "scar"))
    with Image.open(tmp_path / "set/images/000000.png") as image:
        assert np.asarray(image).std() > 1


def test_chroma_is_the_mean_distance_of_the_channels_and_gray_their_mean():
    pixels = torch.tensor([0.0, 0.06, -0.03]).view(3, 1, 1).expand(3, 2, 2)
    picture, chroma = pictures.finish_image(pixels, "auto")
    assert chroma == 135 - 124  # of 127.5 * (1 + x), rounded
    assert picture.mode == "RGB"
    picture, _ = pictures.finish_image(pixels, "always")
    assert picture.mode == "L"
    assert picture.getpixel((0, 0)) == 129  # 127.5 * 1.01


@pytest.mark.parametrize(("spread", "mode"), [(0.01, "L"), (0.1, "RGB")])
def test_auto_writes_weak_colour_as_gray_and_strong_as_colour(spread, mode):
    pixels = torch.linspace(-1, 1, 64).view(1, 8, 8) + torch.tensor([0, spread, -spread]).view(
        3, 1, 1
    )
    picture, _ = pictures.finish_image(pixels, "auto")
    assert picture.mode == mode
    assert pictures.finish_image(pixels, "never")[0].mode == "RGB"


def test_gray_files_have_one_channel_and_what_was_dropped_is_told(tiny_pipeline, tmp_path, capsys):
    generate.main(flags(tiny_pipeline, tmp_path / "set", "--prompt", "scar", "--gray", "always"))
    with Image.open(tmp_path / "set/images/000000.png") as image:
        assert image.mode == "L"
    result = json.loads(capsys.readouterr().out)
    assert result["num_gray"] == 1
    assert result["chroma_dropped_mean"] == float(table(tmp_path / "set/manifest.csv")[0]["chroma"])
    assert "dropped chroma: mean" in (tmp_path / "set/dataset_card.md").read_text()


def test_a_balanced_set_from_the_captions_of_a_data_set(
    tiny_pipeline, toy_dataset, tmp_path, capsys
):
    more = ["--prompts_from", toy_dataset, "--class_balanced", "--num_images", 6]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more, "--modality", "OCT"))
    result = json.loads(capsys.readouterr().out)
    assert result["per_label"] == {"drusen": 2, "macular edema": 2, "normal": 2}
    training = {
        row["text"] for row in table(toy_dataset / "metadata.csv") if row["split"] == "train"
    }
    rows = table(tmp_path / "set/metadata.csv")
    assert {row["text"] for row in rows} <= training
    assert {row["modality"] for row in rows} == {"OCT"}


def test_odd_prompts_of_a_file_are_drawn_and_the_cut_ones_named(tiny_pipeline, tmp_path, capsys):
    prompts = ["../../etc/passwd", "👁️ drusen", "long " * 2000]
    (tmp_path / "p.txt").write_text("\ufeff" + "\n\n".join(prompts), encoding="utf-8")
    more = ["--prompts_file", tmp_path / "p.txt"]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    rows = table(tmp_path / "set/metadata.csv")
    assert [row["prompt"] for row in rows] == [prompt.strip() for prompt in prompts]
    assert [row["file_name"] for row in rows] == [f"images/00000{index}.png" for index in range(3)]
    assert "longer than the 77 tokens" in capsys.readouterr().err


def test_a_model_of_two_chunks_reads_twice_as_much_of_a_prompt(own_pipeline, tmp_path, capsys):
    config = own_pipeline / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_caption_chunks": 2}))
    start = "x " * 90  # a letter is a token
    drawn = []
    for end in "ab":  # image 0 has the same seed in every run
        generate.main(flags(own_pipeline, tmp_path / end, "--prompt", start + end))
        with Image.open(tmp_path / end / "images" / "000000.png") as image:
            drawn.append(image.tobytes())
    assert drawn[0] != drawn[1]
    assert "longer" not in capsys.readouterr().err
    generate.main(flags(own_pipeline, tmp_path / "long", "--prompt", start + start))
    assert "1 prompt(s) are longer than the 152 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_a_zero_snr_model_is_drawn_or_its_sampler_refused(own_pipeline, tmp_path, sampler):
    path = own_pipeline / "scheduler/scheduler_config.json"
    changes = {
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    args = flags(own_pipeline, tmp_path / "set", "--prompt", "scar", "--sampler", sampler)
    if sampler == "pndm":
        with pytest.raises(UserError, match="--sampler pndm cannot"):
            generate.main(args)
    else:
        generate.main(args)
        assert len(table(tmp_path / "set/metadata.csv")) == 1


def test_resolution_is_the_models_own_unless_asked_otherwise(six, tiny_pipeline, tmp_path):
    with Image.open(six / "images/000000.png") as image:
        assert image.size == (64, 64)
    more = ["--prompt", "scar", "--resolution", 96, "--mixed_precision", "bf16"]
    generate.main(flags(tiny_pipeline, tmp_path / "set", *more))
    with Image.open(tmp_path / "set/images/000000.png") as image:
        assert image.size == (96, 96)


def test_half_precision_of_gpus_is_refused_on_a_cpu(tiny_pipeline, tmp_path):
    more = ["--prompt", "scar", "--mixed_precision", "fp16"]
    with pytest.raises(UserError, match="--mixed_precision fp16 is for GPUs"):
        generate.main(flags(tiny_pipeline, tmp_path / "set", *more))


@pytest.mark.parametrize("model", ["nobody/nothing", "no folder"])
def test_a_model_that_cannot_be_had_is_named(tmp_path, model):
    with pytest.raises(UserError, match=f"--model {model}"):
        generate.main(flags(model, tmp_path / "set", "--prompt", "scar"))
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        generate.main(flags(tmp_path, tmp_path / "set", "--prompt", "scar"))
