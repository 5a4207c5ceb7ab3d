"""Drawing tokens and scoring them on the device: what `reference/sampling.py` defines, for all draws of a step at once.

Steps that no draw of a step asks for are left out: a step of greedy draws is one argmax. Logits and weights are
float32, weights are summed in float64 in the order of their ids, and random numbers are the reference's. This file
knows nothing of models or rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvik.runners.cuda.draw_edits import Edits, edits_of
from kvik.runners.cuda.uniform import uniforms
from kvik.runners.reference.sampling import COLDEST
from kvik.step import Float32, Int32, SamplePlan, ScorePlan, TopLogprobs

CHUNK = 512
"""Tokens whose weights are summed together in the search for the one that is drawn."""
Drawn = tuple[Int32, "NDArray[np.bool_]", TopLogprobs]


@dataclass(frozen=True)
class Sampler:
    """Draws from logits on this device."""

    device: torch.device

    def draw(self, plan: SamplePlan, logits: torch.Tensor) -> Drawn:
        """Token ids [S], failed [S] and log-probabilities [S]; row s of logits [S, V] float32 belongs to draw s."""
        tokens = self._tokens(plan, logits) if len(plan) else torch.zeros(0, dtype=torch.int64)
        host = tokens.cpu().numpy().astype(np.int32)
        wanted = np.where(host >= 0, plan.num_logprobs, -1) if len(plan) else plan.num_logprobs
        return host, host < 0, self.report(logits, host, wanted, ask_usable=False)

    def score(self, plan: ScorePlan, logits: torch.Tensor) -> TopLogprobs:
        """Log-probabilities [Q] of targets; row q of logits [Q, V] belongs to entry q."""
        return self.report(logits, plan.targets, plan.num_top, ask_usable=True)

    def report(self, logits: torch.Tensor, tokens: Int32, num_top: Int32, *, ask_usable: bool) -> TopLogprobs:
        """The log-probability of each token and the `num_top` likeliest beside it; below 0 nothing is reported."""
        count, width = len(tokens), max(0, int(num_top.max(initial=0)))
        out = TopLogprobs(
            np.zeros(count, np.float32), np.full((count, width), -1, np.int32), np.zeros((count, width), np.float32)
        )
        rows = np.flatnonzero(num_top >= 0)
        if not len(rows):
            return out
        picked = logits[torch.from_numpy(rows).to(self.device)]
        values = log_softmax(picked)
        targets = torch.from_numpy(tokens[rows].astype(np.int64)).to(self.device)
        usable = picked.amax(dim=-1).isfinite().cpu().numpy()
        own = values.gather(1, targets[:, None])[:, 0].cpu().numpy()
        out.logprobs[rows] = np.where(usable, own, np.float32(np.nan))
        kept = min(width, logits.shape[1])
        ids = torch.topk(order_keys(picked), kept).indices
        asked = usable[:, None] & (np.arange(kept) < num_top[rows, None])
        out.top_ids[rows, :kept] = np.where(asked, ids.cpu().numpy(), -1)
        out.top_logprobs[rows, :kept] = np.where(asked, values.gather(1, ids).cpu().numpy(), np.float32(0))
        return out

    def _tokens(self, plan: SamplePlan, logits: torch.Tensor) -> torch.Tensor:
        """[S] the token drawn, -1 where the logits, the model's own or the adjusted ones, are not usable."""
        usable = logits.amax(dim=-1).isfinite()
        edits = edits_of(plan, logits.shape[1])
        if edits is not None:
            logits = self._adjusted(edits, logits)
            usable &= logits.amax(dim=-1).isfinite()
        tokens = logits.argmax(dim=-1)
        warm = np.flatnonzero(plan.temperature > 0)
        if len(warm):
            rows = torch.from_numpy(warm).to(self.device)
            tokens[rows] = self._warm(plan, warm, logits[rows])
        return torch.where(usable, tokens, torch.full_like(tokens, -1))

    def _adjusted(self, edits: Edits, logits: torch.Tensor) -> torch.Tensor:
        """A copy after mask, bias and penalties."""
        values = logits.clone()
        if edits.masked is not None:
            rows, words = self._there(edits.masked.rows), self._there(edits.masked.words.view(np.int32))
            token = torch.arange(values.shape[1], device=self.device)
            inside = token < 32 * words.shape[1]
            allowed = words[:, torch.where(inside, token // 32, 0)] >> (token % 32) & 1
            values[rows] = values[rows].masked_fill((allowed == 0) | ~inside, float("-inf"))
        for bias in edits.biases:
            values[self._there(bias.rows), self._there(bias.tokens)] += self._there(bias.values)
        if edits.penalties is not None:
            at = (self._there(edits.penalties.rows), self._there(edits.penalties.tokens))
            seen, repetition = values[at], self._there(edits.penalties.repetition)
            seen = torch.where(seen > 0, seen / repetition, seen * repetition)
            values[at] = seen - self._there(edits.penalties.subtract)
        return values

    def _warm(self, plan: SamplePlan, draws: NDArray[np.intp], logits: torch.Tensor) -> torch.Tensor:
        """[s] the tokens of draws above temperature 0; logits [s, V] are theirs."""
        inverse = np.float32(1) / np.maximum(plan.temperature[draws], COLDEST)
        weight = torch.exp((logits - logits.amax(dim=-1, keepdim=True)) * self._there(inverse)[:, None])
        min_p, top_k, top_p = plan.min_p[draws], plan.top_k[draws], plan.top_p[draws]
        if (min_p > 0).any():
            least = self._there(np.minimum(min_p, np.float32(1)))[:, None]
            weight = torch.where((weight < least) & (least > 0), torch.zeros_like(weight), weight)
        if (top_k > 0).any() or (top_p < 1).any():
            weight = self._filtered(logits, weight, top_k, top_p)
        u = uniforms(plan.seeds[draws], plan.positions[draws])
        return inverse_cdf(weight, self._there(u))

    def _filtered(self, logits: torch.Tensor, weight: torch.Tensor, top_k: Int32, top_p: Float32) -> torch.Tensor:
        """Weights of which top_k and then top_p have set those of the less likely tokens to 0."""
        vocab = logits.shape[1]
        kept = np.where(top_k > 0, np.minimum(top_k, vocab), vocab)
        most = int(kept.max())
        keys = order_keys(logits)
        # Where all draws have a top_k there is no need to sort what lies behind the largest.
        ids = (torch.topk(keys, most) if most < vocab else keys.sort(dim=-1, descending=True)).indices
        ranked = weight.gather(1, ids)
        rank = torch.arange(most, device=self.device)
        ranked = ranked.masked_fill(rank >= self._there(kept)[:, None], 0.0)
        reached = ranked.cumsum(dim=-1, dtype=torch.float64)
        share = self._there(top_p.astype(np.float64))[:, None]
        # The first token with which enough is reached is the last that stays: those before it reach less.
        enough = share * ranked.sum(dim=-1, keepdim=True, dtype=torch.float64)
        beyond = torch.nn.functional.pad(reached >= enough, (1, 0))[:, :-1] & (share < 1)
        return torch.zeros_like(weight).scatter_(1, ids, ranked.masked_fill(beyond, 0.0))

    def _there(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)


def order_keys(logits: torch.Tensor) -> torch.Tensor:
    """int64 keys, all different, that sort as a ranking does: by logit, of equals the lower id above the higher."""
    bits = (logits + 0.0).view(torch.int32)  # no negative zero, which would rank below zero
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
    return (ordered << 32) - torch.arange(logits.shape[-1], device=logits.device)


def inverse_cdf(weight: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[s] the first index of weight [s, V] whose cumulated weight exceeds u times the total; never one of weight 0.

    First the chunk in which that is, then the index in it: sums within chunks and over chunks have a fixed order.
    """
    rows = torch.nn.functional.pad(weight, (0, -weight.shape[1] % CHUNK))
    rows = rows.view(len(weight), -1, CHUNK)
    reached = rows.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = u[:, None] * reached[:, -1:]
    chunk = (reached <= target).sum(dim=-1).clamp(max=rows.shape[1] - 1)
    row = torch.arange(len(weight), device=weight.device)
    before = torch.where(chunk > 0, reached[row, (chunk - 1).clamp(min=0)], 0.0)
    within = before[:, None] + rows[row, chunk].cumsum(dim=-1, dtype=torch.float64)
    beyond = (within > target) & (rows[row, chunk] > 0)
    index = chunk * CHUNK + beyond.int().argmax(dim=-1)
    ids = torch.arange(weight.shape[1], device=weight.device)
    last = torch.where(weight > 0, ids, -1).amax(dim=-1)
    return torch.where(beyond.any(dim=-1), index, last)


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """log-softmax of rows of usable logits, the sum in float64."""
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    return shifted - shifted.exp().sum(dim=-1, keepdim=True, dtype=torch.float64).log().float()
