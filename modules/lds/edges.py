"""Edge probabilities: storage, exact sampling and the gradient of a factored derivative, for two kinds of support.

``DenseEdges`` lets every pair of nodes be learned: memory is one N x N matrix. ``CandidateEdges`` learns a given list
of pairs and needs memory only for these, so that tens of thousands of nodes fit. Neither ever builds an N x N matrix
per step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from modules.lds.propagation import EdgeFactors, Graph

EdgeGradient = Literal["symmetric", "upper"]
"""``symmetric``: an edge's gradient is g_ij + g_ji; ``upper``: g_ij alone, about half of it (official code)."""


class DenseEdges:
    """Probabilities of all pairs, the strict upper triangle of a square matrix.

    Args:
        theta: Shape ``(nodes, nodes)``; zero on and below the diagonal. Changed by the caller in place.
    """

    # Up to this many pairs, or on a GPU, comparing each with a random number is quicker than skipping over small ones.
    DIRECT_BELOW = 512 * 512
    # Pairs above this probability are compared one by one, the others reached by geometric skips.
    TAIL = 0.02
    # Rows of the gradient that are made by one matrix product.
    BLOCK = 256

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta
        self.nodes = theta.shape[0]
        self._split: tuple[int, Tensor, Tensor, float] | None = None

    @staticmethod
    def initial(nodes: int, edges: Tensor, weight: Tensor) -> Tensor:
        """Theta with the given probabilities on the given pairs and 0 elsewhere."""
        theta = torch.zeros(nodes, nodes, dtype=weight.dtype, device=weight.device)
        theta[edges[0], edges[1]] = weight
        return theta

    def pairs(self, above: float = 0.0) -> tuple[Tensor, Tensor]:
        """Pairs ``i < j`` of probability over ``above``, shape ``(2, pairs)``, and their probabilities."""
        pairs = (self.theta.detach() > above).nonzero().T
        return pairs, self.theta.detach()[pairs[0], pairs[1]]

    @property
    def prefers_matrix(self) -> bool:
        """Whether a sample is better had as a matrix than as a list: for few nodes, and on a GPU."""
        return self.nodes < Graph.DENSE_BELOW or self.theta.is_cuda

    @torch.no_grad()
    def sample_matrix(self, generator: torch.Generator) -> Tensor:
        """Draw every edge independently; returns a strictly upper triangular matrix of zeros and ones."""
        theta = self.theta
        uniform = torch.rand(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        return (uniform < theta).to(theta.dtype)

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw every edge independently; returns pairs ``i < j``, shape ``(2, edges)``."""
        theta = self.theta
        if theta.numel() <= self.DIRECT_BELOW or theta.is_cuda:
            return self.sample_matrix(generator).nonzero().T
        flat = theta.view(-1)
        head, head_theta, tail_max = self._head_and_tail()
        chosen = head[torch.rand(len(head), generator=generator) < head_theta]
        if tail_max > 0:
            slots = _bernoulli_positions(flat.numel(), tail_max, generator)
            slot_theta = flat[slots]
            accept = torch.rand(len(slots), generator=generator) * tail_max < slot_theta
            chosen = torch.cat([chosen, slots[accept & (slot_theta <= self.TAIL)]])
        return torch.stack([chosen // self.nodes, chosen % self.nodes])

    @torch.no_grad()
    def accumulate(self, factors: EdgeFactors, gradient: Tensor, kind: EdgeGradient) -> None:
        """Add the gradient with respect to theta to ``gradient``, which stays strictly upper triangular."""
        left, right = factors
        if kind == "symmetric":
            left, right = torch.cat([left, right], dim=1), torch.cat([right, left], dim=1)
        transposed = right.T.contiguous()
        for start in range(0, self.nodes, self.BLOCK):
            stop = min(start + self.BLOCK, self.nodes)
            block = gradient[start:stop, start:]
            block.addmm_(left[start:stop], transposed[:, start:])
            block[:, : stop - start].triu_(1)

    def _head_and_tail(self) -> tuple[Tensor, Tensor, float]:
        """Indices and probabilities of the likely pairs, and the largest probability of the others."""
        version = self.theta._version
        if self._split is None or self._split[0] != version:
            flat = self.theta.view(-1)
            head = (flat > self.TAIL).nonzero().squeeze(1)
            head_theta = flat[head]
            # Largest of the rest, without a second N x N buffer.
            tail_max = max((float(torch.where(p > self.TAIL, 0, p).max()) for p in flat.split(1 << 20)), default=0.0)
            self._split = (version, head, head_theta, tail_max)
        return self._split[1:]


class CandidateEdges:
    """Probabilities of a fixed list of pairs.

    Args:
        theta: Shape ``(pairs,)``. Changed by the caller in place.
        candidates: The pairs ``i < j``, shape ``(2, pairs)``, int64.
    """

    # Elements of the gathered factors held at once.
    CHUNK = 1 << 23

    def __init__(self, theta: Tensor, candidates: Tensor) -> None:
        self.theta = theta
        self.candidates = candidates

    @staticmethod
    def initial(nodes: int, candidates: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        """Theta with the given probabilities on the given pairs and 0 on the other candidates.

        Raises:
            ValueError: If an edge is not among the candidates.
        """
        key, order = (candidates[0] * nodes + candidates[1]).sort()
        wanted = edges[0] * nodes + edges[1]
        found = torch.searchsorted(key, wanted).clamp_(max=max(len(key) - 1, 0))
        if len(wanted) and (len(key) == 0 or not torch.equal(key[found], wanted)):
            raise ValueError("candidates must hold every edge of the initial graph")
        theta = torch.zeros(candidates.shape[1], dtype=weight.dtype, device=weight.device)
        theta[order[found]] = weight
        return theta

    def pairs(self, above: float = 0.0) -> tuple[Tensor, Tensor]:
        """Pairs ``i < j`` of probability over ``above``, shape ``(2, pairs)``, and their probabilities."""
        chosen = self.theta.detach() > above
        return self.candidates[:, chosen], self.theta.detach()[chosen]

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw every edge independently; returns pairs ``i < j``, shape ``(2, edges)``."""
        theta = self.theta
        uniform = torch.rand(theta.shape, generator=generator, dtype=theta.dtype, device=theta.device)
        return self.candidates[:, uniform < theta]

    @torch.no_grad()
    def accumulate(self, factors: EdgeFactors, gradient: Tensor, kind: EdgeGradient) -> None:
        """Add the gradient with respect to theta, shape ``(pairs,)``."""
        left, right = factors
        size = max(self.CHUNK // left.shape[1], 1)
        for pairs, part in zip(self.candidates.split(size, dim=1), gradient.split(size)):
            i, j = pairs
            part += (left[i] * right[j]).sum(1)
            if kind == "symmetric":
                part += (left[j] * right[i]).sum(1)


def add_random_edges(
    nodes: int, pairs: Tensor, weight: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Add uniformly random edges of weight 1, as GCN-RND does at each step (a control for the effect of noise alone).

    Args:
        nodes: Number of nodes.
        pairs: The graph's own edges ``i < j``, shape ``(2, edges)``; they keep their weights.
        weight: Their weights, shape ``(edges,)``.
        share: Random edges that are drawn, as a share of the graph's own.
        generator: Source of random numbers.

    Returns:
        Pairs and weights of the union.
    """
    drawn = torch.randint(nodes, (2, round(share * pairs.shape[1])), generator=generator, device=pairs.device)
    low, high = drawn.sort(0).values
    fresh = (low * nodes + high)[low < high].unique()
    own = pairs[0] * nodes + pairs[1]
    fresh = fresh[~torch.isin(fresh, own)]
    union = torch.cat([pairs, torch.stack([fresh // nodes, fresh % nodes])], dim=1)
    return union, torch.cat([weight, weight.new_ones(len(fresh))])


def _bernoulli_positions(size: int, p: float, generator: torch.Generator) -> Tensor:
    """Positions of the successes of ``size`` independent Bernoulli(p) trials, in time proportional to their number."""
    log_q = torch.log1p(torch.tensor(-p, dtype=torch.float64))
    parts: list[Tensor] = []
    last = -1
    while last < size:
        count = int((size - last) * p + 6 * ((size - last) * p) ** 0.5) + 16
        uniform = 1 - torch.rand(count, generator=generator, dtype=torch.float64)  # in (0, 1]: its log is finite
        gaps = (uniform.log() / log_q).clamp_(max=size).to(torch.int64) + 1
        positions = last + gaps.cumsum(0)
        parts.append(positions)
        last = int(positions[-1])
    positions = torch.cat(parts)
    return positions[positions < size]
