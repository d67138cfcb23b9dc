"""Samplers against closed forms and the plain pipeline; images against their company."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from utils.cli import UserError
from utils.image_sampler import ImageSampler, auto_batch_size, batch_for_memory
from utils.prompt_encoder import PromptEncoder
from utils.sampling import (
    SAMPLERS,
    Settings,
    denoise,
    draw_noise,
    guide,
    image_seed,
    make_scheduler,
)

CONFIG = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}
ZERO_SNR = CONFIG | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
WITHOUT_PNDM = [name for name in SAMPLERS if name != "pndm"]
FINDINGS = ["macular edema with cysts", "normal retina", "drusen", "normal retina", "scar", "hole"]
PROMPTS = FINDINGS + [f"{finding}, left eye" for finding in FINDINGS[:5]]


class PerfectDenoiser:
    """The network that training on one single latent would give, in closed form."""

    dtype = torch.float32

    def __init__(self, latent: torch.Tensor, scheduler) -> None:
        self._latent = latent
        self._scheduler = scheduler

    def __call__(self, inputs, timestep, encoder_hidden_states):
        alpha_squared = self._scheduler.alphas_cumprod[int(timestep)].double()
        alpha, sigma = alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
        noise = (inputs.double() - alpha * self._latent) / sigma
        velocity = alpha * noise - sigma * self._latent
        is_v = self._scheduler.config.prediction_type == "v_prediction"
        sample = velocity if is_v else noise
        return type("Output", (), {"sample": sample.float()})()


def _land(config: dict, sampler: str, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    latent = torch.linspace(-2.5, 3.0, 4 * 6 * 6).reshape(1, 4, 6, 6)
    scheduler = make_scheduler(config, sampler, num_steps)
    noise, generators = draw_noise([7], (4, 6, 6))
    landed = denoise(
        PerfectDenoiser(latent, scheduler),
        scheduler,
        noise=noise,
        text=torch.zeros(1, 3, 5),
        no_text=None,
        generators=generators,
        settings=Settings(sampler=sampler, num_steps=num_steps, guidance_scale=1),
    )
    return landed, latent


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_sampler_lands_on_the_only_image_it_was_trained_on(sampler, prediction):
    landed, latent = _land(CONFIG | {"prediction_type": prediction}, sampler, 25)
    # DDIM, PNDM and Euler end at the noise of training step 0 or 1 (sigma 0.03 to 0.04).
    assert (landed - latent).abs().max() < 0.12
    assert (landed - latent).abs().mean() < 0.04


@pytest.mark.parametrize("sampler", WITHOUT_PNDM)
@pytest.mark.parametrize("num_steps", [1, 2, 25])
def test_a_zero_snr_model_is_sampled_right_in_any_number_of_steps(sampler, num_steps):
    landed, latent = _land(ZERO_SNR, sampler, num_steps)
    assert (landed - latent).abs().max() < 0.12


@pytest.mark.parametrize("sampler", WITHOUT_PNDM)
def test_a_zero_snr_model_starts_at_the_last_training_step(sampler):
    scheduler = make_scheduler(ZERO_SNR | {"timestep_spacing": "leading"}, sampler, 10)
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 999


@pytest.mark.parametrize(
    ("config", "sampler", "num_steps", "word"),
    [
        (ZERO_SNR, "pndm", 25, "pndm cannot start from zero terminal SNR"),
        (ZERO_SNR | {"prediction_type": "epsilon"}, "ddim", 25, "train it with v_prediction"),
        (CONFIG | {"prediction_type": "sample"}, "euler", 25, "'sample'"),
        (CONFIG, "ddim", 1001, "--num_inference_steps 1001"),
        (CONFIG, "pndm", 1, "pndm takes 2 to 1000"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(config, sampler, num_steps, word):
    with pytest.raises(UserError, match=word):
        make_scheduler(config, sampler, num_steps)


def test_guidance_of_scale_one_is_the_prediction_with_text():
    with_text, without_text = torch.randn(2, 3, 4, 8, 8)
    guided = guide(with_text, without_text, scale=1.0, rescale=0.0)
    torch.testing.assert_close(guided, with_text)


def test_full_rescaling_gives_each_image_the_spread_of_its_prediction_with_text():
    with_text, without_text = torch.randn(2, 3, 4, 8, 8) * torch.tensor([1.0, 2, 3]).view(
        3, 1, 1, 1
    )
    guided = guide(with_text, without_text, scale=9.0, rescale=1.0)
    torch.testing.assert_close(guided.std((1, 2, 3)), with_text.std((1, 2, 3)))


def test_seeds_differ_between_images_attempts_and_runs():
    seeds = {image_seed(s, i, a) for s in range(5) for i in range(200) for a in range(3)}
    assert len(seeds) == 5 * 200 * 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_are_pinned_because_published_sets_are_drawn_again_by_them():
    assert [image_seed(0, 0), image_seed(0, 1), image_seed(42, 7, 2)] == [
        2893166218,
        2893166219,
        3455414174,
    ]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_sampler(pipeline, *, dtype=torch.float32, **settings) -> ImageSampler:
    return ImageSampler(
        unet=copy.deepcopy(pipeline.unet).to(dtype),
        vae=copy.deepcopy(pipeline.vae),
        encoder=PromptEncoder(pipeline.tokenizer, pipeline.text_encoder),
        scheduler_config=pipeline.scheduler.config,
        settings=Settings(**settings),
        resolution=64,
    )


@pytest.mark.parametrize(
    "settings",
    [
        *({"sampler": sampler} for sampler in SAMPLERS),
        {"sampler": "ddim", "eta": 0.7},
        {"guidance_scale": 9.0, "guidance_rescale": 0.7},
        {"guidance_scale": 1.0},
        {"negative_prompt": "blurred, dark"},
    ],
    ids=str,
)
def test_images_agree_with_the_plain_pipeline_within_one_grey_level(pipeline, settings):
    settings = {"num_steps": 6} | settings
    seeds = [image_seed(3, index) for index in range(2)]
    ours = make_sampler(pipeline, **settings).sample(PROMPTS[:2], seeds)
    full = Settings(**settings)
    plain = copy.copy(pipeline)
    plain.scheduler = make_scheduler(pipeline.scheduler.config, full.sampler, full.num_steps)
    theirs = plain(
        PROMPTS[:2],
        negative_prompt=[full.negative_prompt] * 2,
        num_inference_steps=full.num_steps,
        guidance_scale=full.guidance_scale,
        guidance_rescale=full.guidance_rescale,
        eta=full.eta,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    ours_in_grey_levels = (ours.permute(0, 2, 3, 1).numpy() / 2 + 0.5).clip(0, 1) * 255
    assert np.abs(ours_in_grey_levels - theirs * 255).max() < 1
    assert theirs.std() > 0.01


@pytest.mark.parametrize(
    "settings",
    [{}, {"sampler": "ddim", "eta": 1.0}, {"dtype": torch.bfloat16}],
    ids=["float32", "ddim", "bf16"],
)
def test_an_image_is_the_same_to_the_last_bit_in_any_company(pipeline, settings):
    sampler = make_sampler(pipeline, num_steps=3, **settings)
    seeds = [image_seed(0, index) for index in range(len(PROMPTS))]
    together = sampler.sample(PROMPTS, seeds)
    assert len(PROMPTS) % sampler.group_size
    for index in range(len(PROMPTS)):
        alone = sampler.sample([PROMPTS[index]], [seeds[index]])
        assert torch.equal(alone[0], together[index])
    reverse = sampler.sample(PROMPTS[::-1], seeds[::-1])
    assert torch.equal(reverse.flip(0), together)


def test_sixteen_bits_draw_the_pictures_of_float32(pipeline):
    seeds = [image_seed(0, index) for index in range(4)]
    exact, rounded = (
        make_sampler(pipeline, num_steps=10, dtype=dtype).sample(PROMPTS[:4], seeds)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < (rounded - exact).abs().mean() * 127.5 < 1


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("dpmsolver++", [8] * 2 + [16] * 4 + [8] * 4),
        ("pndm", [8] * 2 + [16] * 5 + [8] * 4),  # repeats one step
    ],
)
def test_guidance_costs_only_within_its_interval(pipeline, sampler, expected):
    drawing = make_sampler(
        pipeline, sampler=sampler, num_steps=10, guidance_interval=(0.2, 0.6), guidance_scale=9.0
    )
    rows = []
    drawing._unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    drawing.sample(PROMPTS[:8], range(8))
    assert rows == expected


def test_an_empty_interval_is_no_guidance_and_the_whole_one_is_all_of_it(pipeline):
    def draw(**settings):
        return make_sampler(pipeline, num_steps=4, **settings).sample(PROMPTS[:1], [3])

    never = draw(guidance_scale=9.0, guidance_interval=(0.0, 0.0))
    always = draw(guidance_scale=9.0, guidance_interval=(0.0, 1.0))
    assert torch.equal(never, draw(guidance_scale=1.0))
    assert torch.equal(always, draw(guidance_scale=9.0))
    assert not torch.equal(never, always)


def pairs(num_images: int) -> list[tuple[str, int]]:
    return [(PROMPTS[index % len(PROMPTS)], image_seed(0, index)) for index in range(num_images)]


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("sizes", [(8, 3), (1, 10), (11,)], ids=str)
def test_a_stream_gives_group_after_group_as_they_were_asked_for(pipeline, sizes, num_workers):
    sampler = make_sampler(pipeline, num_steps=2)
    expected = sampler.sample(*zip(*pairs(11)))
    rest = iter(pairs(11))
    groups = [[next(rest) for _ in range(size)] for size in sizes]
    drawn = list(sampler.stream(groups, num_workers=num_workers))
    assert [len(images) for images in drawn] == list(sizes)
    assert torch.equal(torch.cat(drawn), expected)


def test_a_stream_takes_few_groups_ahead_and_gives_the_threads_back(pipeline):
    sampler = make_sampler(pipeline, num_steps=1)
    taken = []

    def groups():
        for index in range(1000):
            taken.append(index)
            yield pairs(1)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    stream = sampler.stream(groups(), num_workers=2)
    assert not taken
    for num_drawn in range(1, 4):
        next(stream)
        assert len(taken) == num_drawn + 2
        assert torch.get_num_threads() == 1
    stream.close()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_a_fault_while_drawing_ends_the_stream(pipeline):
    sampler = make_sampler(pipeline, num_steps=1)
    stream = sampler.stream([pairs(1), [("scar", 2**64)], pairs(1)], num_workers=1)
    assert len(next(stream)) == 1
    with pytest.raises(ValueError, match="Overflow"):
        next(stream)


def without_memory(sampler: ImageSampler, *, most_rows: int) -> list[int]:
    """Let a sampler's U-Net run out of memory as on a GPU; the rows of each call are noted."""
    calls = []

    def refuse(unet, inputs):
        calls.append(len(inputs[0]))
        if calls[-1] > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    sampler._unet.register_forward_pre_hook(refuse)
    sampler.group_size = None  # as on a GPU
    return calls


def test_a_batch_too_large_for_the_memory_is_drawn_in_halves_and_nothing_is_lost(pipeline, caplog):
    sampler = make_sampler(pipeline, num_steps=2)
    expected = sampler.sample(*zip(*pairs(11)))
    calls = without_memory(sampler, most_rows=6)  # three images with guidance
    drawn = list(sampler.stream([pairs(11)[:10], pairs(11)[10:]], num_workers=1))
    assert [len(images) for images in drawn] == [10, 1]
    assert (torch.cat(drawn) - expected).abs().max() * 127.5 < 1
    # ten and five are too many; then two at a time, in two steps each, and nothing is tried again
    assert calls == [20, 10, *[4] * 10, 2, 2]
    assert "10 images at once: drawing 5" in caplog.text
    assert "5 images at once: drawing 2" in caplog.text


def test_one_image_too_large_for_the_memory_is_an_error_that_says_what_to_do(pipeline):
    sampler = make_sampler(pipeline, num_steps=2)
    without_memory(sampler, most_rows=1)
    with pytest.raises(UserError, match=r"one image.*--resolution"):
        sampler.sample(PROMPTS[:2], [1, 2])


def test_the_batch_of_a_gpu_is_what_fits_and_that_of_a_cpu_fills_its_cores(pipeline):
    sampler = make_sampler(pipeline)
    assert auto_batch_size(sampler, num_workers=3) == 3 * sampler.group_size
    # two rows of 40 numbers for each of 8 x 8 latents and 16 channels, in four bytes
    assert sampler.bytes_per_image == 2 * 40 * 8 * 8 * 16 * 4
    assert make_sampler(pipeline, guidance_scale=1.0).bytes_per_image * 2 == sampler.bytes_per_image
    fitting = [batch_for_memory(free, bytes_per_image=100) for free in (0, 143, 300, 600, 10**9)]
    assert fitting == [1, 1, 2, 4, 64]


def test_groups_of_a_cpu_are_smaller_for_larger_pictures(pipeline):
    sampler = make_sampler(pipeline)
    sizes = []
    for resolution in (64, 128, 256, 512):
        options = {"resolution": resolution, "settings": Settings()}
        sampler = ImageSampler(
            unet=pipeline.unet,
            vae=pipeline.vae,
            encoder=PromptEncoder(pipeline.tokenizer, pipeline.text_encoder),
            scheduler_config=pipeline.scheduler.config,
            **options,
        )
        sizes.append(sampler.group_size)
    assert sizes == [8, 8, 2, 1]


def test_images_do_not_depend_on_the_number_of_threads(pipeline):
    sampler = make_sampler(pipeline, num_steps=2)
    before = torch.get_num_threads()
    images = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        images.append(sampler.sample(PROMPTS[:1], [1]))
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    assert torch.equal(*images)


def test_each_prompt_is_encoded_once(pipeline):
    texts = []
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    sampler = make_sampler(pipeline, num_steps=1)
    for _ in range(2):
        sampler.sample(PROMPTS, range(len(PROMPTS)))
    hook.remove()
    assert len(texts) == len(set(PROMPTS)) + 1  # and the negative prompt


def test_threads_that_ask_for_one_prompt_at_once_have_it_encoded_once(pipeline):
    texts = []
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(encoder, ["scar", "hole"] * 20))
    hook.remove()
    assert len(texts) == 2
    assert all(torch.equal(found[index], found[index % 2]) for index in range(40))


def test_embeddings_are_kept_in_the_type_asked_for_up_to_a_number_of_bytes(pipeline):
    texts = []
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    size = 77 * 32 * 2  # one embedding in 16 bits
    options = {"dtype": torch.bfloat16, "max_bytes": 3 * size + 1}
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, **options)
    assert encoder.embed(["a", "b", "c", "a"]).dtype == torch.bfloat16
    encoder("a")  # used last, so that the next one pushes "b" out
    encoder("d")
    assert len(texts) == 4
    encoder.embed(["a", "c", "d"])
    assert len(texts) == 4
    encoder("b")
    hook.remove()
    assert len(texts) == 5


def test_tokens_beyond_the_limit_are_counted(pipeline):
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    assert encoder.max_tokens == 77
    assert encoder.num_tokens(["scan", "x " * 200]) == [6, 202]  # the letters, start, end


@pytest.fixture
def chunked(pipeline):
    """The pipeline as if it had been trained on captions in two chunks."""
    text_encoder = copy.deepcopy(pipeline.text_encoder)
    text_encoder.config.num_caption_chunks = 2
    return StableDiffusionPipeline(**(pipeline.components | {"text_encoder": text_encoder}))


def test_a_prompt_is_read_in_as_many_chunks_as_the_model_was_trained_on(pipeline, chunked):
    # A letter is a token: these differ beyond the 77 that one chunk holds.
    prompts = ["a " * 90 + end for end in "bc"]
    for given, same in ((pipeline, True), (chunked, False)):
        one, other = make_sampler(given, num_steps=2).sample(prompts, [5, 5])
        assert torch.equal(one, other) is same
    encoder = PromptEncoder(chunked.tokenizer, chunked.text_encoder)
    assert encoder.max_tokens == 152
    assert encoder(prompts[0]).shape == (2 * 77, 32)


def test_the_negative_prompt_is_read_in_chunks_too(chunked):
    pictures = [
        make_sampler(chunked, num_steps=2, negative_prompt="a " * 90 + end).sample(["scar"], [5])
        for end in "bc"
    ]
    assert not torch.equal(*pictures)


def test_chunks_agree_with_the_plain_pipeline_given_the_embeddings(chunked):
    prompt, settings = "a " * 90 + "b", {"sampler": "ddim", "num_steps": 4}
    encoder = PromptEncoder(chunked.tokenizer, chunked.text_encoder)
    [ours] = make_sampler(chunked, **settings).sample([prompt], [7])
    chunked.scheduler = make_scheduler(chunked.scheduler.config, "ddim", 4)
    chunked.set_progress_bar_config(disable=True)
    [theirs] = chunked(
        prompt_embeds=encoder(prompt)[None],
        negative_prompt_embeds=encoder("")[None],
        num_inference_steps=4,
        guidance_scale=Settings().guidance_scale,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images
    in_grey_levels = (ours.permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255
    assert np.abs(in_grey_levels - theirs * 255).max() < 1


def test_a_resolution_the_decoder_cannot_make_is_refused(pipeline):
    with pytest.raises(UserError, match="--resolution 60"):
        ImageSampler(
            unet=pipeline.unet,
            vae=pipeline.vae,
            encoder=PromptEncoder(pipeline.tokenizer, pipeline.text_encoder),
            scheduler_config=pipeline.scheduler.config,
            settings=Settings(),
            resolution=60,
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{}, {"sampler": "ddim", "eta": 0.5}], ids=str)
def test_a_gpu_draws_the_pictures_of_the_cpu(pipeline, settings):
    seeds = [image_seed(0, index) for index in range(len(PROMPTS))]
    on_cpu = make_sampler(pipeline, num_steps=5, **settings).sample(PROMPTS, seeds)
    on_gpu = ImageSampler(
        unet=copy.deepcopy(pipeline.unet).cuda(),
        vae=copy.deepcopy(pipeline.vae).cuda(),
        encoder=PromptEncoder(pipeline.tokenizer, copy.deepcopy(pipeline.text_encoder).cuda()),
        scheduler_config=pipeline.scheduler.config,
        settings=Settings(num_steps=5, **settings),
        resolution=64,
    ).sample(PROMPTS, seeds)
    assert (on_gpu - on_cpu).abs().max() * 127.5 < 2


def test_a_batch_in_one_group_as_on_a_gpu_gives_the_same_pictures(pipeline):
    sampler = make_sampler(pipeline, num_steps=3)
    seeds = [image_seed(0, index) for index in range(len(PROMPTS))]
    in_groups = sampler.sample(PROMPTS, seeds)
    sampler.group_size = None
    assert (sampler.sample(PROMPTS, seeds) - in_groups).abs().max() * 127.5 < 1
