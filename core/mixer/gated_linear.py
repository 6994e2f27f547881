# Gated linear attention: a decay per channel that the input sets.
# Appended to modeling_flashmorph.py, whose names it uses, where a hybrid has this mixer.

try:
    from fla.ops.gla import chunk_gla
except ImportError:
    chunk_gla = None


def gated_linear_attention(q, k, v, log_decay, state, chunk):
    """S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = K^-1/2 S_t^T q_t; log_decay [B, H, T, K]."""
    if is_worth(chunk_gla, q):
        return kernel(chunk_gla, q, k, v, state, g=log_decay.transpose(1, 2))
    q = q * q.shape[-1] ** -0.5
    outputs = []
    for q_c, k_c, v_c, g_c in chunks(min(chunk, 16), q, k, v, log_decay):  # pairs of tokens and channels are kept
        b = g_c.cumsum(2)
        between = b[:, :, :, None] - b[:, :, None]  # [B, H, C, C, K]
        between = between.masked_fill(future(b.shape[2], b.device)[..., None], -torch.inf).exp()
        within = (q_c[:, :, :, None] * k_c[:, :, None] * between).sum(-1)
        outputs.append(within @ v_c + (q_c * b.exp()) @ state)
        end = b[:, :, -1:]
        state = end.exp().transpose(2, 3) * state + (k_c * (end - b).exp()).transpose(2, 3) @ v_c
    return torch.cat(outputs, dim=2), state


class Branch(LinearAttention):
    """A decay per channel that the input sets."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        rank = self.settings["decay_rank"]
        self.g_proj = nn.Linear(config.hidden_size, self.width, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(config.hidden_size, rank, bias=False), nn.Linear(rank, self.width))
        self.o_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x, rotary, valid, remembered):
        q, k, v = self.queries_keys_values(x, rotary, valid)
        heads = (*x.shape[:2], -1, self.config.head_dim)
        log_decay = F.logsigmoid(wide(self.gk_proj(x))).view(heads).transpose(1, 2) / self.settings["decay_divisor"]
        state = no_state(q, v) if remembered is None else remembered[0]
        o, state = gated_linear_attention(q, k, v, log_decay, state, self.settings["chunk"])
        o = self.o_norm(o.to(x.dtype).transpose(1, 2)) * F.silu(self.g_proj(x).view(heads))
        return self.o_proj(o.flatten(2)), (state,)
