"""The papers' sums as loops in float64: one index at a time, sharing nothing with minialpaca.

Vectors are lists of numbers, matrices lists of rows. Slow on purpose; what is tested is compared with these.
"""

import cmath
import math

from torch import Tensor


def listed(tensor: Tensor) -> list:
    return tensor.detach().double().tolist()


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def times(matrix: list[list[float]], x: list[float]) -> list[float]:
    """y_o = Σ_i W_oi x_i: a Linear without bias."""
    return [dot(row, x) for row in matrix]


def softmax(z: list[float]) -> list[float]:
    weights = [math.exp(v - max(z)) for v in z]
    return [w / math.fsum(weights) for w in weights]


# ── the Transformer ──────────────────────────────────────────────────────────────────────────────


def rms_norm(x: list[float], gain: list[float], eps: float) -> list[float]:
    mean_square = math.fsum(v * v for v in x) / len(x)
    return [g * v / math.sqrt(mean_square + eps) for g, v in zip(gain, x, strict=True)]


def rotary_angle(m: float, i: int, d_head: int, theta: float) -> float:
    return m / theta ** (2 * i / d_head)


def rotate(x: list[float], m: float, theta: float) -> list[float]:
    """Each adjacent pair as a complex number, times e^{i m θ_i}."""
    turned = []
    for i in range(len(x) // 2):
        z = complex(x[2 * i], x[2 * i + 1]) * cmath.exp(1j * rotary_angle(m, i, len(x), theta))
        turned += [z.real, z.imag]
    return turned


def attention(queries: list, keys: list, values: list, may_look: list[list[bool]]) -> tuple[list, list]:
    """One head: (mix, map). A key that may not be looked at does not enter the sum at all."""
    mixes, maps = [], []
    for t, query in enumerate(queries):
        seen = [s for s in range(len(keys)) if may_look[t][s]]
        weights = dict(zip(seen, softmax([dot(query, keys[s]) / math.sqrt(len(query)) for s in seen])))
        maps.append([weights.get(s, 0.0) for s in range(len(keys))])
        mixes.append([math.fsum(weights[s] * values[s][k] for s in seen) for k in range(len(values[0]))])
    return mixes, maps


def swish(z: float) -> float:
    return z / (1 + math.exp(-z))


def swiglu(x: list[float], gate: list, up: list, down: list) -> list[float]:
    return times(down, [swish(g) * u for g, u in zip(times(gate, x), times(up, x))])


def heads_of(rows: list, cfg, heads: int) -> list[list]:
    """The columns of each row, head by head: heads × rows × K."""
    assert len(rows[0]) == heads * cfg.d_head
    return [[row[h * cfg.d_head:(h + 1) * cfg.d_head] for row in rows] for h in range(heads)]


def sublayer_attention(w: dict, name: str, cfg, x: list, y: list, see: list[list[bool]], positions: bool) -> list:
    """Queries from the rows of x, keys and values from those of y; with rotary positions or without any."""
    q = heads_of([times(w[name + "q_proj.weight"], row) for row in x], cfg, cfg.n_heads)
    k = heads_of([times(w[name + "k_proj.weight"], row) for row in y], cfg, cfg.kv_heads)
    v = heads_of([times(w[name + "v_proj.weight"], row) for row in y], cfg, cfg.kv_heads)
    if positions:
        q, k = ([[rotate(row, m, cfg.rope_theta) for m, row in enumerate(head)] for head in heads] for heads in (q, k))
    mixes = []
    for h in range(cfg.n_heads):
        shared = h * cfg.kv_heads // cfg.n_heads
        mixes.append(attention(q[h], k[shared], v[shared], see)[0])
    joined = [[value for head in mixes for value in head[t]] for t in range(len(x))]
    return [times(w[name + "o_proj.weight"], row) for row in joined]


def plus(stream: list, change: list) -> list:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(stream, change, strict=True)]


def stack(w: dict, name: str, cfg, stream: list, causal: bool, source: list | None = None) -> list:
    """L blocks and the norm behind them; `source`, if there is one, is looked at as a whole in the middle of each block."""
    def normed(gain: str) -> list:
        return [rms_norm(x, w[gain], cfg.norm_eps) for x in stream]

    see = [[not causal or s <= t for s in range(len(stream))] for t in range(len(stream))]
    for layer in range(cfg.n_layers):
        block = f"{name}layers.{layer}."
        x = normed(block + "attn_norm.weight")
        stream = plus(stream, sublayer_attention(w, block + "attn.", cfg, x, x, see, positions=True))
        if source is not None:
            x, all_of_it = normed(block + "cross_norm.weight"), [[True] * len(source)] * len(stream)
            stream = plus(stream, sublayer_attention(w, block + "cross.", cfg, x, source, all_of_it, positions=False))
        matrices = [w[f"{block}mlp.{p}_proj.weight"] for p in ("gate", "up", "down")]
        stream = plus(stream, [swiglu(x, *matrices) for x in normed(block + "mlp_norm.weight")])
    return normed(name + "final_norm.weight")


def transformer(weights: dict[str, Tensor], cfg, tokens: list[int], source: list[int] | None = None) -> list[list[float]]:
    """The logits of each token of one sequence, from a state dict, for each of the three architectures."""
    w = {name: listed(tensor) for name, tensor in weights.items()}
    read = None
    if source is not None:
        read = stack(w, "encoder.", cfg, [w["embed.weight"][token] for token in source], causal=False)
    embedded = [w["embed.weight"][token] for token in tokens]
    spoken = stack(w, "", cfg, embedded, causal=cfg.architecture != "encoder", source=read)
    return [times(w["lm_head.weight"], x) for x in spoken]


# ── loss and optimiser ───────────────────────────────────────────────────────────────────────────


def cross_entropy_sum(logits: list[list[float]], targets: list[int], ignore: int = -100) -> float:
    return math.fsum(-math.log(softmax(z)[y]) for z, y in zip(logits, targets, strict=True) if y != ignore)


def smoothed_cross_entropy_sum(logits: list[list[float]], targets: list[int], epsilon: float, ignore: int = -100) -> float:
    """H(q, p) with q(v) = (1 − ε) δ(v, y) + ε u(v), u uniform over the V classes, y's own included."""
    total = []
    for z, y in zip(logits, targets, strict=True):
        if y != ignore:
            p, u = softmax(z), 1 / len(z)
            total += [-((1 - epsilon) * (v == y) + epsilon * u) * math.log(p[v]) for v in range(len(z))]
    return math.fsum(total)


def kl(p: list[float], q: list[float]) -> float:
    """KL(P‖Q) = Σ_v P(v) log P(v)/Q(v)"""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def symmetric_kl_sum(one: list[list[float]], other: list[list[float]]) -> float:
    pairs = [(softmax(a), softmax(b)) for a, b in zip(one, other, strict=True)]
    return math.fsum((kl(p, q) + kl(q, p)) / 2 for p, q in pairs)


def r_drop_sum(one: list[list[float]], other: list[list[float]], targets: list[int], alpha: float,
               epsilon: float = 0.0) -> float:
    """Liang et al. 2021, eq. 4, L = L_NLL + α L_KL with both passes in L_NLL; half of it."""
    nll = sum(smoothed_cross_entropy_sum(z, targets, epsilon) for z in (one, other))
    return (nll + alpha * symmetric_kl_sum(one, other)) / 2


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def label_groups_sum(logits: list, labels: list, epsilon: float = 0.0) -> float:
    """Example by example and group by group: a class number is one of C, a row of zeros and ones C questions."""
    total = []
    for i in range(len(logits[0])):
        for z, y in zip((group[i] for group in logits), (group[i] for group in labels), strict=True):
            if isinstance(y, list):
                total += [-math.log(sigmoid(a)) if said else -math.log(1 - sigmoid(a)) for a, said in zip(z, y, strict=True)]
            else:
                total.append(smoothed_cross_entropy_sum([z], [y], epsilon))
    return math.fsum(total)


def squared_norm(parameters: list[list[float]]) -> float:
    return math.fsum(value**2 for part in parameters for value in part)


def adamw(theta: list[float], gradients: list[list[float]], lr: list[float], beta1: float, beta2: float, eps: float,
          decay: float) -> list[float]:
    """Loshchilov & Hutter 2019, algorithm 2, one parameter at a time; `gradients` and `lr` hold one entry per step."""
    result = []
    for n, value in enumerate(theta):
        m = v = 0.0
        for t, (g, eta) in enumerate(zip(gradients, lr, strict=True), 1):
            m = beta1 * m + (1 - beta1) * g[n]
            v = beta2 * v + (1 - beta2) * g[n] ** 2
            m_hat, v_hat = m / (1 - beta1 ** t), v / (1 - beta2 ** t)
            value -= eta * (m_hat / (math.sqrt(v_hat) + eps) + decay * value)
        result.append(value)
    return result


def learning_rates(kind: str, highest: float, lowest: float, warmup: int, total: int) -> list[float]:
    """The whole schedule, walked from its first step to its last."""
    rates, falling = [], total - warmup
    for step in range(total):
        if step < warmup:
            rates.append(highest * (step + 1) / warmup)
            continue
        k = step - warmup  # 0 … falling − 1
        part = k / (falling - 1) if falling > 1 else 0.0
        if kind == "constant":
            rates.append(highest)
        elif kind == "linear":
            rates.append((1 - part) * highest + part * lowest)
        else:  # (1 + cos πp)/2 = cos²(πp/2)
            rates.append(lowest + (highest - lowest) * math.cos(math.pi * part / 2) ** 2)
    return rates


def clip(gradients: list[list[float]], limit: float) -> tuple[list[list[float]], float]:
    norm = math.sqrt(math.fsum(g * g for part in gradients for g in part))
    if limit == 0 or norm <= limit:
        return gradients, norm
    return [[g * limit / norm for g in part] for part in gradients], norm


# ── sampling: which tokens stay, one row at a time ───────────────────────────────────────────────


def top_k(z: list[float], k: int) -> set[int]:
    """Those that fewer than k others exceed; k = 0 keeps all."""
    return {v for v in range(len(z)) if k == 0 or sum(other > z[v] for other in z) < k}


def top_p(z: list[float], p: float) -> set[int]:
    """Take tokens, likeliest first and the lower id first among equals, until they hold p; p = 1 keeps all."""
    kept: set[int] = set()
    held = 0.0
    probabilities = softmax(z)
    for v in sorted(range(len(z)), key=lambda v: (-z[v], v)):
        if p < 1 and kept and held >= p:
            break
        kept.add(v)
        held += probabilities[v]
    return kept


def min_p(z: list[float], share: float) -> set[int]:
    probabilities = softmax(z)
    return {v for v in range(len(z)) if probabilities[v] >= share * max(probabilities)}


def repetition(z: list[float], seen: set[int], penalty: float) -> list[float]:
    return [v if i not in seen else v / penalty if v > 0 else v * penalty for i, v in enumerate(z)]


# ── classification ───────────────────────────────────────────────────────────────────────────────


def pooled(hidden: list[list[float]], real: list[bool], how: str) -> list[float]:
    """The vector of one text."""
    places = [t for t in range(len(real)) if real[t]]
    if how == "mean":
        return [math.fsum(hidden[t][d] for t in places) / len(places) for d in range(len(hidden[0]))]
    if how == "max":
        return [max(hidden[t][d] for t in places) for d in range(len(hidden[0]))]
    return hidden[places[0] if how == "first" else places[-1]]


def marks(right: list[set], said: list[set], classes: list) -> dict:
    """Counted one text and one class at a time."""
    result = {"accuracy": sum(r == s for r, s in zip(right, said)) / len(right), "classes": []}
    for c in classes:
        hits = sum(c in r and c in s for r, s in zip(right, said))
        false_alarms = sum(c not in r and c in s for r, s in zip(right, said))
        misses = sum(c in r and c not in s for r, s in zip(right, said))
        precision = hits / (hits + false_alarms) if hits + false_alarms else 0.0
        recall = hits / (hits + misses) if hits + misses else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        result["classes"].append((precision, recall, f1, hits + misses))
    result["macro_f1"] = math.fsum(f for _, _, f, _ in result["classes"]) / len(classes)
    return result


# ── adversarial training: an example is a list of rows, one a place ──────────────────────────────


def length(x: list[list[float]]) -> float:
    return math.sqrt(math.fsum(v * v for row in x for v in row))


def stretched(x: list[list[float]], factor: float) -> list[list[float]]:
    return [[factor * v for v in row] for row in x]


def steepest_l2(g: list[list[float]], eps: float) -> list[list[float]]:
    return stretched(g, eps / length(g)) if length(g) > 0 else g


def steepest_max(g: list[list[float]], eps: float) -> list[list[float]]:
    return [[eps * ((v > 0) - (v < 0)) for v in row] for row in g]


def into_ball(r: list[list[float]], eps: float) -> list[list[float]]:
    return stretched(r, eps / length(r)) if length(r) > eps else r


def ascended(r: list[list[float]], g: list[list[float]], alpha: float, eps: float) -> list[list[float]]:
    """One step of length α along g, and back into the ball."""
    step = steepest_l2(g, alpha)
    return into_ball([[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(r, step, strict=True)], eps)
