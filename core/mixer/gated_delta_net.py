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


class Branch(ConvolvedAttention):
    """The delta rule: qwen3_5's linear attention."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.b_proj = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)
        self.a_proj = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)
        self.norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x, rotary, valid, remembered):
        q, k, v, recent = self.queries_keys_values(x, valid, remembered)
        beta = torch.sigmoid(wide(self.b_proj(x))).transpose(1, 2)
        _, log_decay = self.step(self.a_proj(x))
        state = no_state(q, v) if remembered is None else remembered[0]
        o, state = gated_delta_rule(unit_length(q), unit_length(k), v, log_decay, beta, state, self.settings["chunk"])
        o = o.to(x.dtype).transpose(1, 2)
        o = self.norm(o) * F.silu(self.z_proj(x).view(o.shape))
        return self.out_proj(o.flatten(2)), (state, recent)
