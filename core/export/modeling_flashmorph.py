"""A hybrid-attention decoder made by FlashMorph (arXiv 2606.30562) from a Qwen3 model.

Each layer has full attention, or a lightning-attention branch whose memory does not grow with the tokens:
    S_t = exp(g_h) S_{t-1} + k_t v_t^T        o_t = K^-1/2 S_t^T q_t
Letters: B batch, T new tokens, S tokens so far, H heads, G key/value heads, K head size, C tokens a chunk.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class FlashmorphConfig(PretrainedConfig):
    """The teacher's configuration, `layer_types`, and in `flashmorph` what the linear branches need."""

    model_type = "flashmorph"
    keys_to_ignore_at_inference = ["past_key_values"]

    # Declared because transformers drops undeclared keys that are also generation settings.
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


def rope_theta(config):
    theta = getattr(config, "rope_theta", None)
    return config.rope_parameters["rope_theta"] if theta is None else theta


def rotary_table(position_ids, config, dtype):
    """cos and sin, [B, 1, T, K]; the angles are computed in float64 and rounded once."""
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=position_ids.device)
    angles = position_ids[..., None].double() * rope_theta(config) ** (-channels / config.head_dim)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, rotary):
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x, weight, epsilon):
    exact = wide(x)
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * exact.to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x):
        return rms_norm(x, self.weight, self.epsilon)


def lightning_attention(q, k, v, log_decay, state, chunk):
    """o [B, H, T, K] and the last state [B, H, K, K]; matrix products inside a chunk, states from chunk to chunk."""
    q = q * q.shape[-1] ** -0.5
    outputs = []
    for q_c, k_c, v_c in zip(q.split(chunk, 2), k.split(chunk, 2), v.split(chunk, 2)):
        tokens = q_c.shape[2]
        place = torch.arange(1, tokens + 1, device=q.device)
        distance = place[:, None] - place[None, :]
        within = torch.exp(log_decay[:, None, None] * distance.clamp(min=0)).masked_fill(distance < 0, 0.0).to(q.dtype)
        since_start = torch.exp(log_decay[:, None, None] * place[:, None]).to(q.dtype)
        to_end = torch.exp(log_decay[:, None, None] * (tokens - place)[:, None]).to(q.dtype)
        outputs.append((q_c @ k_c.transpose(2, 3) * within) @ v_c + since_start * (q_c @ state))
        state = since_start[:, -1:] * state + k_c.transpose(2, 3) @ (to_end * v_c)
    return torch.cat(outputs, dim=2), state


class FlashmorphCache:
    """What every layer remembers: keys and values of a full layer, the state of a linear one."""

    is_compileable = False

    def __init__(self, layers):
        self.tokens = 0
        self.layers = [None] * layers

    def get_seq_length(self, layer_idx=0):
        return self.tokens

    def reorder_cache(self, beam_idx):
        self.layers = [tuple(part.index_select(0, beam_idx) for part in layer) for layer in self.layers]


class FullAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=False)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(size, config.rms_norm_eps)
        self.k_norm = RMSNorm(size, config.rms_norm_eps)

    def forward(self, x, rotary, valid, remembered):
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), rotary)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), rotary)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if remembered is not None:
            k, v = torch.cat([remembered[0], k], dim=2), torch.cat([remembered[1], v], dim=2)
        visible = visible_keys(x.shape[1], k.shape[2], valid, x.device)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        o = F.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), attn_mask=visible
        )
        return self.o_proj(o.transpose(1, 2).reshape(*x.shape[:2], -1)), (k, v)


def visible_keys(tokens, keys, valid, device):
    """[B or 1, 1, T, S]: a token sees the keys up to its own that are not padding, and always itself."""
    own = torch.arange(keys - tokens, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    visible = (key <= own)[None, None]
    if valid is not None:
        visible = visible & valid[:, None, None, :] | (key == own)[None, None]
    return visible


class LightningAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.settings = config.flashmorph
        self.log_decay = self.settings["log_decay"][layer]  # by head; not a buffer: it is no weight
        width = config.num_attention_heads * config.head_dim
        for name in ("q_proj", "k_proj", "v_proj", "z_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, width, bias=False))
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.o_norm = RMSNorm(width, config.rms_norm_eps)

    def forward(self, x, rotary, valid, remembered):
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if self.settings["rope"]:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if valid is not None:
            v = v * valid[:, None, -x.shape[1] :, None]  # padding leaves no trace in the state
        q, k, v = wide(q), wide(k), wide(v)
        log_decay = torch.tensor(self.log_decay, dtype=torch.float64, device=x.device)
        state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if remembered is None else remembered[0]
        o, state = lightning_attention(q, k, v, log_decay, state, self.settings["chunk"])
        return self.o_proj(self.normalize(o.to(x.dtype)) * torch.sigmoid(self.z_proj(x))), (state,)

    def normalize(self, o):
        """RMSNorm over each head's channels or over all of them; [B, T, H * K]."""
        o = o.transpose(1, 2)
        if self.settings["output_norm"] == "hidden":
            return self.o_norm(o.flatten(2))
        return rms_norm(o, self.o_norm.weight.view(o.shape[2:]), self.o_norm.epsilon).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.layer_types[layer] == "full_attention":
            self.self_attn = FullAttention(config)
        else:
            self.linear_attn = LightningAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x, rotary, valid, remembered):
        attention = self.self_attn if hasattr(self, "self_attn") else self.linear_attn
        mixed, remembered = attention(self.input_layernorm(x), rotary, valid, remembered)
        h = x + mixed
        return h + self.mlp(self.post_attention_layernorm(h)), remembered


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rotary, valid, cache):
        for index, layer in enumerate(self.layers):
            x, cache.layers[index] = layer(x, rotary, valid, cache.layers[index])
        return self.norm(x)


class FlashmorphForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = FlashmorphConfig
    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # forward makes a FlashmorphCache

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, embeddings):
        self.model.embed_tokens = embeddings

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, embeddings):
        self.lm_head = embeddings

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = FlashmorphCache(len(self.model.layers)) if past_key_values is None else past_key_values
        if position_ids is None:
            position_ids = torch.arange(cache.tokens, cache.tokens + x.shape[1], device=x.device)[None]
        valid = None if attention_mask is None or attention_mask.all() else attention_mask.bool()
        hidden = self.model(x, rotary_table(position_ids, self.config, x.dtype), valid, cache)
        cache.tokens += x.shape[1]
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(wide(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        keep = self.config.use_cache if use_cache is None else use_cache
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if keep else None)
