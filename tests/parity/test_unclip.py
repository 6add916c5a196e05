"""Against diffusers on random weights: schedulers, prior, conditioning, U-Nets, a pipeline's folder."""

import json

import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from peer_models import TOLERANCE, randomize
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from openvocab.blocks.diffusion import DDIM, DDPM, Diffusion, DiffusionConfig, denoise
from openvocab.blocks.unet import UNet, UNetConfig
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.layouts import to_ours, to_theirs
from openvocab.clip.model import CLIP
from openvocab.systems import unclip
from openvocab.systems.unclip.model import Decoder, DecoderConfig
from openvocab.systems.unclip.prior import Caption, DiffusionPrior, DiffusionPriorConfig
from openvocab.systems.unclip.published import CONDITION_KEYS, PRIOR_KEYS, unet_config, unet_keys

EMBED, WIDE, STEPS = 24, 32, 20
SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SAID = torch.tensor([[True] * 5, [True, True, False, False, False]])


def close(ours, theirs, tolerance=TOLERANCE):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(parts: int):
    """Anything that depends on x and t; bounded, as a learned range must be."""
    return lambda x, t: torch.tanh(1.3 * x.repeat(1, parts, 1, 1) + (t / 1000)[:, None, None, None])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("learned", [False, True])
def test_ddpm(schedule, predicts, learned):
    variance = "learned_range" if learned else "fixed_small_log"
    theirs = DDPMScheduler(
        beta_schedule=SCHEDULES[schedule],
        prediction_type=KINDS[predicts],
        variance_type=variance,
        timestep_spacing="linspace",
    )
    process = Diffusion(DiffusionConfig(schedule=schedule, predicts=predicts, learned_range=learned))
    said, x = network(1 + learned), torch.randn(2, 3, 4, 4, generator=seeded(1))
    ours = denoise(said, x, DDPM(process), STEPS, seeded())
    close(ours, denoise(said, x, theirs, STEPS, seeded()), 2e-5)  # theirs keeps its tables in float32
    if schedule == "linear" or predicts == "v":
        return
    old = UnCLIPScheduler(prediction_type=KINDS[predicts], variance_type=variance)
    old.betas, old.alphas_cumprod = old.betas.double(), (1 - old.betas.double()).cumprod(0)
    old.set_timesteps(STEPS)
    rng, times = seeded(), old.timesteps
    for t, after in zip(times, [*times[1:], None]):
        x = old.step(said(x.float(), t.expand(2)), t, x, prev_timestep=after, generator=rng).prev_sample
    close(ours, x.float(), 2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim(schedule, predicts, eta):
    about = {"beta_schedule": SCHEDULES[schedule], "prediction_type": KINDS[predicts], "timestep_spacing": "trailing"}
    process = Diffusion(DiffusionConfig(schedule=schedule, predicts=predicts))
    said, start, rng = network(1), torch.randn(2, 3, 4, 4, generator=seeded(1)), seeded()
    theirs, x = DDIMScheduler(**about), start
    theirs.set_timesteps(STEPS)
    for t in theirs.timesteps:  # their loop, for what `step` takes here
        step = theirs.step(said(x, t.expand(2)), t, x, eta=eta, use_clipped_model_output=True, generator=rng)
        x = step.prev_sample
    close(denoise(said, start, DDIM(process, eta), STEPS, seeded()), x, 2e-5)
    if predicts == "eps":
        inverse = DDIMInverseScheduler(**about, clip_sample=False)
        close(denoise(said, start, DDIM(process, backwards=True), STEPS), denoise(said, start, _deaf(inverse), STEPS))


class _deaf:
    """A scheduler whose step takes no generator."""

    def __init__(self, scheduler):
        self.scheduler, self.set_timesteps = scheduler, scheduler.set_timesteps

    @property
    def timesteps(self):
        return self.scheduler.timesteps

    def step(self, said, t, x, generator=None):
        return self.scheduler.step(said, t, x)


def test_noise_is_added_as_by_diffusers():
    x, noise, t = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([0, 500, 999])
    process = Diffusion(DiffusionConfig(predicts="v"))
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    close(process.noised(x, t, noise), theirs.add_noise(x, noise, t))
    close(process.target(x, t, noise), theirs.get_velocity(x, noise, t))


def their_prior() -> PriorTransformer:
    torch.manual_seed(0)
    theirs = PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=EMBED, num_embeddings=5
    )
    randomize(theirs)
    torch.nn.init.uniform_(theirs.clip_std, 0.5, 1.5)  # zeros at the start
    return theirs.eval()


def test_the_prior():
    theirs = their_prior()
    ours = DiffusionPrior(DiffusionPriorConfig(dim=32, layers=2, heads=2), EMBED, EMBED, 5).eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), PRIOR_KEYS))
    same_state(to_theirs(ours.state_dict(), PRIOR_KEYS), theirs.state_dict())
    noised, embed, tokens = torch.randn(2, EMBED), torch.randn(2, EMBED), torch.randn(2, 5, EMBED)
    t = torch.tensor([3, 700])
    a = ours(noised, t, Caption(embed, tokens, SAID))
    b = theirs(noised, t, embed, tokens, SAID).predicted_image_embedding
    close(a, b)
    whole = torch.ones_like(SAID)
    close(
        ours(noised, t, Caption(embed, tokens, whole)),
        theirs(noised, t, embed, tokens, whole).predicted_image_embedding,
    )
    close(ours.scaler.back(a), theirs.post_process_latents(b))
    short = Caption(embed[1:], tokens[1:, :2], SAID[1:, :2])
    close(ours(noised[1:], t[1:], short), a[1:])  # padding is nothing
    a.square().mean().backward()
    b.square().mean().backward()
    close(ours.query.grad, theirs.prd_embedding.grad[0, 0])


def same_state(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def their_unet(context: bool) -> UNet2DConditionModel | UNet2DModel:
    torch.manual_seed(0)
    shared = {
        "sample_size": 16, "block_out_channels": (WIDE, 2 * WIDE, 3 * WIDE), "layers_per_block": 2,
        "norm_num_groups": 8, "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 16,
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
    }  # fmt: skip
    if context:
        theirs = UNet2DConditionModel(
            **shared,
            in_channels=3,
            out_channels=6,
            cross_attention_dim=EMBED,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            class_embed_type="identity",
        )
    else:
        plain = {"down_block_types": ("ResnetDownsampleBlock2D",) * 3, "up_block_types": ("ResnetUpsampleBlock2D",) * 3}
        theirs = UNet2DModel(**shared | plain, in_channels=6, out_channels=3, add_attention=False)
    randomize(theirs)
    return theirs.eval()


def ours_of(theirs) -> UNet:
    config = unet_config(theirs.config)
    ours = UNet(config).eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), unet_keys(config)))
    same_state(to_theirs(ours.state_dict(), unet_keys(config)), theirs.state_dict())
    return ours


def test_the_unet_of_a_decoder():
    theirs = their_unet(context=True)
    ours = ours_of(theirs)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    added, context = torch.randn(2, 4 * WIDE), torch.randn(2, 5, EMBED)
    a = ours(x, t, added=added, context=context, said=SAID)
    b = theirs(x, t, encoder_hidden_states=context, class_labels=added, attention_mask=SAID).sample
    close(a, b)
    a.square().mean().backward()
    b.square().mean().backward()
    close(ours.stem.weight.grad, theirs.conv_in.weight.grad)


def test_the_unet_of_an_upsampler():
    theirs = their_unet(context=False)
    x, t = torch.randn(2, 6, 16, 16), torch.tensor([3, 700])
    close(ours_of(theirs)(x, t), theirs(x, t).sample)


def their_condition() -> UnCLIPTextProjModel:
    torch.manual_seed(0)
    theirs = UnCLIPTextProjModel(clip_embeddings_dim=EMBED, time_embed_dim=4 * WIDE, cross_attention_dim=EMBED)
    randomize(theirs)
    return theirs


def test_both_uses_of_the_embedding():
    theirs = their_condition()
    unet = UNetConfig(channels=WIDE, multipliers=(1,), depth=1, attention=(), context_dim=EMBED, head_dim=16)
    ours = Decoder(DecoderConfig(size_px=16, unet=unet), EMBED, EMBED)
    state = to_ours(theirs.state_dict(), CONDITION_KEYS)
    assert ours.load_state_dict(state, strict=False).unexpected_keys == []
    same_state(to_theirs(state, CONDITION_KEYS), theirs.state_dict())
    image, embed, tokens = torch.randn(2, EMBED), torch.randn(2, EMBED), torch.randn(2, 5, EMBED)
    given = torch.tensor([True, True])
    for guided in (False, True):  # with guidance theirs puts rows without an embedding first
        rows = 2 if guided else 1
        context, added = theirs(
            image_embeddings=image,
            prompt_embeds=embed.repeat(rows, 1),
            text_encoder_hidden_states=tokens.repeat(rows, 1, 1),
            do_classifier_free_guidance=guided,
        )
        a, b, said = ours.condition(image, given & (not guided), Caption(embed, tokens, SAID))
        close(a, added[:2])
        close(b, context[:2])
        assert said.tolist() == [[True] * 9, [True] * 6 + [False] * 3]


def pipeline_folder(path):
    """What `UnCLIPPipeline.save_pretrained` writes, with an image encoder."""
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=EMBED, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=5, projection_dim=EMBED, eos_token_id=49407, bos_token_id=49406,
    )  # fmt: skip
    image = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=EMBED,
    )  # fmt: skip
    parts = {
        "text_encoder": CLIPTextModelWithProjection(text).eval(),
        "image_encoder": CLIPVisionModelWithProjection(image).eval(),
        "prior": their_prior(),
        "text_proj": their_condition(),
        "decoder": their_unet(context=True),
        "super_res_first": their_unet(context=False),
        "super_res_last": their_unet(context=False),
    }
    for name, part in parts.items():
        part.save_pretrained(path / name)
    UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0).save_pretrained(path / "prior_scheduler")
    UnCLIPScheduler(variance_type="learned_range").save_pretrained(path / "decoder_scheduler")
    UnCLIPScheduler().save_pretrained(path / "super_res_scheduler")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "UnCLIPPipeline"}))
    return parts


def test_a_pipelines_folder(tmp_path):
    parts = pipeline_folder(tmp_path)
    ours = unclip.SYSTEM.load(tmp_path)
    assert not ours.training
    assert ours.config.decoder.process == DiffusionConfig(learned_range=True)
    assert ours.config.prior.process == DiffusionConfig(predicts="x0", clip=5.0)
    ids = torch.tensor([[49406, 320, 49407, 49407, 49407]])
    with torch.no_grad():
        said = parts["text_encoder"](ids)
        mine = ours.read(ids)
        close(mine.embed, said.text_embeds)
        close(mine.tokens, said.last_hidden_state)
        assert mine.said.tolist() == [[True, True, True, False, False]]
        mask, noise, t = mine.said, torch.randn(1, EMBED), torch.tensor([500])
        theirs = parts["prior"](noise, t, said.text_embeds, said.last_hidden_state, mask).predicted_image_embedding
        close(ours.prior(noise, t, mine), theirs)
        x, large = torch.randn(1, 3, 16, 16), torch.randn(1, 6, 16, 16)
        context, added = parts["text_proj"](
            image_embeddings=noise,
            prompt_embeds=said.text_embeds,
            text_encoder_hidden_states=said.last_hidden_state,
            do_classifier_free_guidance=False,
        )
        seen = torch.nn.functional.pad(mask, (4, 0), value=True)
        theirs = parts["decoder"](x, t, encoder_hidden_states=context, class_labels=added, attention_mask=seen).sample
        close(ours.decoder(x, t, noise, torch.tensor([True]), mine), theirs)
        for name, part in (("unet", "super_res_first"), ("last", "super_res_last")):
            close(getattr(ours.upsamplers[0], name)(large, t), parts[part](large, t).sample)
    ours.save(tmp_path / "ours")
    again = unclip.SYSTEM.load(tmp_path / "ours")
    same_state(again.state_dict(), ours.state_dict())


def test_a_folder_without_both_towers_asks_for_the_clip(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="text_encoder"):
        unclip.SYSTEM.load(tmp_path)
    with pytest.raises(ValueError, match="holds no prior"):
        unclip.load(tmp_path, CLIP(TINY_CLIP))
    with pytest.raises(ValueError, match="neither"):
        unclip.SYSTEM.load(tmp_path / "none")
