"""The script that trained the demo pipeline, at a scale of seconds."""

import json

import numpy as np
import pytest
import torch

from demo import pretrain_base, tiny_pipeline


def test_standardising_changes_the_latents_but_not_the_reconstruction():
    torch.manual_seed(0)
    vae = tiny_pipeline.new_vae()
    scans = np.random.default_rng(0).integers(0, 255, (8, 64, 64), dtype=np.uint8)
    gray = torch.from_numpy(scans).float()[:, None] / 127.5 - 1
    pixels = gray.expand(-1, 3, -1, -1)
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        picture = vae.decode(before.mean).sample
        pretrain_base.standardise_latents(vae, scans)
        after = vae.encode(pixels).latent_dist
        assert torch.allclose(vae.decode(after.mean).sample, picture, atol=1e-4)
    assert not torch.allclose(before.mean, after.mean, atol=0.1)
    assert after.mean.mean((0, 2, 3)).abs().max() < 0.05
    assert (after.mean.std((0, 2, 3)) - 1).abs().max() < 0.05
    noise, signal = before.std / after.std, before.mean.std((0, 2, 3)) / after.mean.std((0, 2, 3))
    assert torch.allclose(noise, signal[None, :, None, None].expand_as(noise), rtol=1e-3)


def test_psnr_of_a_constant_error_is_known():
    class OffByTenth:
        """An autoencoder that adds 0.2 to pixels of range 2: an error of a tenth of the range."""

        def encode(self, pixels):
            self.latent_dist = self
            self.pixels = pixels
            return self

        def mode(self):
            return self.pixels

        def decode(self, latents):
            self.sample = latents + 0.2
            return self

    scans = np.full((3, 8, 8), 100, np.uint8)
    assert pretrain_base.psnr(OffByTenth(), scans) == pytest.approx(20.0, abs=1e-4)


def test_tokenizer_reads_any_text_and_knows_the_corpus(tmp_path):
    corpus = ["Severe macular edema with three large cysts."] * 50
    tokenizer = tiny_pipeline.new_tokenizer(tmp_path, corpus)
    ids = tokenizer("macular edema").input_ids
    assert len(ids) == 4  # start, two words, end
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.unk_token_id not in tokenizer("黄斑水肿 ü µm").input_ids[1:-1]


def test_all_stages_leave_a_pipeline_that_plain_diffusers_samples(tmp_path):
    from diffusers import StableDiffusionPipeline

    flags = ["--work_dir", str(tmp_path / "work"), "--output_dir", str(tmp_path / "base")]
    sizes = ["--num_scans", "24", "--vae_steps", "1", "--unet_steps", "2", "--batch_size", "2"]
    assert pretrain_base.main([*flags, *sizes]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    image = pipeline("drusen", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (128, 128, 3)
    assert image.std() > 0
    size = sum(path.stat().st_size for path in (tmp_path / "base").rglob("*"))
    assert size < 30e6
    assert "23" in (tmp_path / "base" / "model_card.md").read_text()
    figures = json.loads((tmp_path / "work" / "unet.json").read_text())
    assert figures["steps"] == 2

    pretrain_base.main([*flags, *sizes[:-3], "3", "--batch_size", "2", "--stages", "unet"])
    figures = json.loads((tmp_path / "work" / "unet.json").read_text())
    assert figures["steps"] == 3  # went on from step 2


def test_an_empty_caption_is_as_frequent_as_promised():
    entry = {"text": "report", "label": "drusen;normal", "severity": "mild"}
    chances = np.linspace(0, 1, 1001)
    captions = [pretrain_base._caption(entry, chance, 0.2) for chance in chances]
    assert captions.count("") == pytest.approx(100, abs=2)
    assert captions.count("mild drusen, normal") == pytest.approx(250, abs=2)
    assert pretrain_base._caption(entry, 0.9, 0.8) == "retinal OCT B-scan, drusen, normal"


def test_output_dir_is_required_by_the_last_stage(capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain_base.main(["--work_dir", "x"])
    assert stop.value.code == 2
    assert "--output_dir" in capsys.readouterr().err
