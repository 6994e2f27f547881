"""The mixers' Python against the recurrences it computes, one token at a time in float64, whatever cuts the sequence.

    python tests/unit/export/modeling_test.py      from the repository's root
"""

import types
import unittest
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid


def exported(mixer):
    """The module that an export of this mixer brings."""
    module = types.ModuleType("modeling_flashmorph")
    for file in (Path("core/export/modeling_flashmorph.py"), mixer):
        exec(compile(file.read_text(), file, "exec"), module.__dict__)
    return module


MIXERS = {file.stem: exported(file) for file in sorted(Path("core/mixer").glob("*.py"))}

B, H, T, K, D = 2, 3, 37, 8, 24
SETTINGS = {
    "attention_bias": True,
    "query_key_norm": True,
    "norm_over_heads": False,
    "rope": False,
    "chunk": 16,
    "output_norm": "head",
    "log_decay": [[-0.5, -0.1, -0.02]],
    "decay_rank": 4,
    "decay_divisor": 16,
    "convolution": 4,
    "window": 5,
    "output_bias": False,
    "no_rope": [],
    "attention_scale": 0.4,
}
CONFIG = types.SimpleNamespace(
    hidden_size=D, num_attention_heads=H, num_key_value_heads=H, head_dim=K, rms_norm_eps=1e-6, flashmorph=SETTINGS
)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def token_by_token(q, k, v, state, step):
    outputs = []
    for t in range(q.shape[2]):
        state = step(t, k[:, :, t], v[:, :, t], state)
        outputs.append((q[:, :, t, :, None] * state).sum(2) * K**-0.5)
    return torch.stack(outputs, 2), state


def outer(k, v):
    return k[..., :, None] * v[..., None, :]


class Recurrences(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(3)
        self.q, self.k, self.v, self.state = random(B, H, T, K), random(B, H, T, K), random(B, H, T, K), random(B, H, K, K)

    def check(self, actual, expected):
        for ours, exact in zip(actual, expected):
            self.assertLess((ours - exact).abs().max().item(), 1e-12)

    def test_lightning(self):
        decay = torch.tensor([-0.5, -0.1, -4.0], dtype=torch.float64)
        step = lambda t, k, v, state: decay.exp()[:, None, None] * state + outer(k, v)  # noqa: E731
        expected = token_by_token(self.q, self.k, self.v, self.state, step)
        for chunk in (1, 16, 64):
            self.check(MIXERS["lightning"].lightning_attention(self.q, self.k, self.v, decay, self.state, chunk), expected)

    def test_gla(self):
        decay = logsigmoid(3 * random(B, H, T, K))
        decay[:, :, 5] = -200.0  # forgets all
        step = lambda t, k, v, state: decay[:, :, t].exp()[..., None] * state + outer(k, v)  # noqa: E731
        expected = token_by_token(self.q, self.k, self.v, self.state, step)
        for chunk in (1, 7, 64):
            self.check(MIXERS["gated_linear"].gated_linear_attention(self.q, self.k, self.v, decay, self.state, chunk), expected)

    def test_mamba2(self):
        decay = logsigmoid(3 * random(B, H, T))
        decay[:, :, 5] = -200.0
        step = lambda t, k, v, state: decay[:, :, t].exp()[..., None, None] * state + outer(k, v)  # noqa: E731
        expected = token_by_token(self.q * K**0.5, self.k, self.v, self.state, step)  # it has no scale
        for chunk in (1, 16, 64):
            self.check(MIXERS["mamba2"].scalar_gated_attention(self.q, self.k, self.v, decay, self.state, chunk), expected)

    def test_gated_delta_net(self):
        modeling = MIXERS["gated_delta_net"]
        q, k = modeling.unit_length(self.q), modeling.unit_length(self.k)
        decay, beta = logsigmoid(3 * random(B, H, T)), torch.sigmoid(random(B, H, T))
        decay[:, :, 5] = -200.0

        def step(t, k, v, state):
            state = decay[:, :, t].exp()[..., None, None] * state
            return state + beta[:, :, t, None, None] * outer(k, v - (k[..., :, None] * state).sum(2))

        expected = token_by_token(q, k, self.v, self.state, step)
        for chunk in (1, 16, 64):
            self.check(modeling.gated_delta_rule(q, k, self.v, decay, beta, self.state, chunk), expected)


class Branches(unittest.TestCase):
    def test_cuts_and_padding_change_nothing(self):
        torch.manual_seed(4)
        with_sinks = types.SimpleNamespace(**{**vars(CONFIG), "flashmorph": {**SETTINGS, "sinks": True}})
        cases = [(kind, modeling, CONFIG) for kind, modeling in MIXERS.items()]
        for kind, modeling, config in [*cases, ("window, sinks", MIXERS["window"], with_sinks)]:
            branch = modeling.Branch(config, 0).double()
            for parameter in branch.parameters():
                torch.nn.init.normal_(parameter, 0.0, 0.3)
            x = random(B, 21, D)
            with torch.no_grad():
                whole, _ = branch(x, None, None, None)
                parts, remembered = [], None
                for start, end in ((0, 2), (2, 3), (3, 9), (9, 21)):
                    part, remembered = branch(x[:, start:end], None, None, remembered)
                    parts.append(part)
                valid = torch.arange(26) >= 5
                padded, _ = branch(torch.cat([random(B, 5, D), x], 1), None, valid.expand(B, 26), None)
            with self.subTest(kind):
                self.assertLess((torch.cat(parts, 1) - whole).abs().max().item(), 1e-12)
                self.assertLess((padded[:, 5:] - whole).abs().max().item(), 1e-12)


if __name__ == "__main__":
    torch.set_num_threads(1)
    unittest.main()
