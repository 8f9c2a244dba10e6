"""Slow float64 formulations of the objectives, item by item, written from their formulas; torch differentiates them.

Every one takes embeddings z [B, k, d] whose hidden entries are never read, and gives a scalar. `groups` are those of `Objective.forward`.
Where a method draws, it draws what the method says, in its order, from the generator given.
"""

import itertools

import torch
from torch.nn import functional

ZERO = torch.zeros((), dtype=torch.float64)


def mean(terms):
    return torch.stack(terms).mean() if terms else ZERO


def mates(groups, i, count):
    """Positions of the items of i's group, i included."""
    return [j for j in range(count) if (j == i if groups is None else int(groups[j]) == int(groups[i]))]


def cross_entropy(scores, asks, answers, smoothing=0.0, groups=None):
    """-log softmax of what is right for each item that asks: its own answer, or those of its group in equal parts; a dict by item."""
    terms = {}
    for i in range(len(scores)):
        candidates = [j for j in range(len(scores)) if answers[j]]
        right = [j for j in mates(groups, i, len(scores)) if answers[j]]
        if asks[i] and right:
            target = (1 - smoothing) * scores[i, right].mean() + smoothing * scores[i, candidates].mean()
            terms[i] = torch.logsumexp(scores[i, candidates], dim=0) - target
    return terms


def both_ways(scores, asks, answers, smoothing=0.0, groups=None):
    """(mean of both directions, the items that asked in either)."""
    there = cross_entropy(scores, asks, answers, smoothing, groups)
    back = cross_entropy(scores.T, answers, asks, smoothing, groups)
    return (mean(list(there.values())) + mean(list(back.values()))) / 2, there.keys() | back.keys()


def pairs_mean(z, mask, pairs, factors, groups=None):
    terms = []
    for (a, b), factor in zip(pairs, factors, strict=True):
        term, asked = both_ways(factor * z[:, a] @ z[:, b].T, mask[:, a], mask[:, b], 0.0, groups)
        if len(asked) > 1:
            terms.append(term)
    return mean(terms)


def clip(z, mask, factor, groups=None):
    pairs = list(itertools.combinations(range(z.shape[1]), 2))
    return pairs_mean(z, mask, pairs, [factor] * len(pairs), groups)


def to_anchor(z, mask, anchor, factors, groups=None):
    others = [m for m in range(z.shape[1]) if m != anchor]
    return pairs_mean(z, mask, [(anchor, m) for m in others], factors, groups)


def svd_sign_fixed(columns):
    """(singular values padded to the number of columns, u1 pointing with the sum of the columns)."""
    u, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    sign = 1.0 if bool(u[:, 0] @ columns.sum(dim=1) >= 0) else -1.0
    return sigma, sign * u[:, 0]


def pmrl(z, mask, tau1, tau2, power=1, squared=False, groups=None):
    alignment, anchors, places = [], [], []
    for place, (item, shown) in enumerate(zip(z, mask, strict=True)):
        if not shown.any():
            continue
        sigma, anchor = svd_sign_fixed(item[shown].T)
        anchors.append(anchor)
        places.append(place)
        if int(shown.sum()) >= 2:
            values = sigma**power / tau1
            alignment.append(torch.logsumexp(values, dim=0) - values[0])
    uniformity = []
    for i, own in enumerate(anchors):
        akin = [] if groups is None else mates(groups, places[i], len(z))
        cosines = torch.stack([own @ other for j, other in enumerate(anchors) if j == i or places[j] not in akin])
        logits = (cosines**2 if squared else cosines) / tau2
        uniformity.append(torch.logsumexp(logits, dim=0) - (own @ own) ** (2 if squared else 1) / tau2)
    return mean(alignment) + mean(uniformity)


def matching(head, queries, contexts, able, generator, logits, groups=None):
    """Two-way cross-entropy of true pairs and of pairs with a hard negative on either side; `able` items only. Negatives by softmax of `logits`."""
    count = len(able)
    uniform = 1 - torch.rand(count, 2, generator=generator, dtype=torch.float64)
    logits = logits.detach()
    takes_part = [j for j in range(count) if able[j]]
    possible = {i: [j for j in range(count) if able[j] and j not in mates(groups, i, count)] for i in range(count) if able[i]}

    def drawn(scores, allowed, u):
        total = sum(torch.exp(scores[j] - scores[takes_part].max()) for j in takes_part)
        weights = [torch.exp(scores[j] - scores[takes_part].max()) / total + 1e-4 for j in range(count)]
        edges = torch.stack([weights[j] if j in allowed else ZERO for j in range(count)]).cumsum(dim=0)
        return next(j for j in range(count) if edges[j] >= u * edges[-1])

    def surprise(i, j, together):
        t, c = queries[i], contexts[j]
        hidden = functional.gelu(head.first(torch.cat([t, c, t * c, (t - c).abs()])))
        return -torch.log_softmax(head.last(hidden), dim=0)[int(together)]

    terms = []
    for i, allowed in possible.items():
        if any(possible.values()):
            terms.append(surprise(i, i, True))
        if allowed:
            terms.append(surprise(i, drawn(logits[i], allowed, uniform[i, 0]), False))
            terms.append(surprise(drawn(logits[:, i], allowed, uniform[i, 1]), i, False))
    return mean(terms)


def unit(vector):
    return vector / vector.norm()


def spectral_sides(z, mask, query):
    """(queries, contexts, able): the query modality or the first shown, against the normalised sum of the others shown."""
    queries, contexts, able = [], [], []
    for item, shown in zip(z, mask, strict=True):
        there = [m for m in range(z.shape[1]) if shown[m]]
        nothing = torch.zeros_like(item[0])
        asking = query if shown[query] else (there[0] if there else None)
        others = [item[m] for m in there if m != asking]
        queries.append(nothing if asking is None else item[asking])
        contexts.append(unit(sum(others)) if others else nothing)
        able.append(bool(others))
    return torch.stack(queries), torch.stack(contexts), able


def sides(z, mask, query):
    """(others, whether an item asks, whether it answers, queries, contexts) of objectives where one modality asks."""
    others = [m for m in range(z.shape[1]) if m != query]
    nothing = torch.zeros_like(z[0, 0])
    queries = torch.stack([item[query] if shown[query] else nothing for item, shown in zip(z, mask, strict=True)])
    sums = [[item[m] for m in others if shown[m]] for item, shown in zip(z, mask, strict=True)]
    contexts = torch.stack([unit(sum(vectors)) if vectors else nothing for vectors in sums])
    return others, mask[:, query], mask[:, others].any(dim=1), queries, contexts


def table(z, mask, query, score, answers=None):
    """score(query vector, [shown other vectors of j]) for every i and j, 0 where j does not answer."""
    others, asks, shows, _, _ = sides(z, mask, query)
    answers = shows if answers is None else answers
    rows = []
    for i in range(len(z)):
        row = [
            score(z[i, query], [z[j, m] for m in others if mask[j, m]]) if asks[i] and answers[j] else ZERO
            for j in range(len(z))
        ]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def volume(query, vectors):
    stacked = torch.stack([query, *vectors])
    return torch.linalg.det(stacked @ stacked.T).clamp_min(0.0).sqrt()


def gram_scores(z, mask, query, epsilon):
    def score(t, vectors):
        stacked = torch.stack([t, *vectors])
        return -(torch.linalg.det(stacked @ stacked.T).clamp_min(0.0) + epsilon).sqrt()

    return table(z, mask, query, score)


def gram(z, mask, query, temperature, smoothing, epsilon, groups=None):
    _, asks, answers, _, _ = sides(z, mask, query)
    return both_ways(gram_scores(z, mask, query, epsilon) / temperature, asks, answers, smoothing, groups)[0]


def triangle_area(first, second, third):
    """Half the length of one side times the height over it."""
    side, other = second - first, third - first
    height = other - (other @ side) / (side @ side) * side
    return side.norm() * height.norm() / 2


def triangle_scores(z, mask, query, corners, form, epsilon):
    both = mask[:, corners].all(dim=1)
    rows = []
    for i in range(len(z)):
        row = []
        for j in range(len(z)):
            if mask[i, query] and both[j]:
                area = triangle_area(z[i, query], z[j, corners[0]], z[j, corners[1]])
                row.append(-2 * area**2 if form == "squared" else -(4 * area**2 + epsilon).sqrt() / 2)
            else:
                row.append(ZERO)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def triangle(z, mask, query, corners, form, temperature, smoothing, epsilon, groups=None):
    scores = triangle_scores(z, mask, query, corners, form, epsilon) / temperature
    return both_ways(scores, mask[:, query], mask[:, corners].all(dim=1), smoothing, groups)[0]


def fused(z, mask, others, maps):
    """One vector per item: what a single modality says, or the map of exactly the combination it shows."""
    vectors = []
    for item, shown in zip(z, mask, strict=True):
        places = tuple(p for p, m in enumerate(others) if shown[m])
        if not places:
            vectors.append(torch.zeros_like(item[0]))
            continue
        joined = torch.cat([item[others[p]] for p in places])
        vectors.append(unit(joined if len(places) == 1 else joined @ maps[places]))
    return torch.stack(vectors)


def vast(z, mask, query, maps, temperature, smoothing, groups=None):
    """`maps`: tuple of places among the others -> matrix of the concatenation."""
    others, asks, answers, queries, _ = sides(z, mask, query)
    scores = queries @ fused(z, mask, others, maps).T
    return both_ways(scores / temperature, asks, answers, smoothing, groups)[0]


def centroid_cosine(query, vectors, temperature):
    weights = torch.softmax(torch.stack([query @ v for v in vectors]) / temperature, dim=0)
    centroid = sum(w * v for w, v in zip(weights, vectors, strict=True))
    return query @ centroid / centroid.norm()


def centroid_scores(z, mask, query, weight_temperature):
    return table(z, mask, query, lambda t, v: centroid_cosine(t, v, weight_temperature))


def scalar(z, mask, query, temperature, weight_temperature, groups=None):
    _, asks, answers, _, _ = sides(z, mask, query)
    scores = centroid_scores(z, mask, query, weight_temperature)
    return both_ways(scores / temperature, asks, answers, 0.0, groups)[0]


def consistency(z, mask, query, temperature, weight_temperature, generator):
    """KL divergence from the softmax over items with one random other modality less to that with all, mean over the items that ask."""
    others, asks, answers, _, _ = sides(z, mask, query)
    drawn = torch.rand(len(z), len(others), generator=generator)
    fewer = mask.clone()
    for i in range(len(z)):
        there = [p for p, m in enumerate(others) if mask[i, m]]
        if len(there) >= 2:
            fewer[i, others[max(there, key=lambda p: drawn[i, p].item())]] = False
    if torch.equal(fewer, mask):
        return ZERO
    full, reduced = (
        table(z, shown, query, lambda t, v: centroid_cosine(t, v, weight_temperature)) / temperature for shown in (mask, fewer)
    )
    candidates = [j for j in range(len(z)) if answers[j]]
    terms = []
    for i in candidates:
        if asks[i]:
            wanted = torch.log_softmax(full[i, candidates].detach(), dim=0)
            terms.append((wanted.exp() * (wanted - torch.log_softmax(reduced[i, candidates], dim=0))).sum())
    return mean(terms)


def spread(z, mask, groups=None):
    """Mean over modalities of log mean exp(-2 ||x - y||^2) over ordered pairs of items of different groups that show it."""
    terms = []
    for m in range(z.shape[1]):
        there = [i for i in range(len(z)) if mask[i, m]]
        pairs = [(i, j) for i in there for j in there if j not in mates(groups, i, len(z))]
        if pairs:
            terms.append(torch.stack([torch.exp(-2 * (z[i, m] - z[j, m]).square().sum()) for i, j in pairs]).mean().log())
    return mean(terms)


def symile(z, mask, factor, arity, sources=None, groups=None):
    """Every combination of items as negatives, or, with `sources` (modality -> a list of B items), the B tuples that these name."""
    count = len(z)
    anchors = []
    for a in range(z.shape[1]):
        losses = []
        for i in range(count):
            subset = [m for m in range(z.shape[1]) if m != a and mask[i, m]]
            if not mask[i, a] or not subset:
                continue

            def logit(chosen, i=i, a=a, subset=subset):
                product = z[i, a]
                for source, m in zip(chosen, subset, strict=True):
                    product = product * z[source, m]
                return product.sum() * arity ** (len(subset) - 1) * factor

            if sources is None:
                tuples = list(itertools.product(*[[j for j in range(count) if mask[j, m]] for m in subset]))
            else:
                # Column i of the B x B logits holds the positive, so tuple number i is nobody's negative there.
                tuples = [tuple(sources[m][b] for m in subset) for b in range(count) if b != i]
            akin = mates(groups, i, count)
            negatives = [logit(chosen) for chosen in tuples if any(source not in akin for source in chosen)]
            right = logit([i] * len(subset))
            losses.append(torch.logsumexp(torch.stack([right, *negatives]), dim=0) - right)
        if len(losses) > 1:
            anchors.append(mean(losses))
    return mean(anchors)


def shuffled(mask, generator):
    """For each modality the items that show it in random order, over and over: a list of B."""
    keys = torch.rand(mask.shape, generator=generator)
    sources = {}
    for m in range(mask.shape[1]):
        there = sorted((i for i in range(len(mask)) if mask[i, m]), key=lambda i: keys[i, m].item())
        sources[m] = list(itertools.islice(itertools.cycle(there or [0]), len(mask)))
    return sources


def nt_xent(first, second, valid, temperature, groups=None):
    rows = [(view, i) for view in (0, 1) for i in range(len(first)) if valid[i]]
    vectors = torch.stack([(first, second)[view][i] for view, i in rows]) if rows else first
    losses = []
    for place, (view, i) in enumerate(rows):
        akin = mates(groups, i, len(first))
        partner = rows.index((1 - view, i))
        kept = [p for p, (_, j) in enumerate(rows) if p == partner or j not in akin]
        logits = vectors[place] @ vectors.T / temperature
        losses.append(torch.logsumexp(logits[kept], dim=0) - logits[partner])
    return mean(losses) if len(rows) > 2 else ZERO


def comm(z, mask, fusion, temperature, noise, generator, groups=None):
    """`fusion`: maps A_m, places e_m, inner and outer matrix of the network that fuses h = mean of A_m z_m + e_m to h + MLP(h)."""
    able = mask.sum(dim=1) >= 2
    views = []
    for _ in range(2):
        drawn = torch.randn(z.shape, generator=generator).double() if noise else None
        views.append([])
        for i, (item, shown) in enumerate(zip(z, mask, strict=True)):
            row = []
            for m in range(z.shape[1]):
                if not shown[m]:
                    row.append(None)
                    continue
                vector = item[m] if drawn is None else unit(item[m] + drawn[i, m] * noise * z.shape[2] ** -0.5)
                row.append(vector @ fusion.maps[m] + fusion.places[m])
            views[-1].append(row)

    def together(view, visible):
        vectors = []
        for row, seen in zip(view, visible, strict=True):
            shown = [vector for m, vector in enumerate(row) if seen[m]]
            h = torch.stack(shown).mean(dim=0) if shown else torch.ones_like(z[0, 0])
            vectors.append(unit(h + functional.gelu(h @ fusion.inner) @ fusion.outer))
        return torch.stack(vectors)

    wholes = [together(view, mask) for view in views]
    total = nt_xent(wholes[0], wholes[1], able, temperature, groups)
    for m in range(z.shape[1]):
        only = torch.zeros_like(mask)
        only[:, m] = mask[:, m]
        alone = [together(view, only) for view in views]
        taking = able & mask[:, m]
        there, back = (nt_xent(alone[v], wholes[1 - v], taking, temperature, groups) for v in (0, 1))
        total = total + (there + back) / 2
    return total


def gated_symile(z, mask, gate, factor, distillation, groups=None):
    """(contrast, distillation) against all other items: one product for each item, target modality and candidate."""
    contrasts, distances = [], []
    for t in range(z.shape[1]):
        losses, apart = [], []
        for i in range(len(z)):
            others = [m for m in range(z.shape[1]) if m != t and mask[i, m]]
            if not mask[i, t] or not others:
                continue

            def gated(candidate, i=i, t=t, others=others):
                temperature = functional.softplus(gate.log_temperature) + 0.1
                asked = unit(candidate @ gate.queries[t])
                logits = [asked @ unit(z[i, m] @ gate.keys[m]) for m in others]
                inner = torch.relu(functional.layer_norm(candidate, candidate.shape) @ gate.null_inner)
                logits.append((inner @ gate.null_outer).squeeze() + gate.null_bias[t])
                trust = torch.softmax(torch.stack(logits) / temperature, dim=0)
                a = torch.sigmoid(gate.strength)
                return {
                    m: unit((1 - a) * z[i, m] + a * (w * z[i, m] + (1 - w) * unit(gate.neutral[m])))
                    for m, w in zip(others, trust, strict=False)
                }

            def logit(candidate, others=others, gated=gated):
                product, made = candidate, gated(candidate)
                for m in others:
                    product = product * made[m]
                return factor * product.sum() * z.shape[2] ** (len(others) / 2)

            akin = mates(groups, i, len(z))
            negatives = [logit(z[j, t]) for j in range(len(z)) if mask[j, t] and j not in akin]
            right = logit(z[i, t])
            losses.append(torch.logsumexp(torch.stack([right, *negatives]), dim=0) - right)
            teacher = gated(z[i, t])
            apart.append(sum((z[i, m] - teacher[m].detach()).square().mean() for m in others) / mask[i].sum())
        if len(losses) > 1:
            contrasts.append(mean(losses))
            distances.append(mean(apart))
    return mean(contrasts) + distillation * mean(distances)


def pair_fusion(head, x, y):
    hidden = torch.relu(torch.cat([x, y]) @ head.inner + head.inner_bias)
    return unit(functional.leaky_relu(hidden @ head.outer + head.outer_bias, 0.2))


def confu(z, mask, heads, temperature, fused_share, groups=None):
    """`heads`: (a, b) -> fusion head of the pair."""
    pairs = pairs_mean(z, mask, list(heads), [1 / temperature] * len(heads), groups)
    if z.shape[1] < 3:
        return pairs
    terms = []
    for (a, b), head in heads.items():
        both = mask[:, a] & mask[:, b]
        nothing = torch.zeros_like(z[0, 0])
        joint = torch.stack([pair_fusion(head, item[a], item[b]) if ok else nothing for item, ok in zip(z, both, strict=True)])
        for third in range(z.shape[1]):
            if third not in (a, b):
                side = torch.where(mask[:, third, None], z[:, third], 0.0)
                term, asked = both_ways(joint @ side.T / temperature, both, mask[:, third], 0.0, groups)
                if len(asked) > 1:
                    terms.append(term)
    return ((1 - fused_share) * pairs + fused_share * mean(terms)) / 2
