"""Karpathy's microgpt in our words: a GPT in one file, on scalar Values from this package.

The original is https://gist.github.com/karpathy/8627fe009c40f57531cb18360106ce95. Here `Value` is
imported; everything else is spelled out below: data, tokenizer, model, Adam, training, sampling.

    python examples/script.py                        the bundled names, 1,000 steps
    python examples/script.py names.txt 50           another file, 50 steps
"""

import random
import sys

from microgpt import Value, load_documents

data = sys.argv[1] if len(sys.argv) > 1 else None
num_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
random.seed(42)

# Data: one document per line, in random order
docs = load_documents(data)
random.shuffle(docs)
print(f"num docs: {len(docs)}")

# Tokenizer: one token per character, and BOS around every document
uchars = sorted(set("".join(docs)))
BOS = len(uchars)
vocab_size = len(uchars) + 1
print(f"vocab size: {vocab_size}")

# Parameters
n_layer = 1
n_embd = 16
block_size = 16
n_head = 4
head_dim = n_embd // n_head


def matrix(nout, nin):
    return [[Value(random.gauss(0, 0.08)) for _ in range(nin)] for _ in range(nout)]


state_dict = {
    "wte": matrix(vocab_size, n_embd),
    "wpe": matrix(block_size, n_embd),
    "lm_head": matrix(vocab_size, n_embd),
}
for i in range(n_layer):
    state_dict[f"layer{i}.attn_wq"] = matrix(n_embd, n_embd)
    state_dict[f"layer{i}.attn_wk"] = matrix(n_embd, n_embd)
    state_dict[f"layer{i}.attn_wv"] = matrix(n_embd, n_embd)
    state_dict[f"layer{i}.attn_wo"] = matrix(n_embd, n_embd)
    state_dict[f"layer{i}.mlp_fc1"] = matrix(4 * n_embd, n_embd)
    state_dict[f"layer{i}.mlp_fc2"] = matrix(n_embd, 4 * n_embd)
params = [p for rows in state_dict.values() for row in rows for p in row]
print(f"num params: {len(params)}")


# Model: one token and its position in, logits of the next token out
def linear(x, w):
    return [sum(wi * xi for wi, xi in zip(row, x, strict=True)) for row in w]


def softmax(logits):
    largest = max(value.data for value in logits)
    exps = [(value - largest).exp() for value in logits]
    total = sum(exps)
    return [e / total for e in exps]


def rmsnorm(x):
    mean_square = sum(xi * xi for xi in x) / len(x)
    scale = (mean_square + 1e-5) ** -0.5
    return [xi * scale for xi in x]


def gpt(token_id, pos_id, keys, values):
    tok_emb = state_dict["wte"][token_id]
    pos_emb = state_dict["wpe"][pos_id]
    x = [t + p for t, p in zip(tok_emb, pos_emb, strict=True)]
    x = rmsnorm(x)
    for i in range(n_layer):
        # Attention: each head looks back at the keys and values of all positions so far
        residual = x
        x = rmsnorm(x)
        q = linear(x, state_dict[f"layer{i}.attn_wq"])
        keys[i].append(linear(x, state_dict[f"layer{i}.attn_wk"]))
        values[i].append(linear(x, state_dict[f"layer{i}.attn_wv"]))
        heads = []
        for start in range(0, n_embd, head_dim):
            head = range(start, start + head_dim)
            scores = [sum(q[j] * k[j] for j in head) / head_dim**0.5 for k in keys[i]]
            weights = softmax(scores)
            for j in head:
                heads.append(sum(w * v[j] for w, v in zip(weights, values[i], strict=True)))
        x = linear(heads, state_dict[f"layer{i}.attn_wo"])
        x = [a + b for a, b in zip(x, residual, strict=True)]
        # MLP
        residual = x
        x = rmsnorm(x)
        x = linear(x, state_dict[f"layer{i}.mlp_fc1"])
        x = [xi.relu() for xi in x]
        x = linear(x, state_dict[f"layer{i}.mlp_fc2"])
        x = [a + b for a, b in zip(x, residual, strict=True)]
    return linear(x, state_dict["lm_head"])


# Adam
learning_rate, beta1, beta2, eps_adam = 0.01, 0.85, 0.99, 1e-8
m = [0.0] * len(params)
v = [0.0] * len(params)

# Training: one document per step
losses = []
for step in range(num_steps):
    doc = docs[step % len(docs)]
    tokens = [BOS] + [uchars.index(char) for char in doc] + [BOS]
    n = min(block_size, len(tokens) - 1)

    keys, values = [[] for _ in range(n_layer)], [[] for _ in range(n_layer)]
    position_losses = []
    for pos_id in range(n):
        probs = softmax(gpt(tokens[pos_id], pos_id, keys, values))
        position_losses.append(-probs[tokens[pos_id + 1]].log())
    loss = (1 / n) * sum(position_losses)

    loss.backward()

    lr_t = learning_rate * (1 - step / num_steps)
    for i, p in enumerate(params):
        m[i] = beta1 * m[i] + (1 - beta1) * p.grad
        v[i] = beta2 * v[i] + (1 - beta2) * p.grad**2
        m_hat = m[i] / (1 - beta1 ** (step + 1))
        v_hat = v[i] / (1 - beta2 ** (step + 1))
        p.data -= lr_t * m_hat / (v_hat**0.5 + eps_adam)
        p.grad = 0

    losses.append(loss.data)
    print(f"step {step + 1:4d} / {num_steps:4d} | loss {loss.data:.4f}")

# Sampling: from BOS to BOS
temperature = 0.5
print("--- inference (new, hallucinated names) ---")
for sample_id in range(20):
    keys, values = [[] for _ in range(n_layer)], [[] for _ in range(n_layer)]
    token_id, name = BOS, ""
    for pos_id in range(block_size):
        logits = gpt(token_id, pos_id, keys, values)
        probs = softmax([logit / temperature for logit in logits])
        token_id = random.choices(range(vocab_size), [p.data for p in probs])[0]
        if token_id == BOS:
            break
        name += uchars[token_id]
    print(f"sample {sample_id + 1:2d}: {name}")
