#Sliding - window attention : softmax over the last tokens alone.
#Appended to modeling_flashmorph.py, whose names it uses, where a hybrid has this mixer.

class Branch(FullAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.rotates = self.rotates and config.flashmorph["rope"]
        self.window = config.flashmorph["window"]

    def visible_keys(self, tokens, keys, valid, device):
        own = torch.arange(keys - tokens, keys, device=device)[:, None]
        near = torch.arange(keys, device=device)[None, :] > own - self.window
        valid = None if valid is None else valid[:, -keys:]
        return super().visible_keys(tokens, keys, valid, device) & near

    def forward(self, x, rotary, valid, remembered):
        y, remembered = super().forward(x, rotary, valid, remembered)
        return y, tuple(part[:, :, max(0, part.shape[2] - self.window + 1) :] for part in remembered)
