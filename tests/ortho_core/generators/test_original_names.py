"""Original names against the real UNets, counted up as the original builds them."""

import pytest

from ortho_core.errors import UserError
from ortho_core.generators.original_names import UNetNames, openclip_name, vae_name
from tests.ortho_core.generators.real_unets import CONFIGS, original_layers, unet


@pytest.mark.parametrize("which", CONFIGS)
def test_every_layer_of_the_real_unets_has_its_original_name(which):
    network = unet(which)
    names = UNetNames(network.config)
    layers = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    assert {names.original(layer) for layer in layers} == original_layers(which)


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight"),
        ("encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"),
        ("encoder.mid_block.resnets.1.norm1.weight", "encoder.mid.block_2.norm1.weight"),
        ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("decoder.up_blocks.0.resnets.2.conv2.weight", "decoder.up.3.block.2.conv2.weight"),
        ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
        ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_weights_of_the_autoencoder(ours, original):
    assert vae_name(ours, 4) == original


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("encoder.layers.31.mlp.fc1.bias", "transformer.resblocks.31.mlp.c_fc.bias"),
        ("encoder.layers.0.self_attn.out_proj.weight", "transformer.resblocks.0.attn.out_proj.weight"),
        ("encoder.layers.0.layer_norm2.weight", "transformer.resblocks.0.ln_2.weight"),
        ("embeddings.token_embedding.weight", "token_embedding.weight"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("final_layer_norm.bias", "ln_final.bias"),
        ("text_projection.weight", "text_projection"),
    ],
)
def test_weights_of_openclips_text_encoder(ours, original):
    assert openclip_name(ours) == original


def test_what_the_original_does_not_have_is_refused():
    config = dict(unet("sd15").config)
    with pytest.raises(
        UserError, match=r"a UNet with a KDownBlock2D cannot be written in the original names; accepted: Cross"
    ):
        UNetNames(config | {"down_block_types": ["KDownBlock2D"] * 4})
    with pytest.raises(UserError, match=r"the UNet's encoder_hid_proj\.weight has no original name"):
        UNetNames(config).original("encoder_hid_proj.weight")
