# Gated DeltaNet: the delta rule with a decay per head that the input sets.
# Appended to modeling_flashmorph.py, whose names it uses, where a hybrid has this mixer.

try:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
except ImportError:
    chunk_gated_delta_rule = None


def gated_delta_rule(q, k, v, log_decay, beta, state, chunk):
    """S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, o_t = K^-1/2 S_t^T q_t; log_decay, beta [B, H, T]."""
    if is_worth(chunk_gated_delta_rule, q):
        return kernel(chunk_gated_delta_rule, q, k, v, state, g=log_decay.transpose(1, 2), beta=beta.transpose(1, 2))
    q = q * q.shape[-1] ** -0.5
    outputs = []
    for q_c, k_c, v_c, g_c, beta_c in chunks(chunk, q, k, v, log_decay[..., None], beta[..., None]):
        b = g_c.cumsum(2)  # [B, H, C, 1]
        between = (b - b.transpose(2, 3)).masked_fill(future(b.shape[2], b.device), -torch.inf).exp()
        # What each token writes depends on what the earlier ones of the chunk wrote: a triangular system.
        earlier = (beta_c * between * (k_c @ k_c.transpose(2, 3))).tril(-1)
        new = beta_c * (v_c - b.exp() * (k_c @ state))
        written = torch.linalg.solve_triangular(earlier, new, upper=False, unitriangular=True)
        outputs.append(b.exp() * (q_c @ state) + (q_c @ k_c.transpose(2, 3) * between) @ written)
        end = b[:, :, -1:]
        state = end.exp() * state + (k_c * (end - b).exp()).transpose(2, 3) @ written
    return torch.cat(outputs, dim=2), state


def unit_length(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


class Branch(nn.Module):
    """The delta rule with a decay per head that the input sets: qwen3_5's linear attention."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.settings = config.flashmorph
        heads, width = config.num_attention_heads, config.num_attention_heads * config.head_dim
        for name in ("q_proj", "k_proj", "v_proj", "z_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, width, bias=False))
        for name in ("q_conv", "k_conv", "v_conv"):
            setattr(self, name, ShortConvolution(width, self.settings["convolution"]))
        self.b_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.a_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x, rotary, valid, remembered):
        heads = (*x.shape[:2], -1, self.config.head_dim)
        projected = torch.stack([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=1)  # [B, 3, T, C]
        if valid is not None:
            projected = projected * valid[:, None, -x.shape[1] :, None]  # padding leaves no trace in the state
        before = self.settings["convolution"] - 1
        recent = F.pad(projected, (0, 0, before, 0)) if remembered is None else torch.cat([remembered[1], projected], dim=2)
        convolved = (self.q_conv(recent[:, 0]), self.k_conv(recent[:, 1]), self.v_conv(recent[:, 2]))
        q, k, v = (wide(F.silu(part)).view(heads).transpose(1, 2) for part in convolved)
        beta = torch.sigmoid(wide(self.b_proj(x))).transpose(1, 2)
        log_decay = -wide(self.A_log).exp() * F.softplus(wide(self.a_proj(x)) + wide(self.dt_bias))
        state = no_state(q, v) if remembered is None else remembered[0]
        o, state = gated_delta_rule(
            unit_length(q), unit_length(k), v, log_decay.transpose(1, 2), beta, state, self.settings["chunk"]
        )
        o = self.norm(o.to(x.dtype).transpose(1, 2)) * F.silu(self.z_proj(x).view(heads))
        return self.out_proj(o.flatten(2)), (state, recent[:, :, -before:])
