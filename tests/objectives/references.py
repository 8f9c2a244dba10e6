"""Slow float64 formulations of the objectives, item by item, written from their formulas."""

import itertools
import math

import torch


def cross_entropy(scores, asks, answers, smoothing=0.0):
    """-log softmax of the own item, candidate by candidate, target spread by label smoothing; a list over items that have both sides."""
    terms = []
    for i in range(len(scores)):
        if asks[i] and answers[i]:
            candidates = [float(scores[i, j]) for j in range(len(scores)) if answers[j]]
            top = max(candidates)
            log_total = top + math.log(sum(math.exp(c - top) for c in candidates))
            right = (1 - smoothing) * float(scores[i, i]) + smoothing * sum(candidates) / len(candidates)
            terms.append(log_total - right)
    return terms


def both_ways(scores, asks, answers, smoothing=0.0):
    there = cross_entropy(scores, asks, answers, smoothing)
    back = cross_entropy(scores.T, answers, asks, smoothing)
    return (sum(there) + sum(back)) / (2 * len(there)) if there else 0.0


def pairs_mean(z, mask, pairs, factors):
    terms = []
    for (a, b), factor in zip(pairs, factors, strict=True):
        if int((mask[:, a] & mask[:, b]).sum()) > 1:
            terms.append(both_ways(factor * z[:, a] @ z[:, b].T, mask[:, a], mask[:, b]))
    return sum(terms) / len(terms) if terms else 0.0


def clip(z, mask, temperature):
    pairs = list(itertools.combinations(range(z.shape[1]), 2))
    return pairs_mean(z, mask, pairs, [1 / temperature] * len(pairs))


def to_anchor(z, mask, anchor, factors):
    others = [m for m in range(z.shape[1]) if m != anchor]
    return pairs_mean(z, mask, [(anchor, m) for m in others], factors)


def svd_sign_fixed(columns):
    """(singular values padded to the number of columns, u1 pointing with the sum of the columns)."""
    u, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    sign = 1.0 if float(u[:, 0] @ columns.sum(dim=1)) >= 0 else -1.0
    return torch.cat([sigma, sigma.new_zeros(columns.shape[1] - len(sigma))]), sign * u[:, 0]


def pmrl(z, mask, tau1, tau2, power=1, squared=False):
    alignment, anchors = [], []
    for item, shown in zip(z, mask, strict=True):
        if not shown.any():
            continue
        sigma, anchor = svd_sign_fixed(item[shown].T)
        anchors.append(anchor)
        if int(shown.sum()) >= 2:
            values = [float(s) ** power / tau1 for s in sigma]
            alignment.append(math.log(sum(math.exp(v - values[0]) for v in values)))
    cosines = torch.stack(anchors) @ torch.stack(anchors).T
    everyone = [True] * len(anchors)
    uniformity = cross_entropy((cosines**2 if squared else cosines) / tau2, everyone, everyone)
    return (sum(alignment) / len(alignment) if alignment else 0.0) + sum(uniformity) / len(uniformity)


def rest(z, mask, query):
    others = [m for m in range(z.shape[1]) if m != query]
    return others, mask[:, query], mask[:, others].any(dim=1)


def table(z, mask, query, score):
    """score(query vector, [shown other vectors of j]) for every i and j, 0 where j shows nothing else."""
    others, _, answers = rest(z, mask, query)
    scores = torch.zeros(len(z), len(z), dtype=z.dtype)
    for i, j in itertools.product(range(len(z)), repeat=2):
        if mask[i, query] and answers[j]:
            scores[i, j] = score(z[i, query], [z[j, m] for m in others if mask[j, m]])
    return scores


def volume(query, vectors):
    stacked = torch.stack([query, *vectors])
    return float(torch.linalg.det(stacked @ stacked.T)) ** 0.5


def gram(z, mask, query, temperature, smoothing, epsilon):
    _, asks, answers = rest(z, mask, query)
    scores = table(z, mask, query, lambda t, v: -math.sqrt(max(volume(t, v) ** 2, 0.0) + epsilon))
    return both_ways(scores / temperature, asks, answers, smoothing)


def triangle_area(first, second, third):
    """Heron's formula from the three side lengths."""
    a, b, c = (float((p - q).norm()) for p, q in ((first, second), (second, third), (third, first)))
    s = (a + b + c) / 2
    return math.sqrt(max(s * (s - a) * (s - b) * (s - c), 0.0))


def triangle(z, mask, query, corners, form, temperature, smoothing, epsilon):
    both = mask[:, corners].all(dim=1)
    scores = torch.zeros(len(z), len(z), dtype=z.dtype)
    for i, j in itertools.product(range(len(z)), repeat=2):
        if mask[i, query] and both[j]:
            area = triangle_area(z[i, query], z[j, corners[0]], z[j, corners[1]])
            scores[i, j] = -2 * area**2 if form == "squared" else -math.sqrt(4 * area**2 + epsilon) / 2
    return both_ways(scores / temperature, mask[:, query], both, smoothing)


def vast(z, mask, query, maps, temperature, smoothing):
    """`maps`: tuple of places among the others -> matrix of the concatenation."""
    others, asks, answers = rest(z, mask, query)
    scores = torch.zeros(len(z), len(z), dtype=z.dtype)
    for j in range(len(z)):
        places = tuple(p for p, m in enumerate(others) if mask[j, m])
        if places:
            joined = torch.cat([z[j, others[p]] for p in places])
            fused = joined if len(places) == 1 else joined @ maps[places]
            scores[:, j] = z[:, query] @ (fused / fused.norm())
    return both_ways(scores / temperature, asks, answers, smoothing)


def centroid_cosine(query, vectors, temperature):
    weights = torch.softmax(torch.stack([query @ v for v in vectors]) / temperature, dim=0)
    centroid = sum(w * v for w, v in zip(weights, vectors, strict=True))
    return float(query @ centroid / centroid.norm())


def scalar(z, mask, query, temperature, weight_temperature):
    _, asks, answers = rest(z, mask, query)
    scores = table(z, mask, query, lambda t, v: centroid_cosine(t, v, weight_temperature))
    return both_ways(scores / temperature, asks, answers)


def spread(z, mask):
    """Mean over modalities of log mean exp(-2 ||x - y||^2) over ordered pairs of different items that show it."""
    terms = []
    for m in range(z.shape[1]):
        rows = [z[i, m] for i in range(len(z)) if mask[i, m]]
        pairs = [math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.permutations(rows, 2)]
        if pairs:
            terms.append(math.log(sum(pairs) / len(pairs)))
    return sum(terms) / len(terms) if terms else 0.0


def symile_all(z, mask, temperature, arity):
    """Every combination of items as negatives."""
    anchors = []
    for a in range(z.shape[1]):
        losses = []
        for i in range(len(z)):
            subset = [m for m in range(z.shape[1]) if m != a and mask[i, m]]
            if not mask[i, a] or not subset:
                continue

            def logit(sources, i=i, a=a, subset=subset):
                product = z[i, a].clone()
                for source, m in zip(sources, subset, strict=True):
                    product = product * z[source, m]
                return float(product.sum()) * arity ** (len(subset) - 1) / temperature

            have = [[j for j in range(len(z)) if mask[j, m]] for m in subset]
            total = sum(math.exp(logit(sources)) for sources in itertools.product(*have))
            losses.append(math.log(total) - logit([i] * len(subset)))
        if len(losses) > 1:
            anchors.append(sum(losses) / len(losses))
    return sum(anchors) / len(anchors) if anchors else 0.0


def nt_xent(first, second, valid, temperature):
    rows = [(view, i) for view in (0, 1) for i in range(len(first)) if valid[i]]
    vector = {(view, i): (first, second)[view][i] for view, i in rows}
    losses = []
    for own in rows:
        total = sum(math.exp(float(vector[own] @ vector[other]) / temperature) for other in rows if other != own)
        losses.append(math.log(total) - float(vector[own] @ vector[1 - own[0], own[1]]) / temperature)
    return sum(losses) / len(losses) if len(rows) > 2 else 0.0


def comm_start(z, mask, temperature):
    """Without noise and with the fusion it starts from, the normalised mean of what is visible."""
    able = mask.sum(dim=1) >= 2
    whole = torch.stack(
        [(item[shown].mean(dim=0) if shown.any() else item[0] * 0) for item, shown in zip(z, mask, strict=True)]
    )
    whole = torch.nn.functional.normalize(whole, dim=1)
    total = nt_xent(whole, whole, able, temperature)
    for m in range(z.shape[1]):
        total += nt_xent(torch.nn.functional.normalize(z[:, m], dim=1), whole, able & mask[:, m], temperature)
    return total
