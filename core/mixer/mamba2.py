# Mamba-2: a decay per head that the input sets, and with it how much is written.
# Appended to modeling_flashmorph.py, whose names it uses, where a hybrid has this mixer.

try:
    from fla.ops.simple_gla import chunk_simple_gla
except ImportError:
    chunk_simple_gla = None


def scalar_gated_attention(q, k, v, log_decay, state, chunk):
    """S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t; log_decay [B, H, T]."""
    if is_worth(chunk_simple_gla, q):
        return kernel(chunk_simple_gla, q, k, v, state, g=log_decay.transpose(1, 2), scale=1.0)
    outputs = []
    for q_c, k_c, v_c, g_c in chunks(chunk, q, k, v, log_decay[..., None]):
        b = g_c.cumsum(2)  # [B, H, C, 1]
        between = (b - b.transpose(2, 3)).masked_fill(future(b.shape[2], b.device), -torch.inf).exp()
        outputs.append((q_c @ k_c.transpose(2, 3) * between) @ v_c + b.exp() * (q_c @ state))
        end = b[:, :, -1:]
        state = end.exp() * state + (k_c * (end - b).exp()).transpose(2, 3) @ v_c
    return torch.cat(outputs, dim=2), state


class Branch(ConvolvedAttention):
    """granitemoehybrid's linear attention, a group a head: C are the queries, B the keys, x the values."""

    convolution_bias = True

    def __init__(self, config, layer):
        super().__init__(config, layer)
        heads, width = config.num_attention_heads, config.num_attention_heads * config.head_dim
        self.dt_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(width, config.rms_norm_eps)

    def forward(self, x, rotary, valid, remembered):
        q, k, v, recent = self.queries_keys_values(x, valid, remembered)
        step, log_decay = self.step(self.dt_proj(x))
        state = no_state(q, v) if remembered is None else remembered[0]
        o, state = scalar_gated_attention(q, k, v * step[..., None], log_decay, state, self.settings["chunk"])
        o = (o + wide(self.D)[:, None, None] * v).to(x.dtype).transpose(1, 2)
        o = o * F.silu(self.z_proj(x).view(o.shape))
        o = rms_norm(o, self.norm.weight.view(o.shape[2:]), self.norm.epsilon)
        return self.out_proj(o.flatten(2)), (state, recent)
