"""A hybrid-attention decoder made by FlashMorph (arXiv 2606.30562) from a Transformer.

Each layer has full attention, or a linear-attention branch whose memory, a state S a head, does not grow with the tokens.
`config.flashmorph` says in numbers what families and mixers do differently.
Letters: B batch, T new tokens, S tokens so far, H heads, G key/value heads, K head size, C tokens a chunk, N tokens of a batch.
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


def rotary_table(position_ids, rotary, dtype):
    """cos and sin, [B, 1, T, K]; the angles are computed in float64 and rounded once."""
    frequencies = torch.tensor(rotary["frequencies"], dtype=torch.float64, device=position_ids.device)
    angles = position_ids[..., None].double() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return (angles.cos() * rotary["scale"]).to(dtype), (angles.sin() * rotary["scale"]).to(dtype)


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


def chunks(size, *tensors):
    """Pieces of `size` tokens of [B, H, T, ...] tensors, side by side."""
    return zip(*(tensor.split(size, 2) for tensor in tensors))


def future(tokens, device):
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)


# A mixer's recurrence is in matrix products inside a chunk, with states from chunk to chunk. q, k, v are [B, H, T, K]; it
# returns o [B, H, T, K] and the last state [B, H, K, K]. Decays are exponentials of differences, never a quotient of two, so
# that they cannot overflow. flash-linear-attention's kernels take over on a GPU where that package is installed.


def is_worth(operator, q):
    """A kernel is worth starting for many tokens on a GPU; its products are in tf32 for float32."""
    return operator is not None and q.is_cuda and q.shape[2] > 1 and q.dtype != torch.float64


def kernel(operator, q, k, v, state, **more):
    """Calls an operator of flash-linear-attention, whose tensors are [B, T, H, ...]."""
    o, state = operator(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), initial_state=state, output_final_state=True, **more
    )
    return o.transpose(1, 2), state


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


def head_norm(config, heads):
    """RMSNorm of queries or keys [.., heads * K]: of each head, or of all at once."""
    if not config.flashmorph["query_key_norm"]:
        return nn.Identity()
    size = heads * config.head_dim if config.flashmorph["norm_over_heads"] else config.head_dim
    return HeadNorm(size, config.rms_norm_eps)


class HeadNorm(RMSNorm):
    def forward(self, x):
        groups = x.unflatten(-1, (-1, self.weight.shape[0]))
        return super().forward(groups).flatten(-2)


def rotates(config, layer):
    return not config.flashmorph["no_rope"] or not config.flashmorph["no_rope"][layer]


class FullAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.rotates = rotates(config, layer)
        settings = config.flashmorph
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        bias = settings["attention_bias"]
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=settings["output_bias"])
        self.q_norm = head_norm(config, heads)
        self.k_norm = head_norm(config, kv_heads)

    def forward(self, x, rotary, valid, remembered):
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = self.q_norm(self.q_proj(x)).view(heads).transpose(1, 2)
        k = self.k_norm(self.k_proj(x)).view(heads).transpose(1, 2)
        if self.rotates:
            q, k = rotate(q, rotary), rotate(k, rotary)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if remembered is not None:
            k, v = torch.cat([remembered[0], k], dim=2), torch.cat([remembered[1], v], dim=2)
        visible = self.visible_keys(x.shape[1], k.shape[2], valid, x.device)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        o = self.attend(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), visible)
        return self.o_proj(o.transpose(1, 2).reshape(*x.shape[:2], -1)), (k, v)

    def attend(self, q, k, v, visible):
        scale = self.config.flashmorph["attention_scale"]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)

    def visible_keys(self, tokens, keys, valid, device):
        """[B or 1, 1, T, S]: a token sees the keys up to its own that are not padding, and always itself."""
        own = torch.arange(keys - tokens, keys, device=device)[:, None]
        key = torch.arange(keys, device=device)[None, :]
        visible = (key <= own)[None, None]
        if valid is not None:
            visible = visible & valid[:, None, None, :] | (key == own)[None, None]
        return visible


class LinearAttention(nn.Module):
    """A branch as the teacher's attention has it, but with keys and values of its own for every head."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.settings = config.flashmorph
        self.rotates = self.settings["rope"] and rotates(config, layer)
        self.width = config.num_attention_heads * config.head_dim
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, self.width, bias=self.settings["attention_bias"]))
        self.o_proj = nn.Linear(self.width, config.hidden_size, bias=False)
        self.q_norm = head_norm(config, config.num_attention_heads)
        self.k_norm = head_norm(config, config.num_attention_heads)

    def queries_keys_values(self, x, rotary, valid):
        """[B, H, T, K] each; the values of padding are zero, so that it leaves no trace in the state."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = self.q_norm(self.q_proj(x)).view(heads).transpose(1, 2)
        k = self.k_norm(self.k_proj(x)).view(heads).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if self.rotates:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if valid is not None:
            v = v * valid[:, None, -x.shape[1] :, None]
        return wide(q), wide(k), wide(v)


def no_state(q, v):
    return q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])


class ShortConvolution(nn.Module):
    """Each channel's own causal filter; the last tap is the token itself."""

    def __init__(self, channels, taps, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, taps))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x):
        """[B, taps - 1 + T, C] to [B, T, C]."""
        return F.conv1d(x.transpose(1, 2), self.weight[:, None], self.bias, groups=x.shape[2]).transpose(1, 2)


class ConvolvedAttention(nn.Module):
    """A branch whose queries, keys and values are convolved over a few tokens, with a decay per head that the input sets."""

    convolution_bias = False

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.settings = config.flashmorph
        heads, width = config.num_attention_heads, config.num_attention_heads * config.head_dim
        for name in ("q_proj", "k_proj", "v_proj", "z_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, width, bias=False))
        for name in ("q_conv", "k_conv", "v_conv"):
            setattr(self, name, ShortConvolution(width, self.settings["convolution"], self.convolution_bias))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)

    def queries_keys_values(self, x, valid, remembered):
        """[B, H, T, K] each, and the last projections."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        projected = torch.stack([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=1)  # [B, 3, T, C]
        if valid is not None:
            projected = projected * valid[:, None, -x.shape[1] :, None]  # padding leaves no trace in the state
        before = self.settings["convolution"] - 1
        recent = F.pad(projected, (0, 0, before, 0)) if remembered is None else torch.cat([remembered[1], projected], dim=2)
        convolved = (self.q_conv(recent[:, 0]), self.k_conv(recent[:, 1]), self.v_conv(recent[:, 2]))
        q, k, v = (wide(F.silu(part)).view(heads).transpose(1, 2) for part in convolved)
        if valid is not None:  # a convolution's bias is there even where nothing is
            v = v * valid[:, None, -x.shape[1] :, None]
        return q, k, v, recent[:, :, -before:]

    def step(self, logit):
        """How long a token is, and the log-decay over it; [B, H, T] each."""
        step = F.softplus(wide(logit) + wide(self.dt_bias)).transpose(1, 2)
        return step, -wide(self.A_log).exp()[:, None] * step


class FeedForward(nn.Module):
    def __init__(self, hidden, intermediate, bias=False):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.up_proj = nn.Linear(hidden, intermediate, bias=bias)
        self.down_proj = nn.Linear(intermediate, hidden, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtureOfExperts(nn.Module):
    """Each token goes to its best experts, weighted by their share of the router's softmax."""

    def __init__(self, hidden, experts):
        super().__init__()
        self.settings = experts
        self.gate = nn.Linear(hidden, experts["count"], bias=False)
        self.experts = nn.ModuleList(FeedForward(hidden, experts["intermediate"]) for _ in range(experts["count"]))

    def forward(self, x):
        x_ND = x.flatten(0, 1)
        share, chosen = wide(self.gate(x_ND)).softmax(-1).topk(self.settings["per_token"], -1)
        if self.settings["normalized"]:
            share = share / share.sum(-1, keepdim=True)
        share, y_ND = share.to(x.dtype), torch.zeros_like(x_ND)
        for index in chosen.unique().tolist():
            token, place = torch.where(chosen == index)
            y_ND = y_ND.index_add(0, token, self.experts[index](x_ND[token]) * share[token, place, None])
        return y_ND.view(x.shape)


class Layer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.settings = config.flashmorph
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.layer_types[layer] == "full_attention":
            self.self_attn = FullAttention(config, layer)
        else:
            self.linear_attn = Branch(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        experts = config.flashmorph.get("experts")
        if experts is not None and experts["in_layer"][layer]:
            self.mlp = MixtureOfExperts(config.hidden_size, experts)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size, self.settings["mlp_bias"])

    def forward(self, x, rotary, valid, remembered):
        attention = self.self_attn if hasattr(self, "self_attn") else self.linear_attn
        mixed, remembered = attention(self.read(x, self.input_layernorm), rotary, valid, remembered)
        h = self.added(x, mixed, self.input_layernorm)
        fed = self.mlp(self.read(h, self.post_attention_layernorm))
        return self.added(h, fed, self.post_attention_layernorm), remembered

    # A norm is of what attention or feed-forward reads, or of what it gives.

    def read(self, x, norm):
        return x if self.settings["norm_after"] else norm(x)

    def added(self, x, y, norm):
        y = norm(y) if self.settings["norm_after"] else y
        return x + y * self.settings["residual_multiplier"]


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
        x = x * self.config.flashmorph["embedding_multiplier"]
        cache = FlashmorphCache(len(self.model.layers)) if past_key_values is None else past_key_values
        if position_ids is None:
            position_ids = torch.arange(cache.tokens, cache.tokens + x.shape[1], device=x.device)[None]
        valid = None if attention_mask is None or attention_mask.all() else attention_mask.bool()
        hidden = self.model(x, rotary_table(position_ids, self.config.flashmorph["rotary"], x.dtype), valid, cache)
        cache.tokens += x.shape[1]
        logits = self.lm_head(hidden[:, -logits_to_keep:] / self.config.flashmorph["logit_divisor"])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(wide(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        keep = self.config.use_cache if use_cache is None else use_cache
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if keep else None)
