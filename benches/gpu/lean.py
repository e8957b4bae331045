"""Decoders as plain as PyTorch code for speed can be: packed products, a static cache, attention without general masks.

They are here so that a peer's figure is not that of a framework's general generation code.
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class Decoder(torch.nn.Module):
    """What both families have in common: `start(ids, positions)`, `layer(i, x, turn, attend)` and `end(x)` differ."""

    def cache(self, batch, length):
        shape = batch, self.kv, length, self.dim
        empty = lambda: torch.zeros(shape, device=self.embed.device, dtype=self.embed.dtype)
        return [(empty(), empty()) for _ in range(self.count)]

    def forward(self, ids, positions, cache):
        """Logits of the last token, [batch, 1, vocabulary]."""
        batch, tokens = ids.shape
        x, turn = self.start(ids, positions)
        prompt = tokens > 1
        hidden = torch.arange(cache[0][0].shape[2], device=x.device) > positions[-1]
        for i, (keys, values) in enumerate(cache):

            def attend(q, k, v):
                keys.index_copy_(2, positions, k)
                values.index_copy_(2, positions, v)
                if prompt:
                    a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
                else:
                    # heads of a group as rows of one product: what serves one query with a mask best
                    q = q.reshape(batch, self.kv, self.heads // self.kv, self.dim)
                    scores = (q @ keys.transpose(2, 3)).float() * self.dim**-0.5
                    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
                    a = (weights.to(values.dtype) @ values).reshape(batch, self.heads, 1, self.dim)
                return a.transpose(1, 2).reshape(batch, tokens, -1)

            x = self.layer(i, x, turn, attend)
        return self.end(x[:, -1:])

    def split(self, y):
        batch, tokens, _ = y.shape
        y = y.view(batch, tokens, self.heads + 2 * self.kv, self.dim).transpose(1, 2)
        return y.split([self.heads, self.kv, self.kv], 1)


class Llama(Decoder):
    def __init__(self, config, tensors):
        super().__init__()
        self.heads, self.kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim, self.eps = config["head_dim"], config["rms_norm_eps"]
        self.hidden, self.count = config["hidden_size"], config["num_hidden_layers"]
        get = lambda name: tensors[f"model.{name}.weight"]
        self.embed, self.norm = get("embed_tokens"), get("norm")
        self.layers = []
        for i in range(self.count):
            part = lambda name: get(f"layers.{i}.{name}")
            qkv = torch.cat([part(f"self_attn.{n}_proj") for n in "qkv"])
            wide = torch.cat([part("mlp.gate_proj"), part("mlp.up_proj")])
            norms = part("input_layernorm"), part("post_attention_layernorm")
            self.layers.append((norms, qkv, part("self_attn.o_proj"), wide, part("mlp.down_proj")))
        steps = torch.arange(0, self.dim, 2, device=self.embed.device).float() / self.dim
        self.frequencies = 1.0 / config["rope_theta"] ** steps

    def start(self, ids, positions):
        x = F.embedding(ids, self.embed)
        angles = torch.outer(positions.float(), self.frequencies).repeat(1, 2)
        return x, (angles.cos().to(x.dtype), angles.sin().to(x.dtype))

    def rotated(self, x, turn):
        a, b = x.chunk(2, -1)
        return x * turn[0] + torch.cat([-b, a], -1) * turn[1]

    def layer(self, i, x, turn, attend):
        (first, second), qkv, out, wide, down = self.layers[i]
        q, k, v = self.split(F.linear(F.rms_norm(x, (self.hidden,), first, self.eps), qkv))
        x = x + F.linear(attend(self.rotated(q, turn), self.rotated(k, turn), v), out)
        gate, up = F.linear(F.rms_norm(x, (self.hidden,), second, self.eps), wide).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, down)

    def end(self, x):
        return F.linear(F.rms_norm(x, (self.hidden,), self.norm, self.eps), self.embed)


class Gpt2(Decoder):
    def __init__(self, config, tensors):
        super().__init__()
        self.heads = self.kv = config["n_head"]
        self.hidden, self.count = config["n_embd"], config["n_layer"]
        self.dim = self.hidden // self.heads
        get = lambda name: tensors[f"transformer.{name}"]
        both = lambda name: (get(f"{name}.weight"), get(f"{name}.bias"))
        linear = lambda name: (get(f"{name}.weight").t().contiguous(), get(f"{name}.bias"))
        self.embed, self.places, self.last = get("wte.weight"), get("wpe.weight"), both("ln_f")
        self.layers = [
            [both(f"h.{i}.ln_1"), both(f"h.{i}.ln_2")]
            + [linear(f"h.{i}.{n}") for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
            for i in range(self.count)
        ]

    def start(self, ids, positions):
        return F.embedding(ids, self.embed) + F.embedding(positions, self.places), None

    def layer(self, i, x, _, attend):
        first, second, qkv, out, up, down = self.layers[i]
        x = x + F.linear(attend(*self.split(F.linear(F.layer_norm(x, (self.hidden,), *first), *qkv))), *out)
        wide = F.gelu(F.linear(F.layer_norm(x, (self.hidden,), *second), *up), approximate="tanh")
        return x + F.linear(wide, *down)

    def end(self, x):
        return F.linear(F.layer_norm(x, (self.hidden,), *self.last), self.embed)


def load(folder, device):
    config = json.loads((folder / "config.json").read_text())
    tensors = {n: t.to(device) for n, t in load_file(folder / "model.safetensors").items()}
    return (Gpt2 if config["model_type"] == "gpt2" else Llama)(config, tensors)
