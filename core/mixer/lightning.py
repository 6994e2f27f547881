# Lightning attention: a constant decay per head.
# Appended to modeling_flashmorph.py, whose names it uses, where a hybrid has this mixer.

try:
    from fla.ops.simple_gla import chunk_simple_gla
except ImportError:
    chunk_simple_gla = None


def lightning_attention(q, k, v, log_decay, state, chunk):
    """S_t = exp(g) S_{t-1} + k_t v_t^T, o_t = K^-1/2 S_t^T q_t; log_decay [H]."""
    if is_worth(chunk_simple_gla, q):
        return kernel(chunk_simple_gla, q, k, v, state, g_gamma=log_decay.float())
    q = q * q.shape[-1] ** -0.5
    outputs = []
    for q_c, k_c, v_c in chunks(chunk, q, k, v):
        tokens = q_c.shape[2]
        place = torch.arange(1, tokens + 1, device=q.device)
        distance = place[:, None] - place[None, :]
        within = torch.exp(log_decay[:, None, None] * distance.clamp(min=0)).masked_fill(distance < 0, 0.0).to(q.dtype)
        since_start = torch.exp(log_decay[:, None, None] * place[:, None]).to(q.dtype)
        to_end = torch.exp(log_decay[:, None, None] * (tokens - place)[:, None]).to(q.dtype)
        outputs.append((q_c @ k_c.transpose(2, 3) * within) @ v_c + since_start * (q_c @ state))
        state = since_start[:, -1:] * state + k_c.transpose(2, 3) @ (to_end * v_c)
    return torch.cat(outputs, dim=2), state


class Branch(LinearAttention):
    """A constant decay per head."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if not self.settings["query_key_norm"]:  # this mixer always has one
            self.q_norm = HeadNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = HeadNorm(config.head_dim, config.rms_norm_eps)
        self.log_decay = self.settings["log_decay"][layer]  # by head; not a buffer: it is no weight
        self.z_proj = nn.Linear(config.hidden_size, self.width, bias=False)
        self.o_norm = RMSNorm(self.width, config.rms_norm_eps)

    def forward(self, x, rotary, valid, remembered):
        q, k, v = self.queries_keys_values(x, rotary, valid)
        log_decay = torch.tensor(self.log_decay, dtype=torch.float64, device=x.device)
        state = no_state(q, v) if remembered is None else remembered[0]
        o, state = lightning_attention(q, k, v, log_decay, state, self.settings["chunk"])
        return self.o_proj(self.normalize(o.to(x.dtype)) * torch.sigmoid(self.z_proj(x))), (state,)

    def normalize(self, o):
        """RMSNorm over each head's channels or over all of them; [B, T, H * K]."""
        o = o.transpose(1, 2)
        if self.settings["output_norm"] == "hidden":
            return self.o_norm(o.flatten(2))
        return rms_norm(o, self.o_norm.weight.view(o.shape[2:]), self.o_norm.epsilon).flatten(2)
