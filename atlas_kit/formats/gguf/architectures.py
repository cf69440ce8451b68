"""Which tensors and keys llama.cpp wants of each model family, as a table.

Found out by asking llama.cpp itself (October 2026): a model was grown tensor by tensor until it loaded, twice
with different sizes, so that every dimension could be named. The table covers families whose layers are all
alike; of the others only the name is known. Knows nothing about files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMES = """
    clip llama llama4 deci falcon baichuan grok gpt2 gptj gptneox mpt starcoder refact bert modern-bert
    nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe clef qwen4exp phi2 phi3 phimoe
    plamo plamo2 plamo3 codeshell orion internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4
    gemma4-assistant gemma-embedding gemma-embedding2 starcoder2 mamba mamba2 maple jamba falcon-h1 xverse
    command-r cohere2 cohere2moe dbrx olmo olmo2 olmoe muse-glimmer openelm arctic deepseek deepseek2
    deepseek2-ocr deepseek32 deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2 nemotron
    nemotron_h nemotron_h_moe exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe
    granitehybrid graniteswitch granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2
    bailingmoe3 dots1 dots3note arcee afmoe laguna ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense
    hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss lfm2 lfm2moe dream smallthinker llada llada-moe seed_oss grovemoe
    apertus minimax-m2 cogvlm rnd1 pangu-embedded mistral3 mistral4 paddleocr mimo2 step35 spark2_5
    llama-embed maincoder kimi-linear kimi-k3 glm5-next talkie mellum eagle3 minimax-m3 dflash nanbeige
    qwen3tts pockettts minimax-01 hrm_text k2-horizon
"""
#: Every ``general.architecture`` that llama.cpp knew when this table was made.
ARCHITECTURES = frozenset(_NAMES.split())

#: Names that are known and still no model: what llama.cpp says instead.
NOT_LOADABLE = {
    "clip": "it is a projector, given to llama.cpp beside a model",
    "gptj": "its name is reserved and no code loads it",
}

#: More layers than this, or none, and llama.cpp aborts.
MAX_LAYERS = 512

#: Keys without which no model loads, in the order in which llama.cpp asks for them.
COMMON_KEYS = ("context_length", "embedding_length", "block_count")

#: Keys (after the architecture) that may add tensors or take some away: where one of them is, the table is
#: only a guess. A key that is neither here nor in the table means nothing to llama.cpp.
_ALTERING = (
    "activation.situ_beta activation.situ_linear_beta adapters.count adapters.lora_rank "
    "adapters.router_gain adapters.token_ids_activate adapters.token_ids_substitute "
    "attention.compress_ratios attention.compress_rope_freq_base attention.decay_lora_rank "
    "attention.gate_lora_rank attention.group_norm_epsilon attention.group_norm_groups "
    "attention.iclr_lora_rank attention.indexer.block_size attention.indexer.head_count "
    "attention.indexer.key_length attention.indexer.kpool attention.indexer.kpool_select_tail "
    "attention.indexer.local_blocks attention.indexer.top_k attention.indexer.types "
    "attention.key_length_mla attention.key_length_mla_swa attention.key_length_swa attention.kv_lora_rank "
    "attention.kv_lora_rank_swa attention.output_group_count attention.output_lora_rank "
    "attention.output_scale attention.q_lora_rank attention.recurrent_layers "
    "attention.relative_buckets_count attention.rope_pattern attention.shared_kv_layers "
    "attention.temperature_length attention.value_expert_count attention.value_expert_used_count "
    "attention.value_length_mla attention.value_length_mla_swa attention.value_length_swa "
    "attention.value_residual_mix_lora_rank attention.value_scale attn_res.block_size block_size "
    "classifier.activation classifier.output_labels classifier.pooling_type conv_group_size "
    "conv_kernel_size convnext.block_count convnext.embedding_length decision.block_count "
    "decision.head_count decision.routing_block_count decoder_block_count decoder_start_token_id "
    "deepstack_mapping dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out "
    "embedding_length_out embedding_length_per_layer_input expert_chunk_feed_forward_length "
    "expert_group_count expert_group_scale expert_group_used_count expert_latent_length expert_shared_count "
    "expert_shared_feed_forward_length experts_per_group features_length full_attention_interval "
    "hash_layer_count hidden_activation hrm.h_cycles hrm.l_cycles hrm.layers_per_stack hrm.prefix_lm "
    "hyper_connection.count hyper_connection.epsilon hyper_connection.low_rank hyper_connection.magnitude "
    "hyper_connection.sinkhorn_iterations interleave_moe_layer_step kda.gate_lower_bound kda.head_dim "
    "kda.safe_gate leading_dense_block_count moe_every_n_layers moe_latent_size n_deepstack_layers "
    "nextn_predict_layers norm_before_fc norm_before_residual num_loops ple.conv_kernel ple.eos_token_id "
    "ple.head_offsets ple.head_vocab_sizes ple.heads_per_ngram ple.image_token_id ple.layer_multipliers "
    "ple.layers ple.ngram_size posnet.block_count posnet.embedding_length rescale_every_n_layers "
    "rope.dimension_count_swa rope.scaling.alpha rope.scaling.yarn_attn_factor rope.scaling.yarn_ext_factor "
    "selector_rank selector_top_k shortconv.l_cache skip_loop_final_norm ssm.conv_kernel ssm.dt_b_c_rms "
    "ssm.group_count ssm.inner_size ssm.state_size ssm.time_step_rank swiglu_clamp_exp swiglu_clamp_shexp "
    "swin_norm target_hidden_size target_layers time_decay_extra_dim time_mix_extra_dim token_shift_count "
    "wkv.head_size"
)
ALTERING_KEYS = frozenset(_ALTERING.split())

#: Families that insist on rotating the whole head.
FULL_ROTATION = frozenset({"llama", "deci", "falcon", "llama-embed"})

# A row: names : dense, moe (with experts) or both [fused: attn_qkv may replace q, k and v] : required keys.
# Below it tensors and their dimensions, of the model and of each block ("blk.N."); "?" marks optional ones;
# a name without a suffix ends in ".weight". E width, V tokens, F feed-forward, H heads, G key-value heads,
# k and v their lengths, Q = Hk, K = Gk, W = Gv, O = Hv, e = E/H, R = rotated/2, X experts, M their
# feed-forward, C context, T token types.
_TABLE = """
llama refact minicpm mistral3 llama-embed : dense fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W attn_output.bias:E ffn_gate.bias:F ffn_down.bias:E
    ffn_up.bias:F
llama refact minicpm mistral3 llama-embed : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate_inp:E,X
    ffn_down_exps:F,E,X ffn_up_exps:E,F,X
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W attn_output.bias:E ffn_gate_exps:E,F,X
llada : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W attn_output.bias:E ffn_gate.bias:F ffn_down.bias:E
    ffn_up.bias:F
falcon : both : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E
  model? output:E,V
  block attn_norm:E attn_norm.bias:E attn_qkv:E,E+2W attn_output:E,E ffn_down:F,E ffn_up:E,F
  block? attn_norm_2:E attn_norm_2.bias:E
baichuan internlm2 xverse : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
gpt2 starcoder : both : attention.layer_norm_epsilon
  model token_embd:E,V position_embd:E,C output_norm:E output_norm.bias:E
  model? output:E,V
  block attn_norm:E attn_norm.bias:E attn_qkv:E,E+2W attn_qkv.bias:E+2W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_down:F,E ffn_down.bias:E ffn_up:E,F ffn_up.bias:F
gptneox : both : attention.layer_norm_epsilon use_parallel_residual
  model token_embd:E,V output_norm:E output_norm.bias:E output:E,V
  block attn_norm:E attn_norm.bias:E attn_qkv:E,E+2W attn_qkv.bias:E+2W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_down:F,E ffn_down.bias:E ffn_up:E,F ffn_up.bias:F
mpt : both : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E
  model? position_embd:E,C output_norm.bias:E output:E,V
  block attn_norm:E attn_qkv:E,E+2W attn_output:E,E ffn_norm:E ffn_down:F,E ffn_up:E,F
  block? attn_norm.bias:E attn_qkv.bias:E+2W attn_output.bias:E ffn_norm.bias:E ffn_down.bias:E
    ffn_up.bias:F attn_q_norm:E attn_q_norm.bias:E attn_k_norm:E attn_k_norm.bias:E ffn.act.scales:F
stablelm : both fused : attention.layer_norm_epsilon
  model token_embd:E,V output_norm.bias:E output_norm:E output:E,V
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_gate:E,F
    ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W attn_q_norm:k,H attn_k_norm:k,G ffn_norm:E
    ffn_norm.bias:E
qwen : both : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_qkv:E,3E attn_qkv.bias:3E attn_output:E,E ffn_norm:E ffn_gate:E,F/2
    ffn_down:F/2,E ffn_up:E,F/2
qwen2 dream : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V output.bias:V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
qwen2moe : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E ffn_gate_inp:E,X
    ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X ffn_gate_inp_shexp:E ffn_gate_shexp:E,F
    ffn_down_shexp:F,E ffn_up_shexp:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
qwen2vl : both fused : rope.dimension_sections attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V output.bias:V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
qwen3 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V cls.output:E,1
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
qwen3moe rnd1 : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
qwen3vl : both fused : attention.layer_norm_rms_epsilon rope.dimension_sections
  model token_embd:E,V output_norm:E
  model? output:E,V cls.output:E,1
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
qwen3vlmoe : moe fused : attention.layer_norm_rms_epsilon rope.dimension_sections
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
phi2 : both fused : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E output:E,V output.bias:V
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_output.bias:E
    ffn_down:F,E ffn_down.bias:E ffn_up:E,F ffn_up.bias:F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
phi3 : both : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_factors_long:R rope_factors_short:R
  block attn_norm:E attn_output:E,E ffn_norm:E ffn_down:F,E ffn_up:E,2F
  block? attn_qkv:E,E+2W attn_q:E,E attn_k:E,W attn_v:E,W attn_q.bias:E attn_k.bias:W attn_v.bias:W
phimoe : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E output:E,V output.bias:V
  model? rope_factors_long:e/2 rope_factors_short:e/2
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_gate_inp:E,X ffn_gate_exps:E,F,X ffn_down_exps:F,E,X ffn_up_exps:E,F,X
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
plamo : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
codeshell : both fused : attention.layer_norm_epsilon
  model output:E,V output_norm:E output_norm.bias:E
  model? token_embd:E,V
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_down:F,E ffn_down.bias:E ffn_up:E,F ffn_up.bias:F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
orion : both fused : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E output:E,V
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E
    ffn_norm.bias:E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
gemma : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_up:E,F
    ffn_down:F,E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
gemma2 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E post_attention_norm:E ffn_norm:E
    ffn_gate:E,F ffn_up:E,F ffn_down:F,E post_ffw_norm:E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
gemma3 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E post_attention_norm:E attn_k_norm:k
    attn_q_norm:k ffn_norm:E ffn_gate:E,F ffn_up:E,F ffn_down:F,E post_ffw_norm:E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
gemma-embedding : both fused : attention.layer_norm_rms_epsilon attention.sliding_window
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E post_attention_norm:E attn_k_norm:k
    attn_q_norm:k ffn_norm:E ffn_gate:E,F ffn_up:E,F ffn_down:F,E post_ffw_norm:E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
starcoder2 : both fused : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E
  model? output:E,V
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_down:F,E ffn_up:E,F ffn_down.bias:E ffn_up.bias:F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
command-r : both fused : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
cohere2 : both fused : attention.layer_norm_epsilon attention.sliding_window logit_scale
  model token_embd:E,V output_norm:E
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
dbrx : moe : attention.clamp_kqv attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_qkv:E,E+2W attn_output:E,E attn_output_norm:E ffn_gate_inp:E,X
    ffn_gate_exps:E,F,X ffn_down_exps:F,E,X ffn_up_exps:E,F,X
olmo : both fused : attention.layer_norm_epsilon
  model token_embd:E,V
  model? output:E,V
  block attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
olmo2 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_q_norm:E attn_k_norm:eG
    post_attention_norm:E ffn_gate:E,F ffn_up:E,F ffn_down:F,E post_ffw_norm:E
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
olmoe : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_q_norm:E attn_k_norm:E
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,F,X ffn_down_exps:F,E,X ffn_up_exps:E,F,X
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
deepseek : moe fused : attention.layer_norm_rms_epsilon expert_shared_count
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E ffn_gate_inp:E,X
    ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X ffn_gate_shexp:E,2M ffn_down_shexp:2M,E
    ffn_up_shexp:E,2M
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
chatglm : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:E,E ffn_norm:E ffn_up:E,2F ffn_down:F,E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
glm4 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E post_attention_norm:E ffn_norm:E
    ffn_down:F,E ffn_up:E,2F post_ffw_norm:E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
bitnet : both : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  block attn_norm:E attn_sub_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E
    ffn_sub_norm:F ffn_gate:E,F ffn_down:F,E ffn_up:E,F
jais : both : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E output:E,V
  block attn_norm:E attn_norm.bias:E attn_qkv:E,E+2W attn_qkv.bias:E+2W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_down:F,E ffn_down.bias:E ffn_gate:E,F ffn_gate.bias:F ffn_up:E,F
    ffn_up.bias:F
nemotron : both fused : attention.layer_norm_epsilon
  model token_embd:E,V output_norm:E output_norm.bias:E output:E,V
  block attn_norm:E attn_norm.bias:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E ffn_norm:E
    ffn_norm.bias:E ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W attn_output.bias:E ffn_down.bias:E ffn_up.bias:F
exaone : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
exaone4 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:E,E post_attention_norm:E attn_q_norm:k attn_k_norm:k
    ffn_gate:E,F ffn_down:F,E ffn_up:E,F post_ffw_norm:E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
granite granitemoe : dense fused : attention.layer_norm_rms_epsilon logit_scale
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W attn_output.bias:E ffn_gate.bias:F ffn_down.bias:E
    ffn_up.bias:F
granite granitemoe : moe fused : attention.layer_norm_rms_epsilon logit_scale
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate_inp:E,X
    ffn_down_exps:F,E,X ffn_up_exps:E,F,X
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W attn_output.bias:E ffn_gate_exps:E,F,X
chameleon : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q_norm:k,H attn_k_norm:k,G attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E
    ffn_norm:E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q_norm.bias:k,H attn_k_norm.bias:k,G attn_q.bias:E attn_k.bias:W attn_v.bias:W
bailingmoe : moe fused : attention.layer_norm_rms_epsilon expert_shared_count
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,K attn_output:Q,E ffn_norm:E ffn_gate_inp:E,X
    ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X ffn_gate_shexp:E,2M ffn_down_shexp:2M,E
    ffn_up_shexp:E,2M
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:K
arcee : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
ernie4_5 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W attn_output.bias:E
ernie4_5-moe : moe fused : attention.layer_norm_rms_epsilon interleave_moe_layer_step
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate_inp:E,X
    ffn_down_exps:M,E,X ffn_up_exps:E,M,X
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W attn_output.bias:E exp_probs_b.bias:X
    ffn_gate_exps:E,M,X
hunyuan-moe : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,F,X ffn_down_exps:F,E,X ffn_up_exps:E,F,X
    ffn_gate_shexp:E,F ffn_up_shexp:E,F ffn_down_shexp:F,E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
hunyuan-dense : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
smollm3 : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate:E,F ffn_down:F,E
    ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
gpt-oss : moe fused : attention.layer_norm_rms_epsilon attention.sliding_window
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E post_attention_norm:E attn_q:E,Q attn_k:E,K attn_v:E,K attn_output:Q,E attn_sinks:H
    ffn_gate_inp:E,X ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X attn_output.bias:E
    ffn_gate_inp.bias:X ffn_gate_exps.bias:M,X ffn_down_exps.bias:E,X ffn_up_exps.bias:M,X
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:K
smallthinker : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E ffn_norm:E ffn_gate_inp:E,X
    ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
llada-moe : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_q_norm:k attn_k_norm:k
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W
seed_oss : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_q:E,Q attn_k:E,K attn_v:E,K attn_output:Q,E attn_norm:E post_attention_norm:E ffn_gate:E,F
    ffn_up:E,F ffn_down:F,E
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:K
apertus : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  model? rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E ffn_norm:E ffn_down:F,E ffn_up:E,F
    attn_q_norm:k attn_k_norm:k
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W attn_output.bias:E attn_q_norm.bias:k
    attn_k_norm.bias:k
minimax-m2 : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_norm:E attn_q_norm:Q attn_k_norm:K
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,F,X ffn_down_exps:F,E,X ffn_up_exps:E,F,X
    exp_probs_b.bias:X
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
pangu-embedded : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V rope_freqs:R
  block attn_norm:E attn_q:E,Q attn_k:E,K attn_v:E,W attn_output:Q,E attn_output.bias:E ffn_norm:E
    ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:K attn_v.bias:W
maincoder : both fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E
  model? output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate:E,F ffn_down:F,E ffn_up:E,F
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
bloom : both : attention.layer_norm_epsilon
  model token_embd:E,V token_embd_norm:E token_embd_norm.bias:E output_norm:E output_norm.bias:E
  model? output:E,V
  block attn_norm:E attn_norm.bias:E attn_qkv:E,E+2W attn_qkv.bias:E+2W attn_output:E,E attn_output.bias:E
    ffn_norm:E ffn_norm.bias:E ffn_down:F,E ffn_down.bias:E ffn_up:E,F ffn_up.bias:F
bert : both fused : attention.layer_norm_epsilon
  model token_embd:E,V position_embd:E,C token_embd_norm:E token_embd_norm.bias:E
  model? token_types:E,T cls:E,E cls.bias:E cls.output:E,1 cls.output.bias:1
  block attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_output_norm:E attn_output_norm.bias:E
    ffn_up:E,F ffn_down:F,E layer_output_norm:E layer_output_norm.bias:E
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W attn_output.bias:E ffn_up.bias:F ffn_down.bias:E
nomic-bert : both fused : attention.layer_norm_epsilon
  model token_embd:E,V token_embd_norm:E token_embd_norm.bias:E
  model? token_types:E,T
  block attn_q:E,E attn_k:E,W attn_v:E,W attn_output:E,E attn_output_norm:E attn_output_norm.bias:E
    ffn_up:E,F ffn_down:F,E ffn_gate:E,F layer_output_norm:E layer_output_norm.bias:E
  block? attn_q.bias:E attn_k.bias:W attn_v.bias:W attn_output.bias:E ffn_up.bias:F ffn_down.bias:E
mellum : moe fused : attention.layer_norm_rms_epsilon
  model token_embd:E,V output_norm:E output:E,V
  block attn_norm:E attn_q:E,Q attn_k:E,W attn_v:E,W attn_output:Q,E attn_k_norm:k attn_q_norm:k
    ffn_norm:E ffn_gate_inp:E,X ffn_gate_exps:E,M,X ffn_down_exps:M,E,X ffn_up_exps:E,M,X
  block? attn_q.bias:Q attn_k.bias:W attn_v.bias:W
"""


@dataclass(frozen=True)
class Plan:
    """What one family wants. The mappings go from tensor name to dimensions, such as ``("E", "V")``."""

    keys: tuple[str, ...]
    fused: bool
    model: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    model_optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    block: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    block_optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_PARTS = {"model": "model", "model?": "model_optional", "block": "block", "block?": "block_optional"}


@functools.cache
def _plans() -> dict[tuple[str, str], Plan]:
    plans: dict[tuple[str, str], Plan] = {}
    names: list[str] = []
    kind, options, part = "", {}, ""  # type: str, dict[str, Any], str
    for line in [*_TABLE.strip().splitlines(), "end : :"]:
        if line[0] != " ":
            for name in names:
                for each in ("dense", "moe") if kind == "both" else (kind,):
                    plans[name, each] = Plan(**options)
            left, middle, right = (text.split() for text in line.split(":"))
            names, kind = left, middle[0] if middle else ""
            options = {"keys": tuple(right), "fused": "fused" in middle}
            continue
        for word in line.split():
            if word in _PARTS:
                part = _PARTS[word]
                options[part] = {}
            else:
                name, _, dims = word.rpartition(":")
                options[part][name if "." in name else f"{name}.weight"] = tuple(dims.split(","))
    return plans


def plan_of(architecture: str, *, experts: bool) -> Plan | None:
    """Return what ``architecture`` wants with or without experts, ``None`` if it is not in the table."""
    return _plans().get((architecture, "moe" if experts else "dense"))


def needs_experts(architecture: str) -> bool:
    """Whether the table knows this family, and only with experts."""
    return plan_of(architecture, experts=True) is not None and plan_of(architecture, experts=False) is None


#: Weights that may come with a scale of their own (``.scale``, ``.input_scale``).
SCALED = frozenset(
    f"{word}{kind}"
    for word in ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for kind in ("", "_exps", "_shexp")
)


def sizes(values: Mapping[str, Any], layer: int, tokens: int | None) -> dict[str, int]:
    """Return the numbers behind the letters of the table, as far as they are known.

    ``values`` are the keys after the architecture; a list holds one number for each layer. Follows
    ``llama_model_base::load_hparams``: heads are as long as the width divided by their number, unless said.
    """

    def number(key: str, default: int | None = None) -> int | None:
        value = values.get(key, default)
        if isinstance(value, Sequence):
            value = value[layer] if layer < len(value) else None
        return value if isinstance(value, int) else None

    out: dict[str, int | None] = {
        "E": number("embedding_length"),
        "V": tokens,
        "F": number("feed_forward_length", 0),
        "C": number("context_length"),
        "X": number("expert_count"),
        "M": number("expert_feed_forward_length"),
        "T": number("token_type_count"),
        "H": number("attention.head_count", 0),
    }
    heads, width = out["H"], out["E"]
    out["G"] = number("attention.head_count_kv", heads)
    out["e"] = 0 if heads == 0 else width // heads if heads and width is not None else None
    out["k"] = number("attention.key_length", out["e"])
    out["v"] = number("attention.value_length", out["e"])
    rotated = number("rope.dimension_count", out["k"])
    out["R"] = None if rotated is None else rotated // 2
    known = {letter: value for letter, value in out.items() if value is not None}
    for product, (one, other) in _PRODUCTS.items():
        if one in known and other in known:
            known[product] = known[one] * known[other]
    return known


_PRODUCTS = {"Q": ("H", "k"), "K": ("G", "k"), "W": ("G", "v"), "O": ("H", "v"), "eG": ("e", "G")}


def evaluate(dimension: str, known: Mapping[str, int]) -> int | None:
    """Return the number that a dimension such as ``E``, ``E+2W``, ``3E``, ``F/2`` or ``1`` stands for."""
    if dimension in known:
        return known[dimension]
    if "+" in dimension:
        parts = [evaluate(part, known) for part in dimension.split("+")]
        return None if None in parts else sum(part for part in parts if part is not None)
    if dimension.endswith("/2"):
        half = evaluate(dimension[:-2], known)
        return None if half is None else half // 2
    if dimension[0].isdigit():
        if dimension.isdigit():
            return int(dimension)
        rest = evaluate(dimension[1:], known)
        return None if rest is None else int(dimension[0]) * rest
    return None
