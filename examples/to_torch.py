"""Take a model to PyTorch: an nn.Module that gives the logits and gradients of the checkpoint.

    microgpt train --out names.safetensors
    python examples/to_torch.py names.safetensors

It prints how much the two differ on a name. From here all of PyTorch is available: a GPU,
torch.compile, AdamW, a model a thousand times the size.
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

import microgpt as mg


class TorchGPT(nn.Module):
    """The model of model.py; names and type of its parameters are those of the checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        for name, (nout, nin) in config.shapes().items():
            weight = torch.empty(nout, nin, dtype=getattr(torch, config.dtype))
            self.register_parameter(name.replace(".", "_"), nn.Parameter(weight))

    def load_run(self, run):
        weights = {name.replace(".", "_"): torch.tensor(m.tolist(), dtype=torch.float64)
                   for name, m in run.model.state_dict.items()}
        self.load_state_dict(weights)
        return self

    def forward(self, tokens):
        """Return the logits of the next token: (B, T) token ids -> (B, T, vocab_size)."""
        (B, T), C, n_head = tokens.shape, self.config.n_embd, self.config.n_head
        weights = dict(self.named_parameters())
        x = rmsnorm(weights["wte"][tokens] + weights["wpe"][:T])
        for i in range(self.config.n_layer):
            normed = rmsnorm(x)
            q, k, v = (
                (normed @ weights[f"layer{i}_attn_{w}"].T).view(B, T, n_head, -1).transpose(1, 2)
                for w in ("wq", "wk", "wv")
            )
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = heads.transpose(1, 2).reshape(B, T, C) @ weights[f"layer{i}_attn_wo"].T + x
            hidden = F.relu(rmsnorm(x) @ weights[f"layer{i}_mlp_fc1"].T)
            x = hidden @ weights[f"layer{i}_mlp_fc2"].T + x
        return x @ weights["lm_head"].T


def rmsnorm(x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def compare(run, text):
    """Return the largest differences of logits and of gradients, relative to the largest entry."""
    ids = run.encode(text)
    inputs, targets, _ = run.model.pack([ids])
    theirs = TorchGPT(run.model.config).load_run(run)
    logits = theirs(torch.tensor([inputs]))[0]
    F.cross_entropy(logits, torch.tensor(targets)).backward()
    ours = torch.tensor(run.model.forward(inputs).tolist(), dtype=logits.dtype)
    run.model.loss([ids]).backward()
    grads = [torch.tensor(m.grad.tolist(), dtype=logits.dtype).flatten()
             for m in run.model.state_dict.values()]
    their_grads = [weight.grad.flatten() for weight in theirs.parameters()]
    return difference(ours, logits), difference(torch.cat(grads), torch.cat(their_grads))


def difference(ours, theirs):
    return ((ours - theirs.detach()).abs().max() / ours.abs().max()).item()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    run = mg.load(sys.argv[1])
    for what, number in zip(("logits", "gradients"), compare(run, "emma"), strict=True):
        print(f"{what}: equal to {number:.1e} of the largest")
