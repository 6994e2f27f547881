# Sliding-window attention: softmax over the last tokens alone.
# Appended to modeling_flashmorph.py, whose names it uses, where a hybrid has this mixer.


class Branch(FullAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.rotates = self.rotates and config.flashmorph["rope"]
        self.window = config.flashmorph["window"]
        sinks = config.flashmorph.get("sinks", False)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads)) if sinks else None

    def visible_keys(self, tokens, keys, valid, device):
        own = torch.arange(keys - tokens, keys, device=device)[:, None]
        near = torch.arange(keys, device=device)[None, :] > own - self.window
        valid = None if valid is None else valid[:, -keys:]
        return super().visible_keys(tokens, keys, valid, device) & near

    def attend(self, q, k, v, visible):
        """With sinks a logit a head more is in the softmax's denominator."""
        if self.sinks is None:
            return super().attend(q, k, v, visible)
        scores = wide(q @ k.transpose(2, 3)) * self.config.flashmorph["attention_scale"]
        sinks = wide(self.sinks)[None, :, None, None].expand(*scores.shape[:3], 1)
        shares = torch.cat([scores.masked_fill(~visible, -torch.inf), sinks], dim=-1).softmax(-1)
        return shares[..., :-1].to(v.dtype) @ v

    def forward(self, x, rotary, valid, remembered):
        y, remembered = super().forward(x, rotary, valid, remembered)
        return y, tuple(part[:, :, max(0, part.shape[2] - self.window + 1) :] for part in remembered)
