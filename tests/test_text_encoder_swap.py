"""Another text encoder in the pipeline: plugged in, projected, saved, trained, or refused."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

import generate_synthetic_dataset
import train_text_to_image
from utils.cli import UserError
from utils.dataset import load_dataset
from utils.diffusion import load_pipeline, load_pipeline_parts, save_pipeline
from utils.image_sampler import ImageSampler, PromptEncoder
from utils.sampling import Settings
from utils.text_encoder_swap import fit_unet, replace_text_encoder
from utils.text_encoding import encode_text, num_caption_chunks, set_num_caption_chunks, tokenize

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["macular", "edema", "drusen", "normal", "retina", "scan", "cyst", "with", ","]
OTHERS = {  # beside BERT, with the sizes by their own names
    "RobertaModel": {"max_position_embeddings": 90},
    "XLMRobertaModel": {"max_position_embeddings": 90},
    "DistilBertModel": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "ElectraModel": {"embedding_size": 16},
}
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "vocab.txt").unlink()


def write_bert(folder: Path, **sizes) -> Path:
    """A BERT with random weights, saved as its makers do: with the head it was trained with."""
    write_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = BertConfig(vocab_size=len(WORDS), **(SIZES | sizes))
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture
def copy_of_bert(bert, tmp_path):
    return Path(shutil.copytree(bert, tmp_path / "copy"))


@pytest.fixture
def parts(tiny_pipeline):
    return load_pipeline_parts(tiny_pipeline)


def swap(parts, folder, seed=0):
    return replace_text_encoder(parts, str(folder), seed=seed, offline=True)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(pipeline, part="unet"):
    return load_file(pipeline / part / "diffusion_pytorch_model.safetensors")


# What comes out


def test_an_encoder_of_the_same_width_is_plugged_in(parts, tmp_path):
    new = swap(parts, write_bert(tmp_path / "bert", hidden_size=32))
    assert new.unet is parts.unet
    assert type(new.text_encoder).__name__ == "BertModel"
    assert not new.text_encoder.training
    assert not any(p.requires_grad for p in new.text_encoder.parameters())
    assert new.tokenizer.tokenize("macular edema") == ["macular", "edema"]


def test_an_encoder_of_another_width_gets_a_projection(parts, bert):
    before = {name: weight.clone() for name, weight in parts.unet.state_dict().items()}
    unet = swap(parts, bert).unet
    after = unet.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert after.keys() - before.keys() == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}
    assert after["encoder_hid_proj.weight"].shape == (32, 48)
    assert unet.config.encoder_hid_dim_type == "text_proj"
    assert all(p.requires_grad for p in unet.parameters())


def test_the_projection_follows_from_the_seed_and_keeps_the_size(parts):
    one, same, other = (fit_unet(parts.unet, 512, seed=seed).encoder_hid_proj for seed in (0, 0, 1))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    projected = one(torch.randn(1000, 512, generator=torch.Generator().manual_seed(2)))
    assert projected.square().mean().item() == pytest.approx(1, rel=0.1)


def test_a_projection_that_fits_is_kept_and_one_without_use_goes(parts):
    projected = fit_unet(parts.unet, 48, seed=0)
    assert fit_unet(projected, 48, seed=1) is projected
    assert fit_unet(projected, 16, seed=0).encoder_hid_proj.in_features == 16
    plain = fit_unet(projected, 32, seed=0)
    assert plain.state_dict().keys() == parts.unet.state_dict().keys()
    assert plain.config.encoder_hid_dim is None


def test_the_pipeline_folder_loads_in_plain_diffusers_and_reads_the_same(parts, bert, tmp_path):
    new = swap(parts, bert)
    save_pipeline(new, new.unet, tmp_path / "pipeline")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(plain.text_encoder).__name__ == "BertModel"
    image = plain("macular edema", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert image.std() > 0
    ours = load_pipeline(tmp_path / "pipeline")
    embedding = encode_text(ours.text_encoder, tokenize(ours.tokenizer, ["macular edema"]))
    theirs, negative = plain.encode_prompt("macular edema", "cpu", 1, True)
    assert torch.equal(embedding, theirs)
    empty = encode_text(ours.text_encoder, tokenize(ours.tokenizer, [""]))
    torch.testing.assert_close(empty, negative, rtol=0, atol=1e-5)


def test_bert_does_not_see_padding(parts, bert):
    new = swap(parts, bert)
    ids = tokenize(new.tokenizer, ["macular edema"])
    length = 4  # with [CLS] and [SEP]
    alone = encode_text(new.text_encoder, ids[:, :, :length])
    padded = encode_text(new.text_encoder, ids)[:, :length]
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)
    new.text_encoder.config.use_attention_mask = False
    unmasked = encode_text(new.text_encoder, ids)[:, :length]
    assert (unmasked - alone).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("own", "positions", "expected"), [(512, 512, 77), (40, 80, 40), (512, 64, 64)]
)
def test_captions_are_as_long_as_tokenizer_encoder_and_clip_allow(
    parts, tmp_path, own, positions, expected
):
    folder = write_bert(tmp_path / "bert", max_position_embeddings=positions)
    edit_json(folder / "tokenizer_config.json", model_max_length=own)
    new = swap(parts, folder)
    assert new.tokenizer.model_max_length == expected
    save_pipeline(new, new.unet, tmp_path / "pipeline")
    again = load_pipeline(tmp_path / "pipeline")
    assert again.tokenizer.model_max_length == expected
    ids = tokenize(again.tokenizer, ["edema " * 200], 3)
    assert encode_text(again.text_encoder, ids).shape == (1, 3 * expected, 48)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_of_the_family_are_taken(parts, tmp_path, name):
    model_class = getattr(transformers, name)
    write_tokenizer(tmp_path / "model")
    config = model_class.config_class(
        vocab_size=len(WORDS), pad_token_id=0, **(SIZES | OTHERS[name])
    )
    model_class(config).save_pretrained(tmp_path / "model")
    new = swap(parts, tmp_path / "model")
    assert type(new.text_encoder) is model_class
    save_pipeline(new, new.unet, tmp_path / "pipeline")
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    plain("macular edema", num_inference_steps=1)


def test_of_a_full_clip_the_text_tower_is_taken(parts, tmp_path):
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tower | {"intermediate_size": 16, "image_size": 32, "patch_size": 16}
    text = parts.text_encoder.config.to_dict()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    clip = transformers.CLIPModel(config).eval()
    clip.save_pretrained(tmp_path / "clip")
    parts.tokenizer.save_pretrained(tmp_path / "clip")
    new = swap(parts, tmp_path / "clip")
    assert type(new.text_encoder).__name__ == "CLIPTextModel"
    ids = tokenize(parts.tokenizer, ["drusen"])
    with torch.no_grad():
        expected = clip.text_model(ids[:, 0])[0]  # padding in sight, as CLIP is trained
    assert torch.equal(encode_text(new.text_encoder, ids), expected)


def test_cxr_bert_is_taken_without_running_its_code(parts, copy_of_bert, tmp_path):
    code = {"AutoModel": "code.Model", "AutoConfig": "code.Config", "AutoTokenizer": "code.Words"}
    (copy_of_bert / "code.py").write_text("raise SystemExit('its code was run')")
    edit_json(copy_of_bert / "config.json", model_type="cxr-bert", auto_map=code)
    changes = {"tokenizer_class": "CXRBertTokenizer", "auto_map": code}
    edit_json(copy_of_bert / "tokenizer_config.json", **changes)
    new = swap(parts, copy_of_bert)
    save_pipeline(new, new.unet, tmp_path / "pipeline")
    StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    files = (tmp_path / "pipeline").rglob("*.json")
    assert not any("auto_map" in path.read_text() for path in files)


def test_what_a_checkpoint_lacks_is_not_drawn_at_random(parts, bert, tmp_path):
    assert not any("pooler" in name for name in load_file(bert / "model.safetensors"))
    for name in ("one", "two"):  # the random state between them is not the same
        swap(parts, bert).text_encoder.save_pretrained(tmp_path / name)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_half_precision_files_are_read_in_float32(parts, copy_of_bert):
    halves = {n: w.half() for n, w in load_file(copy_of_bert / "model.safetensors").items()}
    save_file(halves, copy_of_bert / "model.safetensors", metadata={"format": "pt"})
    edit_json(copy_of_bert / "config.json", dtype="float16")
    new = swap(parts, copy_of_bert)
    assert {p.dtype for p in new.text_encoder.parameters()} == {torch.float32}


def test_the_model_keeps_its_number_of_chunks(parts, bert):
    set_num_caption_chunks(parts.text_encoder, 2)
    assert num_caption_chunks(swap(parts, bert).text_encoder) == 2


# What is refused


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def without_padding(folder):
    edit_json(folder / "tokenizer_config.json", pad_token=None)


def other_config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (remove("config.json"), "config.json"),
        (remove("model.safetensors"), "model.safetensors"),
        (remove("tokenizer.json"), "tokenizer's files are missing"),
        (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer's files are missing"),
        (pickle_weights, "pytorch_model.bin"),
        (cut_weights, "cannot be loaded"),
        (without_padding, "padding token"),
        (other_config(model_type="t5"), "'t5'"),
        (other_config(num_hidden_layers=3), "lack 16 weights"),
        (other_config(hidden_size=24), "cannot be loaded"),
    ],
)
def test_what_is_no_whole_text_encoder_is_refused_by_the_flags_name(
    parts, copy_of_bert, damage, word
):
    damage(copy_of_bert)
    with pytest.raises(UserError, match=word) as error:
        swap(parts, copy_of_bert)
    assert "--text_encoder_name_or_path" in str(error.value)


def test_a_name_that_is_not_on_this_disk_is_told(parts):
    with pytest.raises(UserError, match=r"(?s)some/bert.*cannot be loaded.*--offline"):
        swap(parts, "some/bert")


def test_a_pipeline_whose_widths_do_not_fit_is_still_refused(parts, bert, tmp_path):
    new = swap(parts, bert)
    save_pipeline(new, parts.unet, tmp_path)
    with pytest.raises(UserError, match="32 wide, the text encoder gives 48"):
        load_pipeline(tmp_path)


# Trained and drawn


@pytest.fixture
def train(tiny_pipeline, toy_dataset, tmp_path):
    def run(name, *flags, base=tiny_pipeline):
        output_dir = tmp_path / name
        argv = [
            f"--pretrained_model_name_or_path={base}",
            f"--train_data_dir={toy_dataset}",
            f"--output_dir={output_dir}",
            *("--resolution=64", "--center_crop", "--train_batch_size=2", "--max_train_steps=2"),
            *(
                "--lr_warmup_steps=0",
                "--report_to=none",
                "--offline",
                "--mixed_precision=no",
                "--seed=0",
            ),
            *map(str, flags),
        ]
        assert train_text_to_image.main(argv) == 0
        return output_dir

    return run


def draw(folder, prompt):
    pipeline = load_pipeline(folder)
    sampler = ImageSampler(
        unet=pipeline.unet,
        vae=pipeline.vae,
        encoder=PromptEncoder(pipeline.tokenizer, pipeline.text_encoder),
        scheduler_config=pipeline.scheduler.config,
        settings=Settings(num_steps=2),
        resolution=64,
    )
    return sampler.sample([prompt], [1])[0]


def test_a_run_with_another_encoder_trains_the_projection_and_can_be_trained_on(
    train, bert, tiny_pipeline
):
    flag = f"--text_encoder_name_or_path={bert}"
    out = train("out", flag, "--use_ema", "--checkpointing_steps=1", "--validation_prompts=edema")
    trained = weights_of(out)["encoder_hid_proj.weight"]
    untrained = fit_unet(load_pipeline(tiny_pipeline).unet, 48, seed=0).encoder_hid_proj.weight
    assert 0 < (trained - untrained).abs().max() < 0.01  # two steps at 1e-4
    assert not torch.equal(draw(out, "macular edema"), draw(out, "normal retina"))
    further = train("further", base=out)
    assert not torch.equal(weights_of(further)["encoder_hid_proj.weight"], trained)
    assert type(load_pipeline(further).text_encoder).__name__ == "BertModel"


def test_a_resumed_run_with_another_encoder_ends_like_an_uninterrupted_one(train, bert, tmp_path):
    flags = (f"--text_encoder_name_or_path={bert}", "--use_ema", "--checkpointing_steps=1")
    whole = train("whole", *flags, "--max_train_steps=3")
    shutil.copytree(whole, tmp_path / "resumed")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "resumed" / f"checkpoint-{step}")
    more = ("--max_train_steps=3", "--resume_from_checkpoint=latest")
    resumed = train("resumed", *flags, *more)
    one, other = weights_of(whole), weights_of(resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_data_set_is_drawn_from_such_a_pipeline(parts, bert, tmp_path):
    new = swap(parts, bert)
    save_pipeline(new, new.unet, tmp_path / "pipeline")
    flags = [f"--model={tmp_path / 'pipeline'}", f"--output_dir={tmp_path / 'set'}"]
    flags += ["--prompt=macular edema", "--prompt=normal retina", "--num_inference_steps=2"]
    generate_synthetic_dataset.main([*flags, "--offline", "--device=cpu"])
    pictures = {record.image().tobytes() for record in load_dataset(tmp_path / "set")}
    assert len(pictures) == 2


def test_chunks_and_another_encoder_go_together(train, bert, toy_dataset, tmp_path):
    table = tmp_path / "reports.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        writer.writerow([toy_dataset / "images" / "000.png", "edema " * 80])
    flags = (f"--text_encoder_name_or_path={bert}", "--long_captions=chunk")
    out = train("out", *flags, f"--train_data_dir={table}")
    assert num_caption_chunks(load_pipeline(out).text_encoder) == 2
    pictures = [draw(out, "edema " * 80 + end) for end in ("cyst", "drusen")]
    assert not torch.equal(*pictures)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--text_encoder_name_or_path", "./no/such/folder"], "--text_encoder_name_or_path"),
        (["--text_encoder_name_or_path", "{empty}"], "no config.json"),
        (
            ["--text_encoder_name_or_path", "a/b", "--non_ema_revision", "main"],
            "--non_ema_revision",
        ),
        (["--long_captions", "cut"], "--long_captions"),
    ],
)
def test_a_bad_flag_is_named(tmp_path, toy_dataset, capsys, flags, named):
    given = ["--pretrained_model_name_or_path=a/b", f"--train_data_dir={toy_dataset}"]
    with pytest.raises(SystemExit) as stop:
        train_text_to_image.parse_args([*given, *(flag.format(empty=tmp_path) for flag in flags)])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err.rsplit("error:", 1)[1]
